"""Finding a staircase with few measurements: where latency jumps between two widths that lie side by side.

The ends are measured, and intervals whose ends differ are split until every jump lies between two neighbours. An
interval is left alone where noise explains what its ends differ by, or a straight line does: one along which splits of
a part of the range went on, always into the half that differs more, down to the noise, and found no jump. A split
measures two neighbours, at the roundest number near the middle: blocks of whatever size end at round numbers, so a
jump is often found at once, and one that a line through both ends would hide is seen. As soon as jumps recur, they are
looked for where the next ones should be, and where those of a finer pattern would be; what was expected and is not
there is not taken for one.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from structprune.errors import InputError
from structprune.staircase.readings import Measure, Readings
from structprune.staircase.stairs import (
    AGREE,
    RECUR,
    Pattern,
    Point,
    Stairs,
    Step,
    pattern_of,
    prime_factors,
    spacing,
)

__all__ = ["find_stairs"]

_ENDS = 5  # readings of both ends, which say how much noise there is
_CONFIRMED = 2  # splits in a row on one line, down to the noise: it is one
_STEEP = 1.5  # times the slope around: less is no jump
_UNEXPECTED = 2  # visits of both sides of a jump that fits no pattern
_SURELY = 4  # visits of both sides of one that still fits none at the end
_SEARCH = 0.85  # of the measurements; the others are for reading again


def find_stairs(measure: Measure, widths: Sequence[int], limit: int = 160) -> Stairs:
    """The staircase of `measure`, from at most `limit` visits; `widths` are those that are possible, ascending.

    Raises:
        InputError: for fewer than two widths, or a limit that does not reach for the ends.
    """
    if len(widths) < 2 or sorted(set(widths)) != list(widths):
        raise InputError(f"a staircase needs two widths or more, ascending; got {list(widths)[:5]}")
    if limit < 2 * _ENDS:
        raise InputError(f"a staircase needs {2 * _ENDS} measurements or more, got a limit of {limit}")
    return _Search(measure, list(widths), limit).run()


@dataclass(frozen=True)
class _Line:
    """An interval whose splits lie on the line through its ends, so many in a row."""

    low: int
    high: int
    splits: int


class _Search:
    """Intervals are pairs of visited widths between which none was visited yet."""

    def __init__(self, measure: Measure, widths: list[int], limit: int) -> None:
        self._widths = widths
        self._place = {width: place for place, width in enumerate(widths)}
        self._readings = Readings(measure, limit)
        self._limit = limit
        self._lines: dict[tuple[int, int], _Line] = {}  # intervals on a line that splits confirmed
        self._slopes: dict[
            float, float
        ] = {}  # of the lines that were followed down to the noise, by their middles
        self._reach: float = math.inf  # the least width for which these slopes say anything
        self._steps: dict[int, Step] = {}  # by the width before
        self._patterns: tuple[Pattern, ...] = ()

    def run(self) -> Stairs:
        for _ in range(_ENDS):
            for end in (self._widths[0], self._widths[-1]):
                self._readings.visit(end)
        while self._readings.visits < _SEARCH * self._limit and (interval := self._next()) is not None:
            self._split(*interval)
        self._confirm()
        return self._found()

    # -- which interval, and where

    def _next(self) -> tuple[int, int] | None:
        """The interval to split: on a line that is being followed, else with most to explain; None where all is."""
        expected = self._expected()
        usual = float(
            np.median([abs(step.after_ms - step.before_ms) for step in self._steps.values()] or [0])
        )
        best, most = None, (0, 0.0)
        for low, high in self._intervals():
            apart = abs(self._readings.ms(high) - self._readings.ms(low))
            followed = 0
            if any(low <= width < high for width in expected):
                apart = max(apart, usual)
            elif self._explained(low, high):
                continue
            elif (low, high) in self._lines:
                followed = self._lines[low, high].splits
            if (followed, apart) > most:
                best, most = (low, high), (followed, apart)
        return best

    def _intervals(self) -> Iterator[tuple[int, int]]:
        visited = self._readings.widths
        for low, high in itertools.pairwise(visited):
            if self._place[high] - self._place[low] > 1:
                yield low, high

    def _explained(self, low: int, high: int) -> bool:
        apart, tolerance = (
            self._readings.ms(high) - self._readings.ms(low),
            self._readings.tolerance(low, high),
        )
        if abs(apart) <= tolerance:
            return True
        if low < self._reach:
            return False
        at = sorted(self._slopes)
        slope = np.interp((low + high) / 2, at, [self._slopes[middle] for middle in at])
        return abs(apart - float(slope) * (high - low)) <= tolerance

    def _expected(self) -> list[int]:
        """Widths after which jumps should be, by the patterns of those that were found, and were not looked at."""
        expected: list[int] = []
        for pattern in self._patterns:
            expected += self._finer(pattern)
            places = [width for width in self._widths[:-1] if width % pattern.size == pattern.offset]
            looked = [width for width in places if self._looked(width)]
            if sum(width in self._steps for width in looked) >= AGREE * len(looked):
                expected += [width for width in places if not self._looked(width)]
        return expected

    def _finer(self, pattern: Pattern) -> list[int]:
        """The narrowest widths at which jumps would be if the pattern were twice, three times, ... as fine."""
        found: list[int] = []
        for factor in prime_factors(pattern.size):
            size = pattern.size // factor
            between = [
                width
                for width in self._widths[:-1]
                if width % size == pattern.offset % size and width % pattern.size != pattern.offset
            ]
            found += [width for width in between[:RECUR] if not self._looked(width)]
        return found

    def _looked(self, width: int) -> bool:
        return width in self._readings and self._after(width) in self._readings

    def _after(self, width: int) -> int:
        return self._widths[self._place[width] + 1]

    def _middle(self, low: int, high: int, expected: Sequence[int]) -> int:
        """The width to split an interval after: an expected one, else the roundest of its inner half."""
        inside = self._widths[self._place[low] : self._place[high]]
        centre = (low + high) / 2
        within = [width for width in expected if low <= width < high]
        if within:
            return min(within, key=lambda width: abs(width - centre))
        quarter = len(inside) // 4
        inner = inside[max(1, quarter) : len(inside) - quarter] or inside[1:]
        return max(inner, key=lambda width: (width & -width, -abs(width - centre)))

    # -- what a split says

    def _split(self, low: int, high: int) -> None:
        expected = self._expected()
        middle = self._middle(low, high, expected)
        after = self._after(middle)
        fresh = [width for width in (middle, after) if width not in self._readings]
        for width in fresh:
            self._readings.visit(width)
        if not self._looked(middle):  # the limit was reached in between
            return
        for width in {low, middle, after} - {high}:
            if self._looked(width):
                self._look(width, visits=1 if width in expected else _UNEXPECTED)
        straight = middle not in self._steps and all(self._on_line(low, high, width) for width in fresh)
        line = self._lines.pop((low, high), None)
        if straight:
            line = _Line(low, high, 1) if line is None else replace(line, splits=line.splits + 1)
            self._follow(line, (low, middle), (after, high))

    def _follow(self, line: _Line, *halves: tuple[int, int]) -> None:
        """Go on with the half that differs more; at the noise the line is one."""
        steep = max(halves, key=lambda pair: abs(self._readings.ms(pair[1]) - self._readings.ms(pair[0])))
        apart = self._readings.ms(steep[1]) - self._readings.ms(steep[0])
        if abs(apart) > self._readings.tolerance(*steep):
            self._lines[steep] = line
        elif line.splits >= _CONFIRMED:
            rise = self._readings.ms(line.high) - self._readings.ms(line.low)
            self._slopes[(line.low + line.high) / 2] = rise / (line.high - line.low)
            self._reach = min(self._reach, line.low // 2)

    def _on_line(self, low: int, high: int, width: int) -> bool:
        share = (width - low) / (high - low)
        line = (1 - share) * self._readings.ms(low) + share * self._readings.ms(high)
        return abs(self._readings.ms(width) - line) <= self._readings.tolerance(low, width, high)

    def _look(self, width: int, *, visits: int) -> None:
        """Whether there is a jump after a width, for which a clear difference has to be seen at so many visits."""
        after = self._after(width)
        known = width in self._steps
        jump = self._readings.jump(width, after, visits)
        if abs(jump) > _STEEP * abs(self._slope_around(width, after)):
            self._steps[width] = Step(width, self._readings.ms(width), self._readings.ms(after))
        else:
            self._steps.pop(width, None)
        if known != (width in self._steps):
            self._patterns = tuple(
                pattern
                for up in (True, False)
                if (pattern := pattern_of([w for w, step in self._steps.items() if step.up == up]))
            )

    def _slope_around(self, width: int, after: int) -> float:
        """The rise per channel between the nearest widths that were visited on both sides."""
        visited = self._readings.widths
        low = visited[max(0, bisect.bisect_left(visited, width) - 1)]
        high = visited[min(len(visited) - 1, bisect.bisect_right(visited, after))]
        return (self._readings.ms(high) - self._readings.ms(low)) / (high - low)

    def _confirm(self) -> None:
        """Every pair of neighbours that was visited, once more, now that there is a pattern: what does not fit it may
        have been another program's burst, and is read again.
        """
        expected = {
            width for width in self._widths[:-1] for p in self._patterns if width % p.size == p.offset
        }
        for width in self._widths[:-1]:
            if self._looked(width):
                again = 1 if width in expected or width not in self._steps else _SURELY
                self._look(width, visits=again)

    def _found(self) -> Stairs:
        readings = self._readings
        return Stairs(
            tuple(Point(width, readings.times(width)) for width in readings.widths),
            tuple(self._steps[width] for width in sorted(self._steps)),
            tuple(pair for pair in self._intervals() if not self._explained(*pair)),
            self._alignment(),
            readings.noise,
            readings.visits,
        )

    def _alignment(self) -> int | None:
        """The spacing of the last widths of stairs, of those that no wider one is as fast as."""
        visited = self._readings.widths
        worth = []
        for width in (width for width, step in self._steps.items() if step.up):
            wider = visited[bisect.bisect_right(visited, width) :]
            if all(self._slower(one, width) for one in wider):
                worth.append(width)
        if not self._steps:
            return None if any(not self._explained(*pair) for pair in self._intervals()) else 1
        found = spacing(worth)
        return None if found == 1 else found

    def _slower(self, width: int, other: int) -> bool:
        return self._readings.ms(width) - self._readings.ms(other) > self._readings.tolerance(width, other)
