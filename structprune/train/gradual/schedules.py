"""How far each step of a gradual cut goes: shares of the original network, however many steps were taken."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from structprune.budget import Budget
from structprune.errors import InputError

__all__ = ["Cubic", "Iterative", "OneShot", "Schedule", "step_budgets"]

_EQUAL = 1 + 1e-9  # a share that rounding alone keeps above its target


class Schedule(ABC):
    """The steps in which a cut is made; derive from it for one of your own.

    With `trains_on` the training between the steps is one: its learning rate goes on, and what the optimiser remembers
    is cut along. Otherwise each step's training begins anew.
    """

    trains_on: bool = False

    @abstractmethod
    def shares(self, start: float, target: float) -> tuple[float, ...]:
        """What remains after each step, as shares of the original, from `start` (before the first, not listed) down to
        `target` (the last); the target alone where `start` is not above it.
        """


@dataclass(frozen=True)
class OneShot(Schedule):
    """The whole cut at once, then training.

    >>> OneShot().shares(1.0, 0.25)
    (0.25,)
    """

    def shares(self, start: float, target: float) -> tuple[float, ...]:
        """The target alone."""
        return (target,)


@dataclass(frozen=True)
class Iterative(Schedule):
    """Cut a part, train, and so on: each step removes the same share of what is left (Han et al. 2015, "Learning both
    Weights and Connections").

    `share` is what each step removes, 10 % if nothing is given, and the last one what remains to be removed; `steps` is
    how many there are, with the share that it takes. With `of="original"` equal parts of the original go instead.
    Raises `InputError` for values out of range, and for both a share and a number of steps.

    >>> [round(share, 3) for share in Iterative(0.1).shares(1.0, 0.7)]
    [0.9, 0.81, 0.729, 0.7]
    >>> [round(share, 3) for share in Iterative(steps=2).shares(1.0, 0.25)]
    [0.5, 0.25]
    >>> [round(share, 3) for share in Iterative(0.1, of="original").shares(1.0, 0.75)]
    [0.9, 0.8, 0.75]
    """

    share: float | None = None
    steps: int | None = None
    of: str = "remaining"

    def __post_init__(self) -> None:
        if self.share is not None and self.steps is not None:
            raise InputError(f"Iterative takes share= or steps=, got {self.share} and {self.steps}")
        if isinstance(self.share, str) or (self.share is not None and not 0.001 <= self.share < 1):
            raise InputError(
                f"Iterative(share={self.share!r}): expected a part to remove, from 0.001 to below 1"
            )
        if self.steps is not None:
            _check_steps("Iterative", self.steps)
        if self.of not in ("remaining", "original"):
            raise InputError(f"Iterative(of={self.of!r}): expected 'remaining' or 'original'")

    def shares(self, start: float, target: float) -> tuple[float, ...]:
        """Geometric, or with `of="original"` linear, down to the target."""
        if start <= target:
            return (target,)
        if self.steps is not None:
            done = [step / self.steps for step in range(1, self.steps)]
            return (*(self._between(start, target, part) for part in done), target)
        share, found = 0.1 if self.share is None else self.share, list[float]()
        while True:
            step = len(found) + 1
            left = start * (1 - share) ** step if self.of == "remaining" else start - step * share
            if left <= target * _EQUAL:
                return (*found, target)
            found.append(left)

    def _between(self, start: float, target: float, part: float) -> float:
        if self.of == "remaining":
            return float(start * (target / start) ** part)
        return start + (target - start) * part


@dataclass(frozen=True)
class Cubic(Schedule):
    """Automated gradual pruning (Zhu & Gupta 2017, "To prune, or not to prune"): much at first, little at the end,
    while one training goes on.

    After step t of n the share that is removed is s_f + (s_0 - s_f) (1 - t/n)^3. Raises `InputError` for a number of
    steps that is not in 1 to 1000.

    >>> [round(share, 4) for share in Cubic(4).shares(1.0, 0.2)]
    [0.5375, 0.3, 0.2125, 0.2]
    """

    steps: int

    trains_on = True

    def __post_init__(self) -> None:
        _check_steps("Cubic", self.steps)

    def shares(self, start: float, target: float) -> tuple[float, ...]:
        """What the formula leaves after each of the steps."""
        if start <= target:
            return (target,)
        left = [target + (start - target) * (1 - step / self.steps) ** 3 for step in range(1, self.steps)]
        return (*left, target)


def step_budgets(schedule: Schedule, budget: Budget, present: Mapping[str, float]) -> tuple[Budget, ...]:
    """The budget of each step; `present` is the share of the original's that the network has, by quantity.

    Quantities that are there in fewer steps than others stay at their last value. `latency` is a share of the latency
    at the beginning; a share of `latency_ms` or `throughput` is not of the original but of the network given, whose
    figure `present` has.
    """
    values: dict[str, tuple[float, ...]] = {}
    for limit in budget.limits:
        here = present.get(limit.quantity, 1.0)
        if limit.quantity == "latency_ms":
            values[limit.quantity] = tuple(
                here * share for share in schedule.shares(1.0, limit.value / here)[:-1]
            )
        elif limit.quantity == "throughput":
            values[limit.quantity] = tuple(
                here / share for share in schedule.shares(1.0, here / limit.value)[:-1]
            )
        else:
            values[limit.quantity] = schedule.shares(here, limit.value)[:-1]
    count = max(len(each) for each in values.values())
    last = {limit.quantity: limit.value for limit in budget.limits}
    steps = [
        {name: each[number] if number < len(each) else last[name] for name, each in values.items()}
        for number in range(count + 1)
    ]
    return tuple(dataclasses.replace(budget, **step) for step in steps)  # type: ignore[arg-type]


def _check_steps(name: str, steps: int) -> None:
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= 1000:
        raise InputError(f"{name}(steps={steps!r}): expected a number of steps from 1 to 1000")
