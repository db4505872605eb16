"""A plan without a budget: all channels go that are zero, or nearly so."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from structprune.arguments import typed
from structprune.errors import InputError
from structprune.graph import DependencyGraph
from structprune.importance import Criterion, criterion_name, score
from structprune.plan import PruningPlan
from structprune.select import best
from structprune.selection.comparisons import counts_in_order
from structprune.selection.contract import Counts
from structprune.selection.ranking import normalised
from structprune.selection.units import Constraints, Unit, build_units, candidate_groups

__all__ = ["zero_plan"]


@typed
def zero_plan(
    graph: DependencyGraph,
    model: nn.Module,
    threshold: float = 0.0,
    *,
    criterion: str | Criterion = "l2",
    normalize: str = "none",
    multiple_of: int = 1,
    min_channels: int | Mapping[str, int] = 1,
    max_pruned: float | Mapping[str, float] = 1.0,
    keep: str | Iterable[str] = (),
    only: str | Iterable[str] = (),
    statistics: bool = False,
    **options: Any,
) -> PruningPlan:
    """The plan that removes every channel that scores at most `threshold`, and no other.

    By default these are the channels of which every weight is zero, as sparsity training leaves them: without them
    the network computes exactly what it did. So groups whose cut would take statistics (a layer norm, a softmax, a
    mean) over fewer channels stay whole, unless `statistics=True`. `criterion`, with its `options`, is that of `score`,
    and `normalize="mean"` divides the scores by their group's mean before they are compared. Where groups, heads, or
    groups of a convolution must keep equal numbers, as many go as are at most `threshold` in each of them. A group
    never loses all its channels; `multiple_of`, `min_channels`, `max_pruned`, `keep` and `only` are those of `select`.

    Raises InputError for a bad argument, and where nothing can be scored.
    """
    if not 0 <= threshold < math.inf:
        raise InputError(f"{threshold=}: expected a finite number of 0 or more")
    if normalize not in ("mean", "none"):
        raise InputError(f"normalize must be 'mean' or 'none', got {normalize!r}")
    bounds = Constraints(multiple_of, min_channels, max_pruned, _listed(keep), _listed(only))
    candidates = [
        position
        for position in candidate_groups(graph.groups, bounds)
        if statistics or not graph.groups[position].changes
    ]
    scored = score(model, graph, criterion, **options)
    scores = {position: scored[graph.groups[position].name] for position in candidates}
    units = build_units(graph.groups, {n: _curve(scores[n]) for n in candidates}, candidates, bounds)
    least = {position: _above(normalised(scores[position], normalize), threshold) for position in candidates}
    counts = counts_in_order(graph, units, _AtLeast(least))
    kept = {
        group.name: best(scores[position], int(counts[position]))
        for position, group in enumerate(graph.groups)
        if counts[position] < group.size
    }
    return graph.plan(kept, criterion=criterion_name(criterion), scope="threshold")


@dataclass(frozen=True)
class _AtLeast:
    """The narrowest widths that keep every channel above the threshold."""

    least: Mapping[int, int]  #: by the position of each group

    def admits(self, units: Sequence[Unit]) -> bool:
        return all(int(unit.allowed[-1]) >= self._needed(unit) for unit in units)

    def widest(self, units: Sequence[Unit]) -> Counts:
        widths = [unit.allowed[np.searchsorted(unit.allowed, self._needed(unit))] for unit in units]
        return np.array(widths, dtype=np.int64)

    def _needed(self, unit: Unit) -> int:
        return max(self.least[position] for position in unit.positions)


def _above(scores: NDArray[np.float64], threshold: float) -> int:
    """How many channels score more than the threshold, in the row that has the most of them."""
    return int((scores > threshold).sum(axis=-1).max())


def _curve(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.sort(scores if scores.ndim == 1 else scores.sum(axis=0))[::-1]


def _listed(patterns: str | Iterable[str]) -> tuple[str, ...]:
    return (patterns,) if isinstance(patterns, str) else tuple(patterns)
