"""The seam between the training loop and what is added to it: penalties, loggers, early stopping, a user's own code."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from structprune.errors import InputError
from structprune.plan import PruningPlan
from structprune.randomness import random_state, set_random_state
from structprune.tensors import is_plain

if TYPE_CHECKING:
    from accelerate import Accelerator  # type: ignore[import-untyped]

__all__ = ["RUN_STATE", "Hook", "Metrics", "Run", "listed", "require_state"]

Metrics: TypeAlias = dict[str, float]

RUN_STATE = (
    "epoch",
    "step",
    "stopped",
    "history",
    "model",
    "optimizer",
    "schedule",
    "order",
    "random",
    "hooks",
)
"""What `Run.state_dict` holds."""


@dataclass(eq=False)
class Run:
    """A training run as its hooks see it; `finetune` and `Session` make one.

    `model` is the user's own module, whatever accelerate wrapped around it, and `optimizer` torch's own. With FSDP it
    is a copy of `original`, the user's own, which gets the weights after `on_end`: the copy's parameters are shards
    (`DTensor`), and what runs the model, as `evaluate` does, has to run it in every process.
    `weight` is what the batch under way counts in this process: the mean of weighted means over the processes is the
    mean over the batch. `epoch` is the number of the one under way, from 1; `step` counts the optimiser steps that are
    done, of `steps` in all. `history` holds the metrics of each epoch that is done. Where pruning goes in steps,
    `gradual_step` is the number of the one whose training it is, from 1, and `plans` are those of the steps so far.
    `measures` are the metrics that every epoch of `finetune` has before its hooks add theirs; empty in other loops.
    """

    model: nn.Module
    optimizer: Optimizer
    steps: int
    accelerator: Accelerator | None = None
    schedule: LRScheduler | None = None
    generator: torch.Generator | None = None
    hooks: Sequence[Hook] = ()
    epoch: int = 0
    step: int = 0
    weight: float = 1.0
    stopped: bool = False
    history: list[Metrics] = field(default_factory=list)
    gradual_step: int | None = None
    plans: Sequence[PruningPlan] = ()
    original: nn.Module | None = None
    measures: Sequence[str] = ()
    _last: ExitStack = field(default_factory=ExitStack, init=False, repr=False)

    @property
    def lr(self) -> float:
        """The learning rate of the next step (the optimiser's first parameter group)."""
        return float(self.optimizer.param_groups[0]["lr"])

    def stop(self) -> None:
        """Makes the epoch under way the last one."""
        self.stopped = True

    @property
    def main(self) -> bool:
        """Whether this is the process that writes files and shows progress: the only one, or the first of several."""
        if self.accelerator is None:  # a loop of somebody else's, who makes the processes meet
            return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0
        return bool(self.accelerator.is_main_process)

    @property
    def device(self) -> torch.device:
        """Where the batches are: accelerate's device, or that of the first parameter."""
        if self.accelerator is None:
            return next(self.model.parameters()).device
        return torch.device(self.accelerator.device)

    def require_whole(self, who: str, instead: str = "leave it out") -> None:
        """Raises `InputError` where the model's parameters are in shards: for the `on_start` of hooks that work on
        single weights. `who` needs them whole, and `instead` is what to do about it.
        """
        for name, parameter in self.model.named_parameters():
            if not is_plain(parameter):
                raise InputError(
                    f"{who} needs whole parameters, and {name!r} is cut into shards ({type(parameter).__name__}): "
                    f"{instead}, or train without FSDP"
                )

    def mean(self, value: Tensor) -> Tensor:
        """The mean over the batch of what `value`, without gradient, is over this process's share of it."""
        if self.accelerator is None or self.accelerator.num_processes == 1:
            return value
        found: Tensor = self.accelerator.reduce(value * self.weight, reduction="mean")
        return found

    def precision(self) -> AbstractContextManager[None]:
        """The mixed precision that the run's forwards have; nothing where it has none."""
        return nullcontext() if self.accelerator is None else self.accelerator.autocast()

    def at_exit(self, function: Callable[[], object]) -> None:
        """Calls `function` when the run is over, after an error too; the last one given comes first."""
        self._last.callback(function)

    def close(self) -> None:
        """Ends the run: calls what `at_exit` was given."""
        self._last.close()

    def state_dict(self) -> dict[str, Any]:
        """All that the rest of the run depends on, as it is between two epochs (taken in `after_epoch`).

        The model's and the optimiser's state, the learning-rate schedule, the order of the data, torch's
        random state, the metrics so far, and the state of every hook. The tensors are those in use: copy
        what is to be kept while training goes on. With FSDP they are the shards of this process.
        """
        return {
            "epoch": self.epoch,
            "step": self.step,
            "stopped": self.stopped,
            "history": [dict(metrics) for metrics in self.history],
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": None if self.schedule is None else self.schedule.state_dict(),
            "order": None if self.generator is None else self.generator.get_state(),
            "random": random_state(),
            "hooks": [hook.state_dict() for hook in self.hooks],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues after the epoch in which `state_dict` was taken; to be called in `on_start`.

        The run then ends with the same weights as the one that was not interrupted. Raises `InputError` for what is
        no such state, and where the hooks are not as many as they were.
        """
        require_state(state, RUN_STATE)
        if len(state["hooks"]) != len(self.hooks):
            raise InputError(
                f"the state is of a run with {len(state['hooks'])} hooks, this one has {len(self.hooks)}; "
                "give the same hooks in the same order"
            )
        self.epoch, self.step, self.stopped = state["epoch"], state["step"], state["stopped"]
        self.history[:] = [dict(metrics) for metrics in state["history"]]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.schedule is not None:
            self.schedule.load_state_dict(state["schedule"])
        if self.generator is not None:
            self.generator.set_state(state["order"])
        set_random_state(state["random"])
        for hook, own in zip(self.hooks, state["hooks"], strict=True):
            hook.load_state_dict(own)


class Hook:
    """Code that runs at fixed points of a training run; every method does nothing until it is overridden.

    The order in one step: `before_step`, forward, `on_loss`, backward, `after_backward`, the optimiser's step,
    `after_step`. Where accelerate accumulates gradients, the last three come once for several batches. Several hooks
    run in the order in which they are given.
    """

    def on_start(self, run: Run) -> None:
        """Before the first epoch; `run.load_state_dict` continues an earlier run from here."""

    def before_step(self, run: Run, inputs: Any, targets: Any) -> None:
        """Before the forward pass of a batch, which is on the model's device."""

    def on_loss(self, run: Run, loss: Tensor, inputs: Any, output: Any, targets: Any) -> Tensor:
        """The loss to be minimised, made of the one that the hooks before gave: distillation adds its own."""
        return loss

    def after_backward(self, run: Run) -> None:
        """The gradients of the step are complete, the optimiser has not moved: penalties add theirs here."""

    def after_step(self, run: Run) -> None:
        """The optimiser has moved; `run.lr` is still the rate it moved at: proximal steps."""

    def after_epoch(self, run: Run, metrics: Metrics) -> None:
        """The epoch is done and measured; what is added to `metrics` is handed back by `finetune`."""

    def after_cut(self, run: Run, plan: PruningPlan) -> None:
        """The model was pruned in place, by `Session.prune`: what a hook knew of its tensors holds no longer."""

    def on_end(self, run: Run) -> None:
        """After the last epoch, while the run's state is still there; not after an error."""

    def state_dict(self) -> dict[str, Any]:
        """What the hook has to remember when a run is interrupted: plain values and tensors."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what `state_dict` gave."""

    def describe(self) -> dict[str, Any]:
        """What the hook was made with, in plain values: a gradual run goes on only with hooks that say the same."""
        return {}


def listed(hooks: Hook | Sequence[Hook]) -> tuple[Hook, ...]:
    """The hooks, of which one may be given by itself; raises `InputError` for what is none."""
    if isinstance(hooks, Hook):
        return (hooks,)
    if not isinstance(hooks, Iterable):
        raise InputError(f"hooks={hooks!r}: expected a Hook, or several")
    found = tuple(hooks)
    if wrong := [each for each in found if not isinstance(each, Hook)]:
        raise InputError(f"hooks={hooks!r}: expected a Hook, or several, got a {type(wrong[0]).__name__}")
    return found


def require_state(state: Mapping[str, Any], keys: Iterable[str]) -> None:
    """Raises `InputError` for what is not the state of a run."""
    missing = [key for key in keys if not isinstance(state, Mapping) or key not in state]
    if missing:
        raise InputError(f"this is not what state_dict() of a run gave: it lacks {', '.join(missing)}")
