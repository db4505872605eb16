"""The times of a network's kernels at any widths, all of them at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from structprune import axes
from structprune.axes import Atom
from structprune.cost import compile_products
from structprune.forecast.fit import Fit, fit
from structprune.forecast.forms import Part, Sample
from structprune.forecast.stairs import LEVELS, aligned_level
from structprune.graph import DependencyGraph

__all__ = ["KernelTimes"]

_SHARE = 0.05  # of a group's time: kernels below it have no say in its alignment


class Widths:
    """The sizes that a network's parts are open in, at any counts."""

    def __init__(self, graph: DependencyGraph, parts: Sequence[Part]) -> None:
        variables = {group.atom: i for i, group in enumerate(graph.groups)}
        widths = list(dict.fromkeys(width for part in parts for width in part.open))
        self.number = {width: i for i, width in enumerate(widths)}
        self._sizes = [compile_products([(width.expr,)], variables, len(variables)) for width in widths]
        self._blocks = np.array([*(width.block for width in widths), 1], dtype=np.int64)
        self._open = _padded([[self.number[width] for width in part.open] for part in parts], len(widths))

    def at(self, counts: np.ndarray) -> np.ndarray:
        """int64 ``[choices, widths + 1]`` for counts ``[choices, groups]``: the last stands for no width, and is 1."""
        sizes = np.ones((len(counts), len(self._sizes) + 1), dtype=np.int64)
        for column, size in enumerate(self._sizes):
            sizes[:, column] = size.many(counts)
        return sizes

    def padded(self, sizes: np.ndarray) -> np.ndarray:
        """The sizes as the runtime pads them."""
        found: np.ndarray = -(-sizes // self._blocks) * self._blocks
        return found

    def levels(self, sizes: np.ndarray) -> np.ndarray:
        """Positions in LEVELS, int64 ``[choices, parts]``: of what the sizes are before the runtime pads them."""
        steps = np.log2(np.clip(sizes & -sizes, 1, LEVELS[-1])).astype(np.int64)
        steps[:, -1] = len(LEVELS) - 1
        found: np.ndarray = steps[:, self._open].min(axis=2)
        return found


class KernelTimes:
    """The parts' times at once: sizes from counts, then monomials, then the staircase's factors."""

    def __init__(self, graph: DependencyGraph, parts: Sequence[Part], samples: Sequence[Sample]) -> None:
        self._parts, self._widths = parts, Widths(graph, parts)
        number = self._widths.number
        levels = self._widths.levels(self._widths.at(np.array([sample.counts for sample in samples])))
        self._fitted = fitted = fit(parts, samples, levels)
        rows = [
            (position, coefficient, [number[part.open[i]] for i in chosen])
            for position, part in enumerate(parts)
            for chosen, coefficient in fitted.terms(part.form)
        ]
        first = {position: row for row, (position, _, _) in reversed(list(enumerate(rows)))}
        self._first = np.array([first[position] for position in range(len(parts))], dtype=np.int64)
        self._coefficient = np.array([coefficient for _, coefficient, _ in rows])
        self._factor = _padded([chosen for _, _, chosen in rows], len(number))
        self._stairs = np.array([fitted.stairs[part.form] for part in parts]).reshape(len(parts), len(LEVELS))
        self._at_full = self(graph.sizes())[0]

    def __call__(self, counts: np.ndarray) -> np.ndarray:
        """Milliseconds of each part, float64 ``[choices, parts]``, for counts ``[groups]`` or ``[choices, groups]``."""
        sizes = self._widths.at(np.atleast_2d(counts))
        padded = self._widths.padded(sizes).astype(np.float64)
        products = self._coefficient * padded[:, self._factor].prod(axis=2)
        smooth = np.add.reduceat(products, self._first, axis=1)
        step = self._widths.levels(sizes)
        found: np.ndarray = smooth * self._stairs[np.arange(len(self._parts)), step]
        return found

    def alignment(self, atom: Atom) -> int:
        concerned = [
            (self._at_full[position], _aligned(self._fitted, part))
            for position, part in enumerate(self._parts)
            if any(atom in axes.leaves(width.expr) for width in part.open)
        ]
        whole = sum(ms for ms, _ in concerned)
        return max((level for ms, level in concerned if ms > _SHARE * whole), default=1)


def _padded(rows: Sequence[Sequence[int]], filler: int) -> np.ndarray:
    """The rows as one array, shorter ones filled up."""
    width = max((len(row) for row in rows), default=1) or 1
    found = np.full((len(rows), width), filler, dtype=np.int64)
    for position, row in enumerate(rows):
        found[position, : len(row)] = row
    return found


def _aligned(fitted: Fit, part: Part) -> int:
    """The smallest level at which the part is as fast as at coarser ones; at least what the runtime pads to."""
    return max([aligned_level(fitted.stairs[part.form]), *(width.block for width in part.open)])
