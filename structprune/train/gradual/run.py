"""A gradual run: cut, train, measure, and again, with all that it has come to as plain state between two steps."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sized
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import Dataset

from structprune.archive import write_archive
from structprune.errors import InputError, StorageError
from structprune.history import History, fill, model_state
from structprune.plan import PruningPlan
from structprune.randomness import seeded
from structprune.replica import replica
from structprune.tensors import fingerprint, weights_digest
from structprune.train.gradual.checkpoint import agreed, first, read_state, several
from structprune.train.gradual.cuts import Cuts, plain
from structprune.train.gradual.floor import Floor
from structprune.train.gradual.rounds import Rounds
from structprune.train.gradual.samples import Samples, differing, samples_of
from structprune.train.hooks import Metrics
from structprune.train.optimizer_state import cut_optimizer

__all__ = ["GradualResult", "GradualRun", "GradualStep"]

_STATE = {"of", "samples", "steps", "history", "model", "metric_before", "cuts", "memory"}


@dataclass(frozen=True)
class GradualStep:
    """One step: what it asked for and what remains, by quantity, and the metric right after the cut and after the
    training (None where nothing is measured). `met` says whether the floor held; `history` has each epoch's metrics.
    """

    number: int
    asked: Mapping[str, float]
    remaining: Mapping[str, float]
    metric_cut: float | None
    metric: float | None
    met: bool
    history: tuple[Metrics, ...]

    def __str__(self) -> str:
        asked = ", ".join(f"{name} {value:.4g}" for name, value in self.asked.items())
        text = f"step {self.number}: {asked}"
        if self.metric is not None and self.metric_cut is not None:
            text += f"; {self.metric_cut:.4f} after the cut, {self.metric:.4f} after training"
        return text if self.met else f"{text}, below the floor"


@dataclass(frozen=True)
class GradualResult:
    """The last network that met the floor (the last one where there is none), and how it came about.

    `plans` are those that made `model`, in order, for `structprune.save`; `reached` says whether all steps were done
    and met the floor. `steps` has a last one that did not. `metric_before` is that of the network given.
    """

    model: nn.Module
    plans: tuple[PruningPlan, ...]
    steps: tuple[GradualStep, ...]
    reached: bool
    metric_before: float | None = None
    floor: float | None = None

    def __str__(self) -> str:
        lines = [] if self.metric_before is None else [f"before: {self.metric_before:.4f}"]
        lines += map(str, self.steps)
        if not self.reached:
            kept = [step for step in self.steps if step.met]
            what = f"the network of step {kept[-1].number}" if kept else "the network as it was given, uncut"
            lines.append(f"stopped at the floor of {self.floor:.4f}: this is {what}")
        return "\n".join(lines)


@dataclass
class GradualRun:
    """Cuts and trainings by turns; `step()` does one, and what it leaves is all that the next one needs.

    `model` is the network so far: the one that the last step that met the floor has left, and before the first the
    user's own, which no step changes. A step that raises leaves the run as it was before it. `state_dict()` is plain
    values and tensors: a run made in the same way that takes it (`load_state_dict`) goes on to the same result. Each
    step's random numbers are drawn from the seed and its number, so no random state has to be kept.

    Raises InputError where the network given is already below the floor; `step` what `prune` and `finetune` raise,
    `load_state_dict` InputError for the state of another run, and `resume` StorageError for a file of one.
    """

    cuts: Cuts
    rounds: Rounds
    floor: Floor = field(default_factory=Floor)
    model: nn.Module = field(init=False)
    plans: tuple[PruningPlan, ...] = field(init=False, default=())
    steps: tuple[GradualStep, ...] = field(init=False, default=())
    metric_before: float | None = field(init=False)
    memory: Optimizer | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        (self._weights,) = agreed((weights_digest(self.cuts.first),))
        self.model = self.cuts.first
        self.metric_before = self.floor.measure(self.model)
        self._limit = self.floor.limit(self.metric_before)

    @property
    def done(self) -> bool:
        """Whether there is no step left: the last was done, or one fell below the floor."""
        return len(self.steps) == self.cuts.count or any(not step.met for step in self.steps)

    def step(self) -> GradualStep:
        """Cuts, trains and measures once more; raises what `prune` and `finetune` do."""
        if self.done:
            raise InputError("the run is done: there is no step left")
        number = len(self.steps)
        left = self.steps[-1].remaining if self.steps else {}
        cut = self.cuts.make(self.model, number, left)
        memory = self.memory if self.rounds.goes_on else None
        if memory is not None:
            memory = _along(memory, self.model, cut.model, cut.plan)
        after_cut = self.floor.measure(cut.model)
        plans = (*self.plans, *(() if cut.plan is None else (cut.plan,)))
        history, memory = self.rounds.train(cut.model, number, memory, plans)
        metric = self.floor.measure(cut.model)
        met = self._limit is None or (metric is not None and metric >= self._limit)
        after_cut, metric, met = agreed((after_cut, metric, met))
        done = GradualStep(number + 1, cut.asked, cut.remaining, after_cut, metric, met, tuple(history))
        self.steps += (done,)
        if met:
            self.model, self.memory, self.plans = cut.model, memory, plans
        return done

    def result(self) -> GradualResult:
        """What the run has come to."""
        model = self.model if any(step.met for step in self.steps) else replica(self.cuts.first, {})
        reached = self.done and all(step.met for step in self.steps)
        return GradualResult(model, self.plans, self.steps, reached, self.metric_before, self._limit)

    def state_dict(self) -> dict[str, Any]:
        """All that the rest of the run depends on, in plain values and tensors, which are those in use."""
        return {
            "of": self._identity(),
            "samples": self._samples,
            "steps": [asdict(step) for step in self.steps],
            "history": History.of(self.model, self.plans).to_tree(),
            "model": model_state(self.model),
            "metric_before": self.metric_before,
            "cuts": self.cuts.state_dict(),
            "memory": self._remembered() if self.rounds.goes_on else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues where `state_dict` was taken; raises InputError where that was in another run: of another network,
        or the same with other weights, with other steps, epochs, hooks or floor, or on other data: another number of
        examples, or other values in some of them, as far as the data set does not draw them.
        """
        identity = self._identity()
        if gone := [*_STATE - state.keys(), *(identity.keys() ^ state["of"].keys())]:
            raise InputError(
                f"the state is of a gradual run of another version of structprune, which differs in {gone[0]!r}: go on "
                "with that version"
            )
        for name, own in identity.items():
            found = state["of"][name]
            if found != own:
                raise InputError(
                    f"the state is of a gradual run with another {name}: {_difference(found, own)}"
                )
        for name, own in self._samples.items():
            if parts := differing(state["samples"][name], own):
                raise InputError(
                    f"the state is of a gradual run on other data: {name} has as many examples, but other values in "
                    f"its {' and '.join(parts)}"
                )
        history = History.from_tree(state["history"])
        model = history.build(replica(self.cuts.first, {}))
        fill(model, state["model"], history)
        self.cuts.load_state_dict(state["cuts"])
        self.rounds = dataclasses.replace(self.rounds, count=self.cuts.count)
        self.model, self.plans = model, history.plans
        self.steps = tuple(
            GradualStep(**{**step, "history": tuple(step["history"])}) for step in state["steps"]
        )
        self.metric_before = state["metric_before"]
        self._limit = self.floor.limit(self.metric_before)
        self.memory = None if state["memory"] is None else self.rounds.optimizer(model, state["memory"])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the state into a file, whole or not at all; of several processes the first one does."""
        state = self.state_dict()
        if first():
            write_archive(path, state)
        if several():
            torch.distributed.barrier()

    def resume(self, path: str | os.PathLike[str]) -> bool:
        """Continues from a file that `save` wrote, where there is one; returns whether."""
        _ = self._hooks  # what makes them is asked before the first step
        state = read_state(path)
        if state is None:
            return False
        try:
            self.load_state_dict(state)
        except InputError as error:
            raise StorageError(f"{path}: {error}; delete it, or name another checkpoint=") from error
        return True

    def _identity(self) -> dict[str, Any]:
        rounds, floor = self.rounds, self.floor
        options = plain({**vars(rounds.options), **rounds.more})
        return {
            "network": fingerprint(self.cuts.first),
            "network's weights": self._weights,
            "cut": self.cuts.describe(),
            "training": options | {"final": rounds.final, "rewind": rounds.rewind, "goes_on": rounds.goes_on},
            "set of hooks": self._hooks,
            "floor": {"floor": floor.least, "max_drop": floor.drop},
            "number of examples": {"train_data": _length(rounds.data), "validation": _length(floor.data)},
        }

    @cached_property
    def _hooks(self) -> dict[str, str]:
        with seeded(self.rounds.options.seed):
            hooks = self.rounds.hooks_of(replica(self.cuts.first, {}))
        return plain({f"hook {number}": hook for number, hook in enumerate(hooks, 1)})

    @cached_property
    def _samples(self) -> dict[str, Samples]:
        return {"train_data": samples_of(self.rounds.data), "validation": samples_of(self.floor.data)}

    def _remembered(self) -> dict[str, Any] | None:
        """What the optimiser remembers, by the names of the parameters."""
        if self.memory is None:
            return None
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        return {names[id(p)]: dict(state) for p, state in self.memory.state.items() if id(p) in names}


def _length(data: Dataset[Any] | None) -> int | None:
    return len(data) if isinstance(data, Sized) else None


def _difference(found: Any, own: Any) -> str:
    """What two descriptions differ in; of two dicts, the entries that do."""
    if isinstance(found, dict) and isinstance(own, dict):
        names = [name for name in {**found, **own} if found.get(name) != own.get(name)]
        return "; ".join(f"{name} {found.get(name)}, and {own.get(name)} here" for name in names)
    return f"{found}, and {own} here"


def _along(memory: Optimizer, before: nn.Module, after: nn.Module, plan: PruningPlan | None) -> Optimizer:
    """The optimiser for the network after a cut: masks leave every tensor its shape."""
    nothing = PruningPlan(fingerprint(before), (), {}, {}, ())
    return cut_optimizer(memory, before, after, nothing if plan is None else plan)
