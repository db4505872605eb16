"""Kernels for a runtime that does not say how long its own take: those of another, weighed by whole networks' times.

A compiler fuses and a device overlaps, so one runtime's kernels are not another's; but how they grow with the widths is
much alike. So each operation's kernels get one factor, not negative, and each inference a constant, such that they
explain how long a few whole networks take on the runtime itself. Few networks say little about many operations: what
they leave open is drawn to one common factor. What remains wrong, the whole pruned network's measurement corrects.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import numpy as np
from scipy.optimize import nnls
from torch import nn

from structprune.forecast.cache import Cache
from structprune.forecast.sampling import Profiler, draw, has_profiler, profiler
from structprune.forecast.template import cut_to_counts
from structprune.graph import DependencyGraph
from structprune.runtime_settings import Runtime
from structprune.runtimes import TimedCall, lender, model_for, prepare, require_known
from structprune.runtimes.profiles import Kernel, Profile

__all__ = ["profiler_of", "weigh"]

_NETWORKS = (64, 32, 16, 8, 4)
"""Alignments of the networks that are timed, beside the whole one: each may have to be compiled."""
_CALLS = 12
_ALIKE = 0.1  # how firmly factors are drawn to the common one, beside an error of the same size
_INFERENCE = "inference"  # the kernel that stands for the constant

Counts = np.ndarray


def profiler_of(
    runtime: Runtime,
    model: nn.Module,
    graph: DependencyGraph,
    free: frozenset[int],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    beside: TimedCall,
) -> Profiler:
    """A function from counts to the profile of the network on ``runtime``, with borrowed kernels where it has none.

    ``beside`` times the whole network on the runtime: a machine that slows down slows both.
    """
    if has_profiler(runtime):
        return profiler(runtime, model, graph, free, args, kwargs, beside)
    require_known(runtime)
    source = lender(runtime)
    lent = profiler_of(source, model, graph, free, args, kwargs, beside)
    cache = Cache.of(graph, (args, kwargs), runtime, source.name)
    points = [
        graph.sizes(),
        *(draw(graph, free, alignment, 7 * alignment + 3) for alignment in _NETWORKS),
    ]
    converted = model_for(runtime, model)
    timing = _Timing(
        lambda counts: prepare(runtime, cut_to_counts(converted, graph, counts), args, kwargs), beside
    )
    timed = [_timed(counts, lent, timing, cache, whole=not i) for i, counts in enumerate(points)]
    factors, constant = weigh(timed)
    known = {tuple(counts.tolist()): profile.whole_ms for counts, profile in zip(points, timed, strict=True)}

    def profile(counts: Counts) -> Profile:
        found = lent(counts)
        kernels = tuple(replace(k, ms=k.ms * factors.get(k.operation, 0.0)) for k in found.kernels)
        kernels = (*kernels, Kernel(_INFERENCE, _INFERENCE, ((),), constant))
        whole = known.get(tuple(counts.tolist()), sum(kernel.ms for kernel in kernels))
        return replace(found, kernels=kernels, whole_ms=whole)

    return profile


def weigh(timed: Sequence[Profile]) -> tuple[dict[str, float], float]:
    """Each operation's factor and the constant in milliseconds, such that they explain the whole times.

    Least squares of the relative errors, with no factor and no constant below zero; each factor's distance to the
    common one counts by the operation's share of the time.
    """
    operations = sorted({kernel.operation for profile in timed for kernel in profile.kernels})
    sums = np.array([[_sum(profile, operation) for operation in operations] for profile in timed])
    wholes = np.array([profile.whole_ms for profile in timed])
    (common, _), _ = nnls(
        np.stack([sums.sum(axis=1), np.ones(len(timed))], axis=1) / wholes[:, None], _ones(timed)
    )
    common = common or wholes.sum() / sums.sum()  # all constant: the kernels must cost something to be cut
    share = sums.sum(axis=0) / sums.sum()
    explained = np.hstack([sums * common, np.ones((len(timed), 1))]) / wholes[:, None]
    drawn = np.hstack([np.diag(_ALIKE * share), np.zeros((len(operations), 1))])
    found, _ = nnls(np.vstack([explained, drawn]), np.append(_ones(timed), _ALIKE * share))
    return dict(zip(operations, (found[:-1] * common).tolist(), strict=True)), float(found[-1])


def _sum(profile: Profile, operation: str) -> float:
    return sum(kernel.ms for kernel in profile.kernels if kernel.operation == operation)


def _ones(timed: Sequence[Profile]) -> np.ndarray:
    return np.ones(len(timed))


class _Timing:
    """Whole networks' times on the runtime, each beside the whole one by turns."""

    def __init__(
        self, prepared: Callable[[Counts], AbstractContextManager[TimedCall]], dense: TimedCall
    ) -> None:
        self._prepared, self._dense = prepared, dense
        self._dense_ms = 0.0

    def __call__(self, counts: Counts | None) -> float:
        """Milliseconds of the network at these counts, of the whole one for None, on the machine as it was at first."""
        self._dense_ms = self._dense_ms or float(
            np.median([self._dense() for _ in range(2 * _CALLS)][_CALLS:])
        )
        if counts is None:
            return self._dense_ms
        with self._prepared(counts) as call:
            call()
            pairs = np.array([(call(), self._dense()) for _ in range(_CALLS)])
        return self._dense_ms * float(np.median(pairs[:, 0]) / np.median(pairs[:, 1]))


def _timed(counts: Counts, lent: Profiler, timing: _Timing, cache: Cache, whole: bool) -> Profile:
    """The lender's kernels and the whole network's time, from the disk where they are known."""
    known = cache.get(counts)
    if known is None:
        known = replace(lent(counts), whole_ms=timing(None if whole else counts))
        cache.put(counts, known)
    return known
