"""The training after each cut: how many epochs, at which learning rates, and what the optimiser remembers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import Dataset

from structprune.errors import InputError
from structprune.plan import PruningPlan
from structprune.train.gradual.targets import require_options
from structprune.train.hooks import Hook, Metrics, Run, listed
from structprune.train.loop import finetune
from structprune.train.optimizers import build_optimizer, build_schedule
from structprune.train.options import TrainOptions

__all__ = ["Hooks", "Rounds", "learning_rates", "part_of_schedule"]

Hooks = Hook | Sequence[Hook] | Callable[[nn.Module], Hook | Sequence[Hook]]
"""A hook or several for every step's training, or a function that makes them for the network of a step."""


@dataclass(frozen=True)
class Rounds:
    """`count` trainings of `options.epochs` epochs each, `final` in the last one; `more` is what else `finetune` takes.

    With `goes_on` they are one training, in parts. With `rewind`, the epochs that the network was trained for, each
    repeats the learning rates of the last of them (Renda et al. 2020, "Comparing Rewinding and Fine-tuning in Neural
    Network Pruning"). Otherwise each goes through the whole schedule.
    """

    data: Dataset[Any]
    options: TrainOptions
    count: int
    final: int | None = None
    rewind: int | None = None
    goes_on: bool = False
    hooks: Hooks = ()
    more: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.final is not None and self.final < 1:
            raise InputError(f"final_epochs={self.final!r}: must be at least 1")
        if said := sorted(self.more.keys() & ({each.name for each in fields(TrainOptions)} | {"hooks"})):
            raise InputError(f"training={{{said[0]!r}: ...}}: say it in options, or as hooks=")
        require_options(self.more, "training", finetune, ("model", "train_data"))
        longest = max(map(self.epochs, range(self.count)))
        if self.rewind is not None and self.rewind < longest:
            raise InputError(
                f"rewind={self.rewind!r} is the number of epochs that the network was trained for, whose last ones are "
                f"repeated: it must be at least the {longest} epochs of a step"
            )
        if self.rewind is not None and self.goes_on:
            raise InputError(
                "rewind= repeats a part of the training in each step, and this schedule trains on: leave out one"
            )

    def epochs(self, number: int) -> int:
        """The epochs of round `number`, from 0."""
        last = number == self.count - 1
        return self.options.epochs if self.final is None or not last else self.final

    def options_of(self, number: int) -> TrainOptions:
        """How round `number` is trained; each draws its own order of the data."""
        epochs, schedule = self.epochs(number), self.options.schedule
        if self.rewind is not None:
            schedule = part_of_schedule(self.options, self.rewind - epochs, epochs, self.rewind)
        elif self.goes_on:
            parts = [self.epochs(each) for each in range(self.count)]
            schedule = part_of_schedule(self.options, sum(parts[:number]), epochs, sum(parts))
        return dataclasses.replace(
            self.options, epochs=epochs, schedule=schedule, seed=self.options.seed + number
        )

    def optimizer(self, model: nn.Module, state: Mapping[str, Mapping[str, Any]]) -> Optimizer:
        """The optimiser of a round with what one like it remembered of each parameter, by name."""
        made = build_optimizer(model, self.options)
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        _remember(made, lambda parameter: state.get(names.get(id(parameter), "")))
        return made

    def hooks_of(self, model: nn.Module) -> tuple[Hook, ...]:
        """The hooks of a training of this network."""
        return listed(self.hooks(model) if callable(self.hooks) else self.hooks)

    def train(
        self, model: nn.Module, number: int, memory: Optimizer | None, plans: Sequence[PruningPlan] = ()
    ) -> tuple[list[Metrics], Optimizer]:
        """Trains the model in place; `memory` is an optimiser of its parameters, whose state is the state to begin
        with, and `plans` have cut the model so far. Returns the metrics of each epoch, and the optimiser as it was
        left.
        """
        keeper = _Beginning(memory, number, plans, self.goes_on)
        options = self.options_of(number)
        chosen = {each.name: getattr(options, each.name) for each in fields(options)}
        log = finetune(model, self.data, hooks=(keeper, *self.hooks_of(model)), **chosen, **self.more)
        assert keeper.optimizer is not None
        return log, keeper.optimizer


def learning_rates(options: TrainOptions, steps: int) -> list[float]:
    """The learning rate of each optimiser step of a training of `steps` steps."""
    optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=options.lr)
    schedule, rates = build_schedule(optimizer, options, steps), []
    for _ in range(steps):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        schedule.step()
    return rates


def part_of_schedule(
    options: TrainOptions, first: int, epochs: int, total: int
) -> Callable[[Optimizer, int], LRScheduler]:
    """The schedule of `epochs` epochs that come after `first` epochs of a training of `total` epochs with `options`."""

    def make(optimizer: Optimizer, steps: int) -> LRScheduler:
        each = steps // epochs
        rates = learning_rates(options, each * total)[first * each : first * each + steps]
        return LambdaLR(optimizer, lambda step: rates[min(step, steps - 1)] / options.lr)

    return make


class _Beginning(Hook):
    """Tells a training which step it is of, and by which plans its network came to be; gives it what an earlier
    optimiser remembers of the same parameters, and holds on to its own."""

    def __init__(
        self, optimizer: Optimizer | None, number: int, plans: Sequence[PruningPlan], goes_on: bool
    ) -> None:
        self.optimizer, self.number, self.plans, self.goes_on = optimizer, number, tuple(plans), goes_on

    def on_start(self, run: Run) -> None:
        if self.goes_on:
            run.require_whole("a training that goes on from step to step", "give carry=False")
        run.gradual_step, run.plans = self.number + 1, self.plans
        if self.optimizer is not None:
            _remember(run.optimizer, self.optimizer.state.get)
        self.optimizer = run.optimizer


def _remember(optimizer: Optimizer, state_of: Callable[[Tensor], Mapping[str, Any] | None]) -> None:
    """Gives the optimiser the state of each of its parameters, on the parameter's device."""
    for group in optimizer.param_groups:
        on_device = group.get("fused") or group.get("capturable")  # then step counts too lie on the device
        for parameter in group["params"]:
            state = state_of(parameter)
            if state is not None:
                optimizer.state[parameter] = {
                    key: value.to(parameter.device)
                    if isinstance(value, Tensor) and (value.ndim or on_device)
                    else value
                    for key, value in state.items()
                }
