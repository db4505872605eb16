"""The times of one model on one runtime as a value: raw, with their median and how sure it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from scipy.special import bdtr

from structprune.arguments import typed
from structprune.errors import InputError
from structprune.runtime_settings import Runtime

__all__ = ["Measurement", "Ratio", "ratio"]

_UNSTABLE_SPREAD = 0.1
_FEW_ROUNDS = 6  # below it no interval of order statistics reaches 95 %


@dataclass(frozen=True)
class Measurement:
    """The times of one model on one runtime, in milliseconds, in the order of the rounds."""

    times_ms: tuple[float, ...] = field(repr=False)
    runtime: str
    threads: int
    batch: int
    dtype: str | None = None
    """What model and inputs were converted to; None where they were timed as they are."""
    provider_options: Mapping[str, str] = field(default_factory=dict)
    subnormal_weights: int = 0
    """How many weights of the model are subnormal; zeros were timed in their place."""
    environment: Mapping[str, str] = field(default_factory=dict)
    session: str = ""
    """Measurements of one session were interleaved: their rounds are pairs."""

    @property
    def median_ms(self) -> float:
        """The median of all rounds."""
        return float(np.median(self.times_ms))

    @property
    def interval_ms(self) -> tuple[float, float]:
        """The 95 % confidence interval of the median, by order statistics; all there is below 6 rounds."""
        low = _median_rank(len(self.times_ms))
        ordered = sorted(self.times_ms)
        return ordered[low], ordered[len(ordered) - 1 - low]

    @property
    def iqr_ms(self) -> float:
        """The interquartile range: the spread of single times, not the uncertainty of the median."""
        low, high = np.percentile(self.times_ms, [25, 75])
        return float(high - low)

    @property
    def unstable(self) -> bool:
        """Whether the figure should not be trusted: few rounds, or a spread above a tenth of the median."""
        return len(self.times_ms) < _FEW_ROUNDS or self.iqr_ms > _UNSTABLE_SPREAD * self.median_ms

    def to_dict(self, *, times: bool = True) -> dict[str, Any]:
        """All fields and figures as plain data, for JSON; without the time of every round where `times` is False."""
        figures = {
            "rounds": len(self.times_ms),
            "median_ms": self.median_ms,
            "interval_ms": list(self.interval_ms),
            "iqr_ms": self.iqr_ms,
            "unstable": self.unstable,
        }
        plain = {**figures, **asdict(self)}
        plain.pop("times_ms")
        return {**plain, "times_ms": [round(t, 6) for t in self.times_ms]} if times else plain

    def __str__(self) -> str:
        low, high = self.interval_ms
        options = tuple(self.provider_options.items())
        runtime = Runtime(self.runtime, self.threads, self.batch, self.dtype, options)
        text = f"{self.median_ms:.3f} ms [{low:.3f}, {high:.3f}], {runtime}"
        if self.subnormal_weights:
            text += f", {self.subnormal_weights} subnormal weights timed as zero"
        return text + (", unstable" if self.unstable else "")


@dataclass(frozen=True)
class Ratio:
    """One median over another with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float
    paired: bool

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def _median_rank(count: int) -> int:
    """The position k such that, of `count` sorted values, the k-th from either end enclose the median at 95
    %.
    """
    below = bdtr(np.arange(count), count, 0.5)  # P(at most j of the values lie below the median)
    return max(int((below <= 0.025).sum()) - 1, 0)


@typed
def ratio(measured: Measurement, baseline: Measurement, *, resamples: int = 1000, seed: int = 0) -> Ratio:
    """How many times as long `measured` takes as `baseline`, by medians, with a 95 % bootstrap interval.

    Measurements of one call are resampled round by round, in blocks of neighbouring rounds: what disturbed
    both cancels, and disturbances that outlast a round count. Others are resampled independently (`paired` is
    False).

    >>> fast, slow = (Measurement((t, t, t), "torch", 1, 1, session="s") for t in (1.0, 2.0))
    >>> str(ratio(fast, slow))
    '0.500 [0.500, 0.500]'
    """
    if resamples < 1:
        raise InputError(f"{resamples=}: at least 1 is needed")
    paired = bool(measured.session) and measured.session == baseline.session
    rng = np.random.default_rng(seed)
    above, below = np.asarray(measured.times_ms), np.asarray(baseline.times_ms)
    values = np.empty(resamples)
    for position in range(resamples):
        rows = _block_sample(len(above), rng)
        columns = rows if paired else _block_sample(len(below), rng)
        values[position] = np.median(above[rows]) / np.median(below[columns])
    low, high = np.percentile(values, [2.5, 97.5])
    return Ratio(measured.median_ms / baseline.median_ms, float(low), float(high), paired)


def _block_sample(count: int, rng: np.random.Generator) -> Any:
    """As many positions as there are rounds: random blocks of about the cube root of their number, wrapped
    around.
    """
    length = max(round(count ** (1 / 3)), 1)
    starts = rng.integers(0, count, size=-(-count // length))
    return ((starts[:, None] + np.arange(length)) % count).ravel()[:count]
