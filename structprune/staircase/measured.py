"""The staircase of a group in a network: what the kernels that it governs take at the widths that a search asks for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from structprune import axes
from structprune.arguments import typed
from structprune.assembly import trace
from structprune.errors import InputError
from structprune.forecast import LatencyForecast
from structprune.forecast.cache import Cache
from structprune.forecast.sampling import Profiler, profiler
from structprune.graph import ChannelGroup, DependencyGraph
from structprune.inputs import normalize_inputs
from structprune.runtime_settings import Runtime
from structprune.runtimes import Profile
from structprune.runtimes.subject import inputs_for
from structprune.selection.matching import only_groups
from structprune.staircase.search import find_stairs
from structprune.staircase.stairs import Point, Stairs

__all__ = ["Staircase", "busiest", "staircase"]

Progress = Callable[[int, int], None]

_FIRST = 5  # visits of both ends, before the search and for it
_ENOUGH = 0.5  # of what the group's kernels take at full width: less says little about the machine's speed


@dataclass(frozen=True)
class Staircase:
    """The latency of a network against the width of one group, on one runtime.

    Attributes:
        group: the group's name, and `size`, its channels.
        runtime: where it was measured.
        kernels: the runtime's kernels whose sizes follow the group's width, as they are at full width.
        stairs: what those kernels take together: points, steps, alignment, and how often was measured.
        whole: what whole inferences took at the same widths.
    """

    group: str
    size: int
    runtime: Runtime
    kernels: tuple[str, ...]
    stairs: Stairs
    whole: tuple[Point, ...]

    @property
    def alignment(self) -> int | None:
        """The spacing of the widths at which latency is low; 1 where every channel counts alike, None for too few."""
        return self.stairs.alignment

    def __str__(self) -> str:
        stairs = self.stairs
        fast = {None: "too few steps for a pattern", 1: "no stairs: every channel counts alike"}
        pattern = fast.get(stairs.alignment, f"low at multiples of {stairs.alignment}")
        left = f", {len(stairs.open)} intervals left open" if stairs.open else ""
        return (
            f"{self.group}: {pattern}; {len(stairs.steps)} steps found with {stairs.visits} measurements at "
            f"{len(stairs.points)} of {self.size} widths, noise {stairs.noise:.1%}{left}"
        )


@typed
def staircase(
    model: nn.Module,
    example_inputs: Any,
    group: str,
    *,
    runtime: str | Runtime = "onnxruntime",
    threads: int | None = None,
    measurements: int = 160,
    progress: Progress | None = None,
) -> Staircase:
    """Return how the latency of the kernels that a group governs goes with its width, and where it jumps.

    The network is profiled whole and at other widths of this group (and of those that keep as many), the others as they
    are; each profile is kept on disk like a forecast's, so the same call measures nothing twice.

    Args:
        model: the network; it is left as it is.
        example_inputs: one tensor, a tuple of arguments or a dict of keyword arguments.
        group: a group's name, or a layer that produces one.
        runtime: one that can say how long its kernels take, by name or as a `Runtime`.
        threads: beside a name, the threads of an inference.
        measurements: the most profiles that are taken; stairs that are not located by then are listed as open.
        progress: called as ``progress(done, most)`` after each profile.

    Raises:
        InputError: for a group that does not exist, stays whole or has one width only, or a runtime without profiler.
    """
    graph = trace(model, example_inputs)
    chosen = _chosen(graph, group)
    on = Runtime.of(runtime, threads)
    tied = frozenset(n for n, other in enumerate(graph.groups) if other.tie == chosen.tie)
    widths = _widths(graph, tied, chosen.size)
    if len(widths) < 2:
        raise InputError(f"group {chosen.name!r} has one width only that the model's code allows")
    visits = _Visits(graph, model, example_inputs, on, tied)

    def measure(width: int) -> Sequence[float]:
        visits.visit(width)
        if progress is not None:
            progress(visits.done, measurements)
        return [visits.governed_ms(width)]

    visits.bound_by(widths[0], widths[-1])
    stairs = find_stairs(measure, widths, measurements)
    whole = tuple(Point(point.width, visits.whole_ms(point.width)) for point in stairs.points)
    return Staircase(chosen.name, chosen.size, on, visits.kernels(widths[-1]), stairs, whole)


def busiest(forecast: LatencyForecast) -> dict[str, float]:
    """Milliseconds of the kernels that each free group governs, by name, the most first; groups share kernels, and of
    tied groups one stands for all.
    """
    graph = forecast.graph
    times = forecast.layers(graph.sizes())
    leaves = {
        part.name: {leaf for width in part.open for leaf in axes.leaves(width.expr)}
        for part in forecast.parts
    }
    found: dict[str, float] = {}
    seen: set[int] = set()
    for group in graph.groups:
        if group.frozen is None and group.tie not in seen:
            seen.add(group.tie)
            atoms = {other.atom for other in graph.groups if other.tie == group.tie}
            found[group.name] = sum(ms for name, ms in times.items() if atoms & leaves[name])
    return dict(sorted(found.items(), key=lambda item: -item[1]))


class _Visits:
    """The profiles of a network at widths of one group, each kept on disk; a second visit is a second profile.

    What the group has nothing to do with shows how fast the machine was during a visit. Where that is enough to go by,
    and times that are corrected by it are steadier than plain ones, these count.
    """

    def __init__(
        self,
        graph: DependencyGraph,
        model: nn.Module,
        example_inputs: Any,
        runtime: Runtime,
        tied: frozenset[int],
    ) -> None:
        args, kwargs = inputs_for(runtime, *normalize_inputs(example_inputs))
        self._setting = (runtime, model, graph, tied, args, kwargs)
        self._sizes = graph.sizes()
        self._tied = sorted(tied)
        shared = Cache.of(graph, (args, kwargs), runtime).path
        self._cache = Cache(shared.with_name(f"{shared.stem}-visits.jsonl"))
        self._take: Profiler | None = None
        self._seen: dict[int, list[Profile]] = {}
        self._rest: frozenset[tuple[str, Any]] = frozenset()
        self._usual: float | None = None  #: milliseconds of what the group has nothing to do with

    @property
    def done(self) -> int:
        """How often was measured."""
        return sum(map(len, self._seen.values()))

    def bound_by(self, least: int, most: int) -> None:
        """Learn from the networks at both ends which kernels have nothing to do with the group: they are the same."""
        ends = [[self._profile(end, number) for number in range(_FIRST)] for end in (least, most)]
        sizes = [{(kernel.name, kernel.shapes) for kernel in visits[0].kernels} for visits in ends]
        self._rest = frozenset(sizes[0] & sizes[1])
        plain = _spread([[self._follows(one) for one in visits] for visits in ends])
        usual = float(np.median([self._stays(one) for visits in ends for one in visits]))
        if usual >= _ENOUGH * float(np.median([self._follows(one) for one in ends[1]])):
            corrected = _spread([[self._follows(p) / self._stays(p) for p in visits] for visits in ends])
            self._usual = usual if corrected < plain else None

    def visit(self, width: int) -> None:
        """Profile the network at a width once more."""
        seen = self._seen.setdefault(width, [])
        seen.append(self._profile(width, len(seen)))

    def governed_ms(self, width: int) -> float:
        """What the kernels that follow the group took at the last visit."""
        profile = self._seen[width][-1]
        speed = 1.0 if self._usual is None else self._usual / self._stays(profile)
        return self._follows(profile) * speed

    def whole_ms(self, width: int) -> tuple[float, ...]:
        """What whole inferences took, visit by visit."""
        return tuple(profile.whole_ms for profile in self._seen[width])

    def kernels(self, width: int) -> tuple[str, ...]:
        """The names of the kernels that follow the group."""
        return tuple(k.name for k in self._seen[width][0].kernels if (k.name, k.shapes) not in self._rest)

    def _follows(self, profile: Profile) -> float:
        return sum(k.ms for k in profile.kernels if (k.name, k.shapes) not in self._rest)

    def _stays(self, profile: Profile) -> float:
        return sum(k.ms for k in profile.kernels if (k.name, k.shapes) in self._rest)

    def _profile(self, width: int, number: int) -> Profile:
        counts = self._sizes.copy()
        counts[self._tied] = width
        visit = np.append(counts, number)
        profile = self._cache.get(visit)
        if profile is None:
            if self._take is None:
                self._take = profiler(*self._setting)
            profile = self._take(counts)
            self._cache.put(visit, profile)
        return profile


def _spread(visits: Sequence[Sequence[float]]) -> float:
    """How far apart the times of the same width are, relative to them."""
    return float(np.mean([np.ptp(times) / max(min(times), 1e-9) for times in visits]))


def _chosen(graph: DependencyGraph, name: str) -> ChannelGroup:
    """The one group of that name, or that the layer of that name produces."""
    named = [graph.groups[position] for position in sorted(only_groups(graph.groups, name, "group"))]
    free = [group for group in named if group.frozen is None]
    if not free:
        frozen = named[0].frozen
        why = ", ".join(filter(None, (frozen.reason, frozen.where))) if frozen else ""
        raise InputError(f"group {named[0].name!r} stays whole: {why}")
    if len({group.tie for group in free}) > 1:
        raise InputError(
            f"{name!r} names several groups, name one: {', '.join(group.name for group in free)}"
        )
    return free[0]


def _widths(graph: DependencyGraph, tied: frozenset[int], size: int) -> list[int]:
    """The widths of tied groups under which the model's code decides as it does now."""
    counts = graph.sizes()
    found = []
    for width in range(1, size + 1):
        counts[list(tied)] = width
        if not graph.violations(counts):
            found.append(width)
    return found
