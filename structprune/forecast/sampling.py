"""Which widths are profiled, and how: few samples of the whole network say much about every kernel."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
from torch import nn

from structprune.errors import ExportError, InputError
from structprune.forecast.template import OnnxTemplate, cut_to_counts
from structprune.graph import DependencyGraph
from structprune.runtime_settings import Runtime
from structprune.runtimes import TimedCall, model_for, require_known
from structprune.runtimes.onnx_convert import convert
from structprune.runtimes.ort import providers, to_numpy
from structprune.runtimes.ort_kernels import profile_onnx
from structprune.runtimes.profiles import Profile, module_profiler
from structprune.runtimes.registry import alone
from structprune.selection.units import reachable

__all__ = ["Profiler", "draw", "has_profiler", "profile_once", "profiler"]

_NARROWEST = 0.2
_COARSE = 4  # times the alignment: groups up to this size have at most two other widths
_DRAWS = 30
_TRIES = 3
_STEADY = 0.05  # a profile is taken again beside which the other network's time changed by more
_CALLS = 4  # of that network, before and after the profile
Counts = np.ndarray
Profiler = Callable[[Counts], Profile]


def draw(graph: DependencyGraph, free: frozenset[int], alignment: int, seed: int) -> Counts:
    """Random counts (int64 ``[groups]``) of the groups at the positions ``free``: multiples of ``alignment`` but not
    of its double, of less where a group is too small for that; tied groups alike. Counts under which the model's code
    would decide otherwise are drawn again, or their groups left whole.
    """
    generator = random.Random(seed)
    for _ in range(_DRAWS):
        counts = _drawn(graph, free, alignment, generator)
        if not graph.violations(counts):
            return counts
    for _ in range(len(free)):
        for violation in graph.violations(counts):
            ties = {graph.groups[position].tie for position in violation.groups}
            for position, group in enumerate(graph.groups):
                counts[position] = group.size if group.tie in ties else counts[position]
    return graph.sizes() if graph.violations(counts) else counts


def _drawn(graph: DependencyGraph, free: frozenset[int], alignment: int, generator: random.Random) -> Counts:
    drawn: dict[int, int] = {}
    counts = graph.sizes()
    held = {group.tie for position, group in enumerate(graph.groups) if position not in free}
    for position in sorted(free):
        group = graph.groups[position]
        if group.tie not in held:
            if group.tie not in drawn:
                drawn[group.tie] = generator.choice(_widths(group.size, alignment))
            counts[position] = drawn[group.tie]
    return counts


def _widths(size: int, alignment: int) -> list[int]:
    """Odd multiples of the alignment; and where there are few, the whole, which a selection leaves as often."""
    alignment = reachable(alignment, size)
    least = max(alignment, int(_NARROWEST * size))
    fitting = [width for width in range(alignment, size, alignment) if width >= least]
    odd = [width for width in fitting if (width // alignment) % 2]
    return [*(odd or fitting), size] if size <= _COARSE * alignment else odd or fitting


def has_profiler(runtime: Runtime) -> bool:
    """Whether the runtime says how long each kernel takes: onnxruntime's profiler does so for its CPU kernels."""
    return runtime.name == "onnxruntime" or module_profiler(runtime.name) is not None


def profiler(
    runtime: Runtime,
    model: nn.Module,
    graph: DependencyGraph,
    free: frozenset[int],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    beside: TimedCall = alone,
) -> Profiler:
    """A function from counts to the profile of the network at these counts on ``runtime``, ``beside`` another one.

    Raises:
        InputError: for a runtime that has no profiler.
    """
    require_known(runtime)
    if not has_profiler(runtime):
        raise InputError(
            f"runtime={runtime.name!r} does not say how long each of its kernels takes: use onnxruntime or torch, or "
            "give it a profiler with structprune.runtimes.register_profiler"
        )
    own = module_profiler(runtime.name)
    model = model_for(runtime, model)
    if own is not None:

        def steady(counts: Counts) -> Profile:
            small = cut_to_counts(model, graph, counts)
            return _steady(lambda: own(small, args, kwargs, runtime), beside)

        return steady
    providers(runtime)  # refuses options before anything is converted
    convert_at = _converter(model, graph, free, args, kwargs)

    def profile(counts: Counts) -> Profile:
        converted, feeds = convert_at(counts)
        return profile_onnx(converted, feeds, runtime, beside)

    return profile


def profile_once(
    runtime: Runtime, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Profile:
    """The profile of one network, by itself; one without kernels where the runtime says nothing of them."""
    own = module_profiler(runtime.name)
    if own is not None:
        return own(model, args, kwargs, runtime)
    if not has_profiler(runtime):
        return Profile((), float("nan"))
    converted = convert(model, args, kwargs)
    return profile_onnx(_bytes(converted.model), dict(_feeds(converted)), runtime)


def _steady(profile: Callable[[], Profile], beside: TimedCall) -> Profile:
    """A profile during which the network beside it hardly changed its time; the steadiest of a few."""
    tries: list[tuple[float, Profile]] = []
    while len(tries) < _TRIES and (not tries or tries[-1][0] > _STEADY):
        before = [beside() for _ in range(_CALLS)]
        found = profile()
        after = [beside() for _ in range(_CALLS)]
        drift = abs(float(np.log(np.median(after) / np.median(before))))
        tries.append((drift, replace(found, reference_ms=float(np.quantile(before + after, 0.25)))))
    return min(tries, key=lambda one: one[0])[1]


def _converter(
    model: nn.Module,
    graph: DependencyGraph,
    free: frozenset[int],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> Callable[[Counts], tuple[bytes, dict[str, Any]]]:
    """A function from counts to the ONNX model and its inputs: by a template, else by a conversion each time."""
    points = [graph.sizes(), *(draw(graph, free, 1, seed) for seed in (1, 2))]
    try:
        template = OnnxTemplate(model, graph, args, kwargs, points)
    except ExportError:
        # the exporter gives another graph at other widths: slower, but each conversion stands for itself

        def anew(counts: Counts) -> tuple[bytes, dict[str, Any]]:
            converted = convert(cut_to_counts(model, graph, counts), args, kwargs)
            return _bytes(converted.model), dict(_feeds(converted))

        return anew
    feeds = dict(_feeds(template.converted))
    return lambda counts: (_bytes(template.at(counts)), feeds)


def _bytes(model: ir.Model) -> bytes:
    serialised: bytes = ir.to_proto(model).SerializeToString()
    return serialised


def _feeds(converted: Any) -> Iterator[tuple[str, Any]]:
    for name, tensor in zip(converted.input_names, converted.inputs, strict=True):
        yield name, to_numpy(tensor)
