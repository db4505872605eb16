"""A network's latency at any widths, from profiles of it at a few: what a latency budget is solved with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from structprune import axes
from structprune.assembly import trace
from structprune.axes import Atom
from structprune.cost import compile_products
from structprune.forecast.cache import Cache
from structprune.forecast.fit import LEVELS, Fit, fit
from structprune.forecast.forms import Part, Sample, parts
from structprune.forecast.sampling import SCHEDULE, draw, profiler
from structprune.forecast.template import Sizes, Width
from structprune.graph import DependencyGraph
from structprune.inputs import normalize_inputs
from structprune.runtime_settings import Runtime
from structprune.runtimes import inputs_for
from structprune.selection.contract import Prices

__all__ = ["LatencyForecast", "forecast_latency", "learn"]

_BLOCKS = (1, 2, 4, 8, 16, 32, 64)
_ALIGNED = 16  # samples at this alignment and above name the kernels: there the runtime fuses what it can
_FLAT = 1.08  # a level whose factor is below this is as good as the best
_SHARE = 0.05  # of a group's time: kernels below it have no say in its alignment


class LatencyForecast:
    """The latency of a network at any channel counts on one runtime, in milliseconds.

    ``forecast(counts)`` takes one count per group of ``graph`` (int64 ``[groups]``). ``alignment`` gives for each group
    the multiple of channels at which the runtime is fast. ``error`` is the median relative error against the samples.
    """

    def __init__(self, graph: DependencyGraph, samples: Sequence[Sample], aligned: Sequence[Sample]) -> None:
        self.graph = graph
        self.samples = tuple(samples)
        aligned = _alike(aligned)
        self.parts = parts(aligned, Sizes(graph).names([one.counts for one in aligned], _BLOCKS))
        self.fit = fit(self.parts, samples)
        self._model = _Model(graph, self.parts, self.fit)
        self.rest_ms = self._rest()
        self.error = self._error(aligned)

    def __call__(self, counts: np.ndarray) -> float:
        """Return the forecast in milliseconds."""
        return float(self.many(counts)[0])

    def many(self, counts: np.ndarray) -> np.ndarray:
        """Return the forecasts of many choices at once, float64 ``[choices]``, for counts ``[choices, groups]``."""
        found: np.ndarray = self._model.times(counts).sum(axis=1) + self.rest_ms
        return found

    def prices(self, limit: float, correction: float = 1.0) -> Prices:
        """Return what `select` needs for a budget of latency: at most the share ``limit`` of the whole network's."""
        whole = self(self.graph.sizes())

        def share(counts: np.ndarray) -> np.ndarray:
            taken: np.ndarray = self.many(counts) * (correction / whole)
            return taken

        return Prices(share, limit, self.alignment)

    def layers(self, counts: np.ndarray) -> dict[str, float]:
        """Return the forecast of each kernel in milliseconds, fusions as the runtime made them."""
        return dict(
            zip((part.name for part in self.parts), self._model.times(counts)[0].tolist(), strict=True)
        )

    @property
    def alignment(self) -> dict[str, int]:
        """Return for each free group the multiple of channels at which the runtime is fast."""
        return {
            group.name: self._model.alignment(group.atom)
            for group in self.graph.groups
            if group.frozen is None
        }

    def _rest(self) -> float:
        """What kernels cost that are no part: those whose sizes are no dimension of the network."""
        named = {part.name for part in self.parts}
        left = [
            sum(kernel.ms for kernel in sample.profile.kernels if kernel.name not in named)
            for sample in self.samples
            if {kernel.name for kernel in sample.profile.kernels} >= named
        ]
        return float(np.median(left)) if left else 0.0

    def _error(self, samples: Iterable[Sample]) -> float:
        errors = [
            abs(self(sample.counts) / sum(kernel.ms for kernel in sample.profile.kernels) - 1)
            for sample in samples
        ]
        return float(np.median(errors))


def _alike(samples: Sequence[Sample]) -> list[Sample]:
    """The samples with the kernels that most of them have: a runtime may take another path for some widths, or for the
    whole network.
    """
    names = [frozenset(kernel.name for kernel in sample.profile.kernels) for sample in samples]
    common = max(names, key=names.count)
    return [sample for sample, own in zip(samples, names, strict=True) if own == common]


