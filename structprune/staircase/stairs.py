"""What a staircase is: points, steps, and the spacing at which steps recur."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from structprune.staircase.readings import lower_median

__all__ = ["AGREE", "RECUR", "Pattern", "Point", "Stairs", "Step", "pattern_of", "prime_factors", "spacing"]

RECUR = 3  # jumps that make a pattern
AGREE = 0.8  # of the jumps that a pattern has to explain, and of those it expects that have to be there


@dataclass(frozen=True)
class Point:
    """The times at one width, in milliseconds; `ms` is their lower median: a busy machine only adds."""

    width: int
    times: tuple[float, ...]

    @property
    def ms(self) -> float:
        return lower_median(self.times)


@dataclass(frozen=True)
class Step:
    """A jump of latency between a width and the next one."""

    width: int
    before_ms: float
    after_ms: float

    @property
    def up(self) -> bool:
        """True where the wider one is slower: `width` is the last of its stair."""
        return self.after_ms > self.before_ms


@dataclass(frozen=True)
class Stairs:
    """A staircase as it was found.

    `alignment` is the spacing of the widths at which latency is low: 1 where every channel counts alike, None where too
    little was found to say. `open` are intervals in which jumps remain that were not located. `visits` is how often
    was measured, `noise` the relative standard deviation of one time.
    """

    points: tuple[Point, ...]
    steps: tuple[Step, ...]
    open: tuple[tuple[int, int], ...]
    alignment: int | None
    noise: float
    visits: int


def spacing(widths: Sequence[int]) -> int | None:
    """The largest spacing that most of these widths keep to, as multiples of it plus one offset; None for too few.

    >>> spacing([16, 48, 64, 112]), spacing([24, 56, 88]), spacing([5, 9])
    (16, 32, None)
    """
    if len(widths) < RECUR:
        return None
    found = np.array(sorted(widths))
    for size in range(int(found[-1] - found[0]), 0, -1):
        _, counts = np.unique(found % size, return_counts=True)
        if counts.max() >= max(RECUR, AGREE * len(found)):
            return size
    return None


@dataclass(frozen=True)
class Pattern:
    """Jumps recur: after each width that is `offset` more than a multiple of `size`."""

    size: int
    offset: int


def pattern_of(widths: Sequence[int]) -> Pattern | None:
    """The pattern of the widths after which latency jumps; None for too few, or where no spacing fits."""
    size = spacing(widths)
    if size is None or size == 1:
        return None
    offsets, counts = np.unique(np.array(widths) % size, return_counts=True)
    return Pattern(size, int(offsets[int(np.argmax(counts))]))


def prime_factors(number: int) -> list[int]:
    """The primes that divide a number, each once.

    >>> prime_factors(12), prime_factors(7)
    ([2, 3], [7])
    """
    return [n for n in range(2, number + 1) if number % n == 0 and all(n % m for m in range(2, n))]
