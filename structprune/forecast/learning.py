"""Learn a forecast: profile a few networks, forecast the next ones, and stop once the forecasts are right."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from structprune.arguments import typed
from structprune.assembly import trace
from structprune.forecast.borrowed import profiler_of
from structprune.forecast.cache import Cache
from structprune.forecast.forecast import LatencyForecast
from structprune.forecast.forms import Sample
from structprune.forecast.sampling import draw, profile_once
from structprune.graph import DependencyGraph
from structprune.inputs import normalize_inputs
from structprune.runtime_settings import Runtime
from structprune.runtimes import inputs_for, model_for, prepare
from structprune.runtimes.profiles import Profile

__all__ = ["forecast_latency", "learn", "profile"]

_FIRST = (64, 64, 32, 32, 16, 16, 8, 8, 4, 2, 1)
"""Alignments that are profiled before anything is forecast: coarse ones say how latency grows with width, fine ones
where the stairs are."""
_DRAWS = 5
_TRIES = 3
_ROUND = 4  # networks that are forecast, then profiled: as many as _checked lists
_ROUNDS = 4
_RIGHT = 0.025  # median error of a round after which no more are needed

Counts = np.ndarray


@typed
def forecast_latency(
    model: nn.Module,
    example_inputs: Any,
    *,
    runtime: str | Runtime = "onnxruntime",
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> LatencyForecast:
    """Return the latency of ``model`` at any channel counts, learnt from profiles of it at one to three dozen.

    Networks are profiled until those that come next are forecast within a few percent. Profiles are kept on disk for
    each machine, runtime with its settings, version and network; what is there is not measured again, so a run that
    was interrupted goes on. ``progress(done, most)`` is called after each of them.
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
    with _Samples(graph, model, args, kwargs, runtime, free, progress) as samples:
        samples.take(0)
        for alignment in _FIRST:
            samples.take(alignment)
        forecast = LatencyForecast(graph, samples.scaled())
        for _ in range(_ROUNDS):
            errors = []
            for alignment in _checked(forecast):
                sample = samples.take(alignment)
                errors.append(abs(forecast(sample.counts) / samples.scale(sample).profile.whole_ms - 1))
            forecast = LatencyForecast(graph, samples.scaled(), errors)
            if forecast.error <= _RIGHT:
                break
        samples.finished()
    return forecast


def profile(model: nn.Module, example_inputs: Any, runtime: Runtime) -> Profile:
    """Return the profile of one network on a runtime; one without kernels where the runtime says nothing of them."""
    args, kwargs = inputs_for(runtime, *normalize_inputs(example_inputs))
    return profile_once(runtime, model_for(runtime, model), args, kwargs)


def _checked(forecast: LatencyForecast) -> list[int]:
    """Alignments to look at next: most where choices will be made, at which the runtime is fast."""
    fast = max(forecast.alignment.values(), default=1)
    return [fast, min(2 * fast, 64), fast, max(fast // 2, 1)]


class _Samples:
    """Networks that were profiled, each beside the whole one: a machine that slows down slows both."""

    def __init__(
        self,
        graph: DependencyGraph,
        model: nn.Module,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        runtime: Runtime,
        free: frozenset[int],
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self._graph, self._free, self._progress = graph, free, progress
        self._setting = (runtime, model, args, kwargs)
        self._cache = Cache.of(graph, (args, kwargs), runtime)
        self._stack = ExitStack()
        self._profile: Callable[[Counts], Profile] | None = None
        self._taken: list[Sample] = []
        self._number: dict[int, int] = {}

    def __enter__(self) -> _Samples:
        return self

    def __exit__(self, *failure: object) -> None:
        self._stack.close()

    def take(self, alignment: int) -> Sample:
        """Profile the next network whose widths are multiples of the alignment; the whole one for 0."""
        whole = alignment == 0
        counts = self._graph.sizes() if whole else self._next(alignment)
        profile = self._cache.get(counts)
        if profile is None:
            profile = self._steady(counts) if whole else self._profiled(counts)
            self._cache.put(counts, profile)
        sample = Sample(counts, profile, alignment or 64, whole)
        self._taken.append(sample)
        self._told(len(self._taken), 1 + len(_FIRST) + _ROUND * _ROUNDS)
        return sample

    def _next(self, alignment: int) -> Counts:
        """The next widths for this alignment: others than before, where a network has so many."""
        for _ in range(_DRAWS):
            number = self._number[alignment] = self._number.get(alignment, -1) + 1
            counts = draw(self._graph, self._free, alignment, 100 * alignment + number)
            if not any(np.array_equal(counts, sample.counts) for sample in self._taken):
                break
        return counts

    def scale(self, sample: Sample) -> Sample:
        """The sample as the machine would have taken it at its usual speed: that of the median sample."""
        factor = self._usual() / sample.profile.reference_ms
        kernels = tuple(replace(kernel, ms=kernel.ms * factor) for kernel in sample.profile.kernels)
        return replace(sample, profile=Profile(kernels, sample.profile.whole_ms * factor, self._usual()))

    def scaled(self) -> list[Sample]:
        """All samples, scaled."""
        return [self.scale(sample) for sample in self._taken]

    def finished(self) -> None:
        """No more are needed."""
        self._told(len(self._taken), len(self._taken))

    def _told(self, done: int, most: int) -> None:
        if self._progress is not None:
            self._progress(done, most)

    def _usual(self) -> float:
        return float(np.median([sample.profile.reference_ms for sample in self._taken]))

    def _steady(self, counts: Counts) -> Profile:
        """The whole network's profile, which all shares are of: taken again where its time beside itself differs."""
        tries = [self._profiled(counts)]
        while len(tries) < _TRIES and _off(tries[-1]) > _RIGHT:
            tries.append(self._profiled(counts))
        return min(tries, key=_off)

    def _profiled(self, counts: Counts) -> Profile:
        if self._profile is None:
            runtime, model, args, kwargs = self._setting
            whole = self._stack.enter_context(prepare(runtime, model_for(runtime, model), args, kwargs))
            whole()
            self._profile = profiler_of(runtime, model, self._graph, self._free, args, kwargs, whole)
        return self._profile(counts)


def _off(profile: Profile) -> float:
    return abs(profile.whole_ms / profile.reference_ms - 1)
