"""The most importance that a budget holds: a knapsack whose weights depend on each other.

What a channel costs depends on how wide its neighbours are, so no order of channels is right from the start. From the
whole network, the step goes first that loses the least importance for what it saves, all prices taken anew at every
step (the greedy of NetAdapt and HALP: Yang et al., ECCV 2018; Shen et al., NeurIPS 2022). Then steps are exchanged as
long as that keeps more. Widths that cost no less than a wider one are no choice: what is left of each stair is its end.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from structprune.selection.contract import Counts, GroupLike
from structprune.selection.search import expander
from structprune.selection.units import Unit

__all__ = ["ValueLimit", "most_valuable"]

Floats = NDArray[np.float64]
Shares = Callable[[Counts], Floats]
"""From counts per unit, ``[choices, units]``, to the share of the budget that each choice takes, ``[choices]``."""

_REACH = (1, 2, 4, 8)  # steps down that are looked at: past a stair on which one step saves nothing
_NEAR = (1, 2, 3)  # steps that are exchanged
_ROUNDS = 60
_FEW = 100  # choices of all units together, up to which one unit is tried at each of its widths
_MIXED = (1, 2, 4, 8, 16)  # places above and below a width
_DEARER = 0.02  # of what the width adds to the least
_MORE = 1 + 1e-9  # an exchange has to keep this many times as much


@dataclass(frozen=True)
class ValueLimit:
    """The network's price stays at or below a fraction of the original's, and as much importance as possible stays."""

    shares: Shares  #: of counts per group, [choices, groups]: what remains of the original's price
    fraction: float
    groups: Sequence[GroupLike]

    def lowest(self, units: Sequence[Unit]) -> float:
        """What remains of the original's price when every unit keeps its least."""
        least = np.array([unit.least for unit in units], dtype=np.int64)
        return float(self.shares(expander(self.groups, units)(least)[None])[0])

    def admits(self, units: Sequence[Unit]) -> bool:
        """True where the least that all units may keep is within the limit."""
        return self.lowest(units) <= self.fraction

    def widest(self, units: Sequence[Unit]) -> Counts:
        """The counts that keep the most importance: [units]."""
        expand = expander(self.groups, units)

        def shares(kept: Counts) -> Floats:
            return self.shares(expand(kept)) / self.fraction

        return most_valuable(units, shares)


def most_valuable(units: Sequence[Unit], shares: Shares) -> Counts:
    """Counts per unit ``[units]`` that take at most 1.0 of the budget and keep as much importance as was found.

    The least that the units may keep has to fit.
    """
    choices = _cheaper_than_wider(units, shares)
    few = sum(len(unit.allowed) - 1 for unit in units) <= _FEW
    problem = _Problem(choices, shares, few)
    starts = [problem.reduced(problem.tops)]
    if few:  # from below as well: it costs little, and where widths are coarse it may end elsewhere
        starts.append(np.zeros_like(problem.tops))
    coarse = _cheap_for_their_size(choices, shares)
    if not few and any(len(a.allowed) < len(b.allowed) for a, b in zip(coarse, choices, strict=True)):
        steps = _Problem(coarse, shares)
        starts.append(problem.places(steps.counts(steps.improved(steps.reduced(steps.tops)))))
    return problem.counts(max((problem.improved(start) for start in starts), key=problem.values))


def _priced(units: Sequence[Unit], shares: Shares, n: int, beside: Counts) -> Floats:
    """What the budget is taken by at each width of unit `n` beside the others' counts."""
    choices = np.tile(beside, (len(units[n].allowed), 1))
    choices[:, n] = units[n].allowed
    return shares(choices)