class _Model:
    """The parts' times at once: sizes from counts, then monomials, then the staircase's factors."""

    def __init__(self, graph: DependencyGraph, parts: Sequence[Part], fitted: Fit) -> None:
        variables = {group.atom: i for i, group in enumerate(graph.groups)}
        widths = list(dict.fromkeys(width for part in parts for width in part.open))
        number = {width: i for i, width in enumerate(widths)}
        self._parts, self._fitted = parts, fitted
        self._sizes = [compile_products([(width.expr,)], variables, len(variables)) for width in widths]
        self._blocks = np.array([width.block for width in widths], dtype=np.int64)
        rows = [
            (position, coefficient, [number[part.open[i]] for i in chosen])
            for position, part in enumerate(parts)
            for chosen, coefficient in fitted.terms(part.form)
        ]
        first = {position: row for row, (position, _, _) in reversed(list(enumerate(rows)))}
        self._first = np.array([first[position] for position in range(len(parts))], dtype=np.int64)
        self._coefficient = np.array([coefficient for _, coefficient, _ in rows])
        self._factor = _padded([chosen for _, _, chosen in rows], len(widths))
        self._open = _padded([[number[width] for width in part.open] for part in parts], len(widths))
        self._stairs = np.array([_factors(fitted, part) for part in parts]).reshape(len(parts), len(LEVELS))
        self._at_full = self.times(graph.sizes())[0]

    def times(self, counts: np.ndarray) -> np.ndarray:
        """Milliseconds of each part, float64 ``[choices, parts]``, for counts ``[groups]`` or ``[choices, groups]``."""
        counts = np.atleast_2d(counts)
        sizes = np.ones((len(counts), len(self._sizes) + 1), dtype=np.int64)  # the last stands for no width
        for column, size in enumerate(self._sizes):
            sizes[:, column] = size.many(counts)
        sizes[:, :-1] = -(-sizes[:, :-1] // self._blocks) * self._blocks
        steps = np.log2(np.clip(sizes & -sizes, 1, LEVELS[-1])).astype(np.int64)
        steps[:, -1] = len(LEVELS) - 1
        step = steps[:, self._open].min(axis=2)
        products = self._coefficient * sizes[:, self._factor].astype(np.float64).prod(axis=2)
        smooth = np.add.reduceat(products, self._first, axis=1)
        found: np.ndarray = smooth * self._stairs[np.arange(len(self._parts)), step]
        return found

    def alignment(self, atom: Atom) -> int:
        concerned = [
            (self._at_full[position], _aligned(self._fitted, part.form.operation, part.open))
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


def _factors(fitted: Fit, part: Part) -> list[float]:
    """The operation's factor at each level; noise above the level from which it is flat is none."""
    flat = _aligned(fitted, part.form.operation, ())
    return [1.0 if at >= flat else fitted.factor(part.form.operation, at) for at in LEVELS]


def _aligned(fitted: Fit, operation: str, opened: Sequence[Width]) -> int:
    """The smallest level from which all are as good as the best; at least what the runtime pads to."""
    best = LEVELS[-1]
    for at in reversed(LEVELS):
        if fitted.factor(operation, at) > _FLAT:
            break
        best = at
    return max([min(best, 16), *(width.block for width in opened)])


@dataclass(frozen=True)
class _Progress:
    report: Callable[[int, int], None] | None
    total: int

    def __call__(self, done: int) -> None:
        if self.report is not None:
            self.report(done, self.total)


def forecast_latency(
    model: nn.Module,
    example_inputs: Any,
    *,
    runtime: str | Runtime = "onnxruntime",
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> LatencyForecast:
    """Return the latency of ``model`` at any channel counts, learnt from profiles of it at a few dozen.

    Profiles are kept on disk for each machine, runtime with its settings, version and network; what is there is not
    measured again, so a run that was interrupted goes on. ``progress(done, total)`` is called after each of them.
    """
    on = Runtime.of(runtime, threads)
    return learn(trace(model, example_inputs), model, example_inputs, on, progress)


def learn(
    graph: DependencyGraph,
    model: nn.Module,
    example_inputs: Any,
    runtime: Runtime,
    progress: Callable[[int, int], None] | None = None,
    free: frozenset[int] | None = None,
) -> LatencyForecast:
    """Return the forecast for a graph that is there already; ``free`` are the positions of groups to be cut."""
    args, kwargs = inputs_for(runtime, *normalize_inputs(example_inputs))
    if free is None:
        free = frozenset(i for i, g in enumerate(graph.groups) if g.frozen is None and g.primary)
    plan = [(0, graph.sizes())]
    plan += [
        (alignment, draw(graph, free, alignment, 100 * alignment + number))
        for alignment, count in SCHEDULE
        for number in range(count)
    ]
    cache = Cache.of(graph, (args, kwargs), runtime)
    take: Callable[[np.ndarray], Any] | None = None
    told = _Progress(progress, len(plan))
    samples = []
    for done, (_, counts) in enumerate(plan, 1):
        profile = cache.get(counts)
        if profile is None:
            take = take or profiler(runtime, model, graph, free, args, kwargs)
            profile = take(counts)
            cache.put(counts, profile)
        samples.append(Sample(counts, profile))
        told(done)
    aligned = [sample for (at, _), sample in zip(plan, samples, strict=True) if at == 0 or at >= _ALIGNED]
    return LatencyForecast(graph, samples, aligned)
