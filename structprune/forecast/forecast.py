"""A network's latency at any widths, from profiles of it at a few: what a latency budget is solved with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
from scipy.optimize import nnls

from structprune.errors import InputError
from structprune.forecast.forms import Sample, parts
from structprune.forecast.kernel_times import KernelTimes
from structprune.forecast.template import Sizes
from structprune.graph import DependencyGraph
from structprune.selection.contract import Prices

__all__ = ["LatencyForecast"]

Counts = np.ndarray
_BLOCKS = (1, 2, 4, 8, 16, 32, 64)


class LatencyForecast:
    """The latency of a network at any channel counts on one runtime, in milliseconds.

    ``forecast(counts)`` takes one count per group of ``graph`` (int64 ``[groups]``). ``alignment`` gives for each group
    the multiple of channels at which the runtime is fast. ``dense`` is the whole network's own profile, ``dense_ms``
    its latency, both measured. ``error`` is the median relative error of forecasts of networks that were measured
    only afterwards.
    """

    def __init__(
        self, graph: DependencyGraph, samples: Sequence[Sample], errors: Sequence[float] = ()
    ) -> None:
        self.graph, self._sizes = graph, graph.sizes()
        self.samples = tuple(sorted(samples, key=lambda sample: -sample.alignment))
        self.parts = parts(self.samples, Sizes(graph).names, _BLOCKS)
        self.dense = next(sample.profile for sample in self.samples if sample.whole)
        self.dense_ms = self.dense.whole_ms
        self.errors = tuple(errors)
        self._times = KernelTimes(graph, self.parts, self.samples)
        self.rest_ms, self._factor = self._calibrated()

    def __call__(self, counts: Counts | Mapping[str, int]) -> float:
        """Return the forecast in milliseconds; counts may also be by group name, the other groups whole.

        Raises:
            InputError: for counts that the groups cannot have.
        """
        return float(self._many(self._checked(counts)[None])[0])

    def many(self, counts: Counts) -> np.ndarray:
        """Return the forecasts of many choices at once, float64 ``[choices]``, for counts ``[choices, groups]``."""
        return self._many(np.stack([self._checked(one) for one in counts]))

    def _many(self, counts: Counts) -> np.ndarray:
        found: np.ndarray = self._times(counts).sum(axis=1) * self._factor + self.rest_ms
        found[(counts == self._sizes).all(axis=1)] = self.dense_ms  # that was measured
        return found

    def _checked(self, counts: Counts | Mapping[str, int]) -> Counts:
        if isinstance(counts, Mapping):
            places = {group.name: place for place, group in enumerate(self.graph.groups)}
            if unknown := [name for name in counts if name not in places]:
                raise InputError(f"counts name {unknown}; the groups are {', '.join(places)}")
            given, counts = counts, self._sizes.copy()
            for name, count in given.items():
                counts[places[name]] = count
        found = np.asarray(counts)
        if found.shape != self._sizes.shape or found.dtype.kind not in "iu":
            raise InputError(
                f"counts are one whole number for each of the {len(self._sizes)} groups in the order of graph.groups, "
                f"frozen ones too, or a dict by group name; got {found.dtype}{list(found.shape)}"
            )
        if ((found < 1) | (found > self._sizes)).any():
            raise InputError(f"counts must lie between 1 and {self._sizes.tolist()}, got {found.tolist()}")
        return found

    def prices(self, limit: float, correction: float = 1.0, finer: int = 1) -> Prices:
        """Return what `select` needs for a budget of latency: at most the share ``limit`` of the whole network's.

        ``correction`` multiplies all prices; widths are multiples of the alignment, or of a ``finer``-th of it.
        """
        if not (limit > 0 and correction > 0 and finer >= 1):
            raise InputError(
                f"{limit=}, {correction=}, {finer=}: expected more than 0, more than 0 and at least 1"
            )

        def share(counts: np.ndarray) -> np.ndarray:
            if counts.shape[1:] != self._sizes.shape:
                raise InputError("prices= is a forecast for another network: take this graph's own")
            taken: np.ndarray = self._many(counts) * (correction / self.dense_ms)
            return taken

        alignment = {name: max(width // finer, 1) for name, width in self.alignment.items()}
        return Prices(share, limit, alignment)

    def layers(self, counts: Counts | Mapping[str, int]) -> dict[str, float]:
        """Return the forecast of each kernel in milliseconds, fusions as the runtime made them; with ``rest_ms`` they
        add up to the forecast of the whole.
        """
        times = (self._times(self._checked(counts))[0] * self._factor).tolist()
        return dict(zip((part.name for part in self.parts), times, strict=True))

    @cached_property
    def alignment(self) -> dict[str, int]:
        """Return for each free group the multiple of channels at which the runtime is fast."""
        free = (group for group in self.graph.groups if group.frozen is None)
        return {group.name: self._times.alignment(group.atom) for group in free}

    @property
    def error(self) -> float:
        """The median relative error of forecasts of networks that were measured only afterwards; NaN without any."""
        return float(np.median(self.errors)) if self.errors else float("nan")

    def _calibrated(self) -> tuple[float, float]:
        """What an inference takes beside its kernels, in milliseconds, and for each millisecond of them: by least
        squares of the relative errors.
        """
        kernels = np.array([self._times(sample.counts).sum() for sample in self.samples])
        wholes = np.array([sample.profile.whole_ms for sample in self.samples])
        rows = np.stack([np.ones(len(kernels)), kernels], axis=1) / wholes[:, None]
        (rest, factor), _ = nnls(rows, np.ones(len(wholes)))
        return float(rest), float(factor)
