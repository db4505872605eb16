"""How far along the order of steps a budget allows one to go.

The order is fixed before, so the search only moves one number: the longest prefix of steps that fits, found
by doubling and halving. The step behind it does not fit, and since a price grows with every count, none of
its unit ever will; the search goes on without that unit. That fills the budget with the most important
channels that still fit, in a few hundred prices at most. Where that ends far from the budget, because steps
are few and large, steps are exchanged: one of a unit for what else fits then, or what is least important for
one that did not fit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from structprune.selection.contract import Counts, GroupLike
from structprune.selection.ranking import Steps, ranked_steps
from structprune.selection.units import Unit

__all__ = ["PriceLimit", "ShareLimit", "expander", "longest"]

_FULL = 0.998  # of the budget: what is left is less than a step worth looking for
_NEAR = 0.99  # of the budget: below this, other mixtures of steps are tried
_EXCHANGES = 4  # rounds of that


def expander(groups: Sequence[GroupLike], units: Sequence[Unit]) -> Callable[[Counts], Counts]:
    """A function from counts per unit [units] to counts per group [groups], or of many choices at once; other groups
    are whole.
    """
    sizes = np.array([group.size for group in groups], dtype=np.int64)
    cut = np.array([position for unit in units for position in unit.positions], dtype=np.int64)
    source = np.repeat(np.arange(len(units)), [len(unit.positions) for unit in units])

    def expand(kept: Counts) -> Counts:
        counts = np.broadcast_to(sizes, (*kept.shape[:-1], len(sizes))).copy()
        counts[..., cut] = kept[..., source]
        return counts

    return expand


@dataclass(frozen=True)
class ShareLimit:
    """Every unit keeps at most `share` of its channels, or the least it may keep where that is more."""

    share: float
    ceilings: Counts  #: [units]

    @classmethod
    def of(cls, share: float, units: Sequence[Unit]) -> ShareLimit:
        ceilings = [
            unit.allowed[
                max(0, int(np.searchsorted(unit.allowed / unit.size, share * (1 + 1e-12), "right")) - 1)
            ]
            for unit in units
        ]
        return cls(share, np.array(ceilings, dtype=np.int64))

    def admits(self, units: Sequence[Unit]) -> bool:
        """True where the least that all units may keep is within the limit."""
        return all(unit.least <= ceiling for unit, ceiling in zip(units, self.ceilings, strict=True))

    def widest(self, units: Sequence[Unit]) -> Counts:
        """The most channels that each unit may keep: [units]."""
        pairs = zip(units, self.ceilings, strict=True)
        kept = [min(max(ceiling, unit.least), unit.allowed[-1]) for unit, ceiling in pairs]
        return np.array(kept, dtype=np.int64)


@dataclass(frozen=True)
class PriceLimit:
    """The price of the whole network stays at or below a fraction of the original's."""

    share: Callable[[Counts], float]  #: of counts per group: what remains of the original's price
    fraction: float
    groups: Sequence[GroupLike]
    scope: str

    def lowest(self, units: Sequence[Unit]) -> float:
        """What remains of the original's price when every unit keeps its least."""
        return self.share(expander(self.groups, units)(_least(units)))

    def admits(self, units: Sequence[Unit]) -> bool:
        """True where the least that all units may keep is within the limit."""
        return self.lowest(units) <= self.fraction

    def widest(self, units: Sequence[Unit]) -> Counts:
        """As many channels as fit, in the order of the scope: [units]. The least of the units must fit."""
        kept = _least(units)
        if not units:
            return kept
        expand = expander(self.groups, units)
        fill = _Fill(lambda counts: self.share(expand(counts)), self.fraction, self._order(units))
        kept = fill(kept)
        for _ in range(_EXCHANGES):
            if fill.share(kept) >= self.fraction * _NEAR:
                break
            kept = max((kept, *_exchanges(fill, units, kept)), key=fill.share)
        return kept

    def _order(self, units: Sequence[Unit]) -> Steps:
        return ranked_steps(units, self.groups, self.scope)


@dataclass(frozen=True)
class _Fill:
    """Widens counts per unit, step by step, as far as the budget holds them."""

    share: Callable[[Counts], float]  #: of counts per unit
    fraction: float
    steps: Steps  #: all steps, most important first

    def __call__(self, kept: Counts, without: int = -1) -> Counts:
        """`kept`, widened by the most important steps that fit, none of them of the unit `without`."""
        todo = self.steps[(self.steps.end > kept[self.steps.unit]) & (self.steps.unit != without)]
        while len(todo.unit):
            taken = longest(len(todo.unit), partial(self._fits, kept, todo))
            kept = _widen(kept, todo, taken)
            if taken == len(todo.unit) or self.share(kept) >= self.fraction * _FULL:
                break
            rest = np.arange(taken + 1, len(todo.unit))
            todo = todo[rest[todo.unit[rest] != todo.unit[taken]]]
        return kept

    def _fits(self, kept: Counts, steps: Steps, taken: int) -> bool:
        return self.share(_widen(kept, steps, taken)) <= self.fraction


def _exchanges(fill: _Fill, units: Sequence[Unit], kept: Counts) -> Iterator[Counts]:
    """Other counts that are filled again, until some come near the budget: with one unit a step narrower; or
    with one a step wider, and the others as wide as their importance and what is left allow.

    Where no step fits and yet much is left (few, large steps), some other mixture of steps may come closer.
    """
    least = _least(units)
    for n, unit in enumerate(units):
        place = int(np.searchsorted(unit.allowed, kept[n]))
        for base, step, without in ((kept, place - 1, n), (least, place + 1, -1)):
            if 0 <= step < len(unit.allowed):
                start = base.copy()
                start[n] = unit.allowed[step]
                if fill.share(start) <= fill.fraction:
                    filled = fill(start, without)
                    yield filled
                    if fill.share(filled) >= fill.fraction * _NEAR:
                        return


def longest(total: int, fits: Callable[[int], bool]) -> int:
    """The largest n in [0, total] that fits, where 0 fits and fits never returns once lost.

    >>> longest(100, lambda n: n * n <= 150)
    12
    """
    good, reach = 0, 1
    while reach <= total and fits(reach):
        good, reach = reach, 2 * reach
    bad = min(reach, total + 1)
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good


def _least(units: Sequence[Unit]) -> Counts:
    return np.array([unit.least for unit in units], dtype=np.int64)


def _widen(kept: Counts, steps: Steps, taken: int) -> Counts:
    """`kept` after the first `taken` steps."""
    added = np.bincount(steps.unit[:taken], weights=steps.delta[:taken], minlength=len(kept))
    return kept + added.astype(np.int64)
