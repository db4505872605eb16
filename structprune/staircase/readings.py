"""Noisy times of widths: how far two of them are apart for certain, and when to read again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from statistics import NormalDist

import numpy as np

__all__ = ["Measure", "Readings", "lower_median"]

Measure = Callable[[int], Sequence[float]]
"""From a width to the times of one visit there, in milliseconds: one or several."""

_SURE = 3.5  # standard errors: apart for certain
_SAME = 1.5  # standard errors: no reason to read again
_DECIDED = 2.8  # standard errors: what counts where no more readings are to be had
_LEAST = 0.012  # of the time: less is no stair that anybody would want to know of
_LEAST_OF_ALL = 0.004  # of the longest time, likewise
_FLOOR = 0.001  # relative noise that every clock has
_VISITS = 5  # of one width


def lower_median(times: Sequence[float]) -> float:
    """The median, of an even number the lower one: a busy machine only adds.

    >>> lower_median([3.0, 1.0]), lower_median([5.0, 1.0, 2.0])
    (1.0, 2.0)
    """
    return sorted(times)[(len(times) - 1) // 2]


def _deviation(times: Sequence[float]) -> float:
    """The standard deviation of normal readings, from the lower half of these: how far apart the lowest are."""
    found, count = sorted(times), len(times)
    last = count // 2
    normal = NormalDist()
    low, high = (normal.inv_cdf((rank + 0.625) / (count + 0.25)) for rank in (0, last))  # Blom, 1958
    return (found[last] - found[0]) / (high - low)


class Readings:
    """The times of widths that were visited; each visit of `measure` counts towards `limit`."""

    def __init__(self, measure: Measure, limit: int) -> None:
        self._measure = measure
        self._times: dict[int, list[float]] = defaultdict(list)
        self._visits: dict[int, int] = defaultdict(int)
        self._middle: dict[int, float] = {}
        self._noise: float | None = None
        self._limit = limit

    @property
    def widths(self) -> list[int]:
        """The widths that were visited, ascending."""
        return sorted(self._times)

    def __contains__(self, width: int) -> bool:
        return width in self._middle

    @property
    def visits(self) -> int:
        """How often anything was measured."""
        return sum(self._visits.values())

    @property
    def exhausted(self) -> bool:
        """True where nothing more may be measured."""
        return self.visits >= self._limit

    def times(self, width: int) -> tuple[float, ...]:
        """All times that were read at a width."""
        return tuple(self._times[width])

    def ms(self, width: int) -> float:
        """The lower median of the times at a width."""
        return self._middle[width]

    def visit(self, width: int) -> None:
        """Measure once at a width, unless the limit is reached."""
        if not self.exhausted:
            self._visits[width] += 1
            self._times[width].extend(float(ms) for ms in self._measure(width))
            self._middle[width] = lower_median(self._times[width])
            self._noise = None

    @property
    def noise(self) -> float:
        """The relative standard deviation of a time, from all widths that were read more than once."""
        if self._noise is None:
            spread = [
                _deviation(times) / self._middle[width]
                for width, times in self._times.items()
                if len(times) > 1
            ]
            self._noise = max(_FLOOR, float(np.median(spread or [0.0])))
        return self._noise

    def error(self, *widths: int) -> float:
        """The standard error of the sum of these widths' times, in milliseconds."""
        parts = [self.noise * self.ms(width) / np.sqrt(len(self._times[width])) for width in widths]
        return float(np.sqrt(np.sum(np.square(parts))))

    def tolerance(self, *widths: int) -> float:
        """What the times of these widths may differ by without saying anything, in milliseconds."""
        return max(_DECIDED * self.error(*widths), self._small(*widths))

    def _small(self, *widths: int) -> float:
        """What nobody would want to know of, in milliseconds."""
        return max(
            _LEAST * max(self.ms(width) for width in widths), _LEAST_OF_ALL * max(self._middle.values())
        )

    def jump(self, low: int, high: int, visits: int = 1) -> float:
        """How much longer `high` takes than `low`, in milliseconds; 0.0 where that is within the noise.

        Both are read again while their intervals overlap in part, and a clear difference until it was seen at so many
        visits.
        """
        while True:
            apart, error = self.ms(high) - self.ms(low), self.error(low, high)
            near = min((low, high), key=lambda width: self._visits[width])
            clear = abs(apart) > _SURE * error or abs(apart) <= _SAME * error
            small = abs(apart) <= self._small(low, high)
            again = not clear or (not small and self._visits[near] < visits)
            if self.exhausted or small or not again or self._visits[near] >= _VISITS:
                return apart if abs(apart) > self.tolerance(low, high) else 0.0
            self.visit(near)
