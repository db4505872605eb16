"""Counts that keep every comparison in the user's code as it was.

`if self.width != self.width_out:` takes the other branch once a cut makes the two equal: another network. The
graph says which comparisons a vector of counts would flip; one of the groups in each is moved as little as
possible, held there, and the budget is searched again with the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from structprune.errors import BudgetError
from structprune.selection.contract import Counts, GraphLike, ViolationLike
from structprune.selection.search import expander
from structprune.selection.units import Unit

__all__ = ["Limit", "counts_in_order"]

Units = tuple[Unit, ...]


class Limit(Protocol):
    """A budget: which units it can hold, and the most that it lets them keep."""

    def admits(self, units: Sequence[Unit]) -> bool: ...
    def widest(self, units: Sequence[Unit]) -> Counts: ...


def counts_in_order(graph: GraphLike, units: Units, limit: Limit) -> Counts:
    """Counts per group [groups] within the limit that flip no comparison.

    Raises BudgetError where the limit can only be met by flipping one.
    """
    for _ in range(2 * len(units) + 1):  # each turn holds at least one more unit, or holds one whole
        kept = limit.widest(units)
        counts = expander(graph.groups, units)(kept)
        flipped = graph.violations(counts)
        if not flipped:
            return counts
        units = _hold(graph, units, kept, flipped, limit)
    raise BudgetError(
        f"no widths within the budget leave the code's comparisons as they are: {flipped[0].reason}"
    )


def _hold(
    graph: GraphLike, units: Units, kept: Counts, flipped: Sequence[ViolationLike], limit: Limit
) -> Units:
    """The units with one of them held at the nearest count that flips fewer comparisons; else all involved
    whole.
    """
    expand = expander(graph.groups, units)
    involved = [n for n, unit in enumerate(units) if set(unit.positions) & set(flipped[0].groups)]
    for moved, count in _moves(units, kept, involved):
        trial = kept.copy()
        trial[moved] = count
        if len(graph.violations(expand(trial))) < len(flipped):
            held = _held(units, {moved: count})
            if limit.admits(held):
                return held
    whole = _held(units, {n: units[n].size for n in involved})
    if not involved or not limit.admits(whole):
        raise BudgetError(
            f"the budget cannot be met without changing what the code does: {flipped[0].reason}. "
            "Ask for less, or keep= the layers it speaks of"
        )
    return whole


def _moves(units: Units, kept: Counts, involved: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(unit, count) pairs, nearest first; fewer channels before more, which the budget can always hold."""
    moves = [
        (abs(int(count) - int(kept[n])) / units[n].size, int(count) > int(kept[n]), n, int(count))
        for n in involved
        for count in units[n].allowed
        if count != kept[n]
    ]
    for _, _, n, count in sorted(moves):
        yield n, count


def _held(units: Units, counts: dict[int, int]) -> Units:
    return tuple(
        replace(unit, allowed=np.array([counts[n]], dtype=np.int64)) if n in counts else unit
        for n, unit in enumerate(units)
    )
