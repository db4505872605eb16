"""The cuts of a gradual run, one a step: channels under budgets, or weights behind masks."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from structprune.budget import Budget
from structprune.errors import InputError
from structprune.importance import Criterion, criterion_name
from structprune.inputs import normalize_inputs
from structprune.latency import measure_latency
from structprune.masking import nonzeros, sparsify, sparsity_report
from structprune.masking.targets import Pattern, Patterns, all_targets, as_patterns
from structprune.pipeline import prune
from structprune.plan import REMAINING, PruningPlan
from structprune.refit.batches import readable_again
from structprune.selectors import module_names
from structprune.train.gradual.schedules import Schedule, step_budgets
from structprune.train.gradual.targets import require_options, require_reachable
from structprune.train.hooks import Hook

__all__ = ["BudgetCuts", "Cut", "Cuts", "MaskCuts", "plain"]

_SAID = ("criterion", "data", "calibration")  # arguments of the whole


@dataclass(frozen=True)
class Cut:
    """What one step made of the network: a new module. `asked` and `remaining` are shares of the original by
    quantity (of `latency_ms` and `throughput` figures, of "sparsity" the share of the weights that is zero).
    """

    model: nn.Module
    plan: PruningPlan | None
    asked: Mapping[str, float]
    remaining: Mapping[str, float]


class Cuts(ABC):
    """What is cut in each step; `first` is the network before the first one, which none of them changes."""

    first: nn.Module

    @property
    @abstractmethod
    def count(self) -> int:
        """The number of steps."""

    @abstractmethod
    def make(self, model: nn.Module, step: int, remaining: Mapping[str, float]) -> Cut:
        """What step `step`, from 0, makes of the network that the ones before have made, and of which `remaining` was
        said; that network stays as it is.
        """

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What is asked for, in plain values that are the same in every process."""

    def state_dict(self) -> dict[str, Any]:
        """What the cuts depend on beside the network and what they were asked for: plain values."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027 - most have nothing to take back
        """Takes back what `state_dict` gave."""


class BudgetCuts(Cuts):
    """Cuts of channels by `prune`, whose further arguments are `options`.

    Raises InputError for options that `prune` does not have, and BudgetError for a budget that no steps lead to.
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any,
        budget: Budget,
        schedule: Schedule,
        criterion: str | Criterion,
        data: Iterable[Any] | None,
        calibration: Iterable[Any] | None,
        options: Mapping[str, Any],
    ) -> None:
        if not isinstance(budget, Budget):
            raise InputError(f"budget is {budget!r}; write for example Budget(macs=0.25)")
        if options.get("inplace"):
            raise InputError("pruning={'inplace': True}: give inplace=True to the whole")
        if options.get("rewrite"):
            raise InputError(
                "pruning={'rewrite': True} would make the graph anew in each step: give structprune.rewrite(model, "
                "example_inputs) instead of the model"
            )
        require_options(options, "pruning", prune, ("model", "example_inputs", "budget", *_SAID))
        self.first, self.inputs, self.budget = model, normalize_inputs(example_inputs), budget
        self.options = {"criterion": criterion, **options}
        for name in ("keep", "only"):
            self.options[name] = module_names(model, options.get(name, ()))  # the next step has other modules
        for name, batches in (("data", data), ("calibration", calibration)):
            if batches is not None:
                again = name == "calibration" and batches is data
                self.options[name] = self.options["data"] if again else readable_again(batches, name)
        require_reachable(model, self.inputs, budget, self.options)
        self.schedule = schedule
        self._shares = dict(getattr(model, REMAINING, {}))
        time = budget.time
        self._figures = {} if time is None or time.quantity == "latency" else self._measured()
        self.budgets = step_budgets(schedule, budget, {**self._shares, **self._figures})

    @property
    def count(self) -> int:
        """The number of steps."""
        return len(self.budgets)

    def describe(self) -> dict[str, Any]:
        """The budget, the criterion, and the shares that the steps leave."""
        steps = step_budgets(self.schedule, self.budget, self._shares)
        criterion = criterion_name(self.options["criterion"])
        return {
            "budget": str(self.budget),
            "steps": [_limits(step) for step in steps],
            **plain(self.options),
            "criterion": criterion,
        }

    def make(self, model: nn.Module, step: int, remaining: Mapping[str, float]) -> Cut:
        """The network within the step's budget, proven."""
        asked, so_far = self.budgets[step], remaining.get("latency", 1.0)
        budget = asked
        if asked.latency is not None:  # prune takes it as a share of the network at hand
            budget = dataclasses.replace(asked, latency=min(1.0, asked.latency / so_far))
        result = prune(model, self.inputs, budget, **self.options)
        left = dict(result.plan.remaining)
        if result.report.latency is not None:
            left["latency"] = so_far * result.report.latency.ratio.value
        return Cut(result.model, result.plan, _limits(asked), left)

    def state_dict(self) -> dict[str, Any]:
        """What the network took on the runtime before the first cut: it is measured once."""
        return {"figures": dict(self._figures)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes these figures instead of those that were measured since."""
        self._figures = dict(state["figures"])
        self.budgets = step_budgets(self.schedule, self.budget, {**self._shares, **self._figures})

    def _measured(self) -> dict[str, float]:
        dense = measure_latency(self.first, self.inputs, runtime=self.budget.runtime)
        return {"latency_ms": dense.median_ms, "throughput": 1e3 * dense.batch / dense.median_ms}


class MaskCuts(Cuts):
    """Weights set to zero behind masks by `sparsify`, whose further arguments are `options`."""

    def __init__(
        self, model: nn.Module, sparsity: float, schedule: Schedule, options: Mapping[str, Any]
    ) -> None:
        if not 0 < sparsity < 1:
            raise InputError(f"sparsity={sparsity!r}: must be above 0 and below 1")
        self.options = dict(options)
        for name in ("keep", "only"):
            self.options[name] = _by_name(model, options.get(name, ()))
        self.first = sparsify(model, 0.0, **self.options)  # all masks are there from the beginning
        masked = [row for row in sparsity_report(self.first).tensors if row.masked]
        here = sum(row.nonzeros for row in masked) / sum(row.size for row in masked)
        self.targets = (*(1 - share for share in schedule.shares(here, 1 - sparsity)[:-1]), sparsity)

    @property
    def count(self) -> int:
        """The number of steps."""
        return len(self.targets)

    def describe(self) -> dict[str, Any]:
        """The sparsity of each step."""
        return {"sparsity": list(self.targets), **plain(self.options)}

    def make(self, model: nn.Module, step: int, remaining: Mapping[str, float]) -> Cut:
        """A copy whose masks are extended to the step's sparsity."""
        masked = sparsify(model, self.targets[step], **self.options)
        weights = sum(target.parameter.numel() for target in all_targets(masked))
        return Cut(masked, None, {"sparsity": self.targets[step]}, {"params": nonzeros(masked) / weights})


def plain(options: Mapping[str, Any]) -> dict[str, str]:
    """Options as texts that are the same in every process: plain values as they are written, hooks with what they were
    made with, of all else the type."""
    return {name: _plain(value) for name, value in options.items()}


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return str(plain({str(key): each for key, each in value.items()}))
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_plain, value))}]"
    if isinstance(value, Hook):
        made_with = ", ".join(f"{name}={each}" for name, each in plain(value.describe()).items())
        return f"{type(value).__name__}({made_with})"
    return repr(value) if value is None or isinstance(value, str | int | float) else type(value).__name__


def _by_name(model: nn.Module, patterns: Patterns) -> list[Pattern]:
    """The patterns of `sparsify` with names for modules, of which every step has others."""
    return [
        module_names(model, each)[0] if isinstance(each, nn.Module) else each
        for each in as_patterns(patterns)
    ]


def _limits(budget: Budget) -> dict[str, float]:
    return {limit.quantity: limit.value for limit in budget.limits}