def _cheaper_than_wider(units: Sequence[Unit], shares: Shares) -> list[Unit]:
    """The units with the widths that cost less than all wider ones, beside units that are whole or beside such at half;
    and their least.
    """
    wide = np.array([unit.size for unit in units], dtype=np.int64)
    half = np.array([unit.allowed[len(unit.allowed) // 2] for unit in units], dtype=np.int64)
    found = []
    for n, unit in enumerate(units):
        kept = np.arange(len(unit.allowed)) == 0
        for beside in (wide, half):
            priced = _priced(units, shares, n, beside)
            kept |= priced < np.append(np.minimum.accumulate(priced[:0:-1])[::-1], np.inf)
        found.append(replace(unit, allowed=unit.allowed[kept]))
    return found


def _cheap_for_their_size(units: Sequence[Unit], shares: Shares) -> list[Unit]:
    """The units with the widths that cost no more than a mixture of a wider and a narrower near one: of stairs the
    ends.
    """
    wide = np.array([unit.size for unit in units], dtype=np.int64)
    found = []
    for n, unit in enumerate(units):
        priced, place = _priced(units, shares, n, wide), np.arange(len(unit.allowed))
        mixed = np.full(len(place), np.inf)
        for down, up in itertools.product(_MIXED, _MIXED):
            low, high = np.maximum(place - down, 0), np.minimum(place + up, place[-1])
            span = np.maximum(unit.allowed[high] - unit.allowed[low], 1)
            line = priced[low] + (priced[high] - priced[low]) * (unit.allowed - unit.allowed[low]) / span
            mixed = np.where((low < place) & (place < high), np.minimum(mixed, line), mixed)
        dearer = (priced - mixed) > _DEARER * (mixed - priced[0])
        found.append(replace(unit, allowed=unit.allowed[~dearer]))
    return found


class _Problem:
    """States are places in the units' allowed counts: int64 ``[units]``, or ``[states, units]``."""

    def __init__(self, units: Sequence[Unit], shares: Shares, few: bool = False) -> None:
        longest = max((len(unit.allowed) for unit in units), default=1)
        self.tops = np.array([len(unit.allowed) - 1 for unit in units], dtype=np.int64)
        self._few = few
        self._shares = shares
        self._all = np.arange(len(units))
        self._counts = np.zeros((len(units), longest), dtype=np.int64)
        self._values = np.zeros((len(units), longest))
        for n, unit in enumerate(units):
            kept = np.concatenate([[0.0], np.cumsum(unit.curve)])[unit.allowed] * len(unit.positions)
            self._counts[n, : len(kept)] = unit.allowed
            self._values[n, : len(kept)] = kept

    def counts(self, states: Counts) -> Counts:
        found: Counts = self._counts[self._all, states]
        return found

    def places(self, counts: Counts) -> Counts:
        """The state of these counts, which are among the units' allowed ones."""
        found: Counts = (self._counts == counts[:, None]).argmax(axis=1)
        return found

    def values(self, states: Counts) -> Floats:
        found: Floats = self._values[self._all, states].sum(axis=-1)
        return found

    def shares(self, states: Counts) -> Floats:
        return self._shares(self.counts(np.atleast_2d(states)))

    def _moves(self, state: Counts, steps: Sequence[int], held: int = -1) -> Counts:
        """All states with one unit moved by one of the steps, `held` left alone: ``[moves, units]``."""
        unit, step = (one.ravel() for one in np.meshgrid(self._all, np.array(steps), indexing="ij"))
        place = state[unit] + step
        possible = (place >= 0) & (place <= self.tops[unit]) & (unit != held)
        moved = np.repeat(state[None], int(possible.sum()), axis=0)
        moved[np.arange(len(moved)), unit[possible]] = place[possible]
        return moved

    def reduced(self, state: Counts, held: int = -1) -> Counts:
        """`state`, narrowed step by step until it fits, `held` apart."""
        share = float(self.shares(state)[0])
        while share > 1.0:
            after = self._moves(state, [-reach for reach in _REACH], held)
            if not len(after):
                break
            priced = self.shares(after)
            lost, saved = self.values(state) - self.values(after), share - priced
            useful = np.minimum(saved, share - 1.0)  # what is saved beyond the budget is of no use
            cost = np.where(saved > 0, lost / np.maximum(useful, 1e-12), np.inf)
            best = int(np.argmin(cost)) if np.isfinite(cost).any() else int(np.argmax(saved))
            state, share = after[best], float(priced[best])
        return state

    def _refilled(self, state: Counts, held: int = -1) -> Counts:
        """`state`, widened as long as a step fits, the most importance for its price first, `held` apart."""
        share = float(self.shares(state)[0])
        while share <= 1.0:
            after = self._moves(state, (1,), held)
            if not len(after):
                break
            priced = self.shares(after)
            worth = (self.values(after) - self.values(state)) / np.maximum(priced - share, 1e-9)
            best = int(np.argmax(np.where(priced <= 1.0, worth, -1.0)))
            if priced[best] > 1.0:
                break
            state, share = after[best], float(priced[best])
        return state

    def improved(self, state: Counts) -> Counts:
        """`state` after exchanges that keep more, until none does."""
        state = self._refilled(state)
        for _ in range(_ROUNDS):
            better = self._exchanged(state)
            better = self._forced(state) if better is None else better
            if better is None:
                break
            state = better
        return state

    def _exchanged(self, state: Counts) -> Counts | None:
        """The most valuable state with one unit moved up and at most one other down; None where none keeps more."""
        wider = self._moves(state, _NEAR)
        if not len(wider):
            return None
        least = float(self.values(state)) * _MORE
        candidates = [wider]
        for one in wider:
            both = self._moves(one, [-step for step in _NEAR], int(np.argmax(one - state)))
            candidates.append(both[self.values(both) > least])
        states = np.concatenate(candidates)
        states = states[np.argsort(-self.values(states), kind="stable")]
        for start in range(0, len(states), 256):  # the first that fits is the best: the others need no price
            fits = np.flatnonzero(self.shares(states[start : start + 256]) <= 1.0)
            if len(fits):
                found: Counts = states[start + int(fits[0])]
                return found
        return None

    def _forced(self, state: Counts) -> Counts | None:
        """A more valuable state with one unit moved and held there, and the others fitted around it."""
        least = float(self.values(state)) * _MORE
        longest = int(self.tops.max(initial=0)) if self._few else 2
        for moved in self._moves(state, [sign * step for step in range(1, longest + 1) for sign in (-1, 1)]):
            held = int(np.argmax(moved != state))
            found = self._refilled(self.reduced(moved, held), held)
            if self.values(found) > least and self.shares(found)[0] <= 1.0:
                return found
        return None
