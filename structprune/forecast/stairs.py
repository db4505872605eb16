"""The staircase of a kernel: how much slower it is at widths that its runtime has no blocks for.

A level is the largest power of two that divides all open sizes. What a form's own kernels say at a level is held
against what forms of the same weights (its family) say, and those against all kernels of the operation: few kernels
seen move it little. No level is faster than a coarser one: what fits the finer blocks fits them as well.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from structprune.forecast.forms import Form

__all__ = ["LEVELS", "Seen", "aligned_level", "level", "staircases"]

LEVELS = (1, 2, 4, 8, 16, 32, 64)
_PRIOR = 3.0  # kernels: what the family says weighs as much as so many of the form's own
_FLAT = 1.08  # a level that is slower than the coarser ones by less is as good

Floats = np.ndarray
Key = TypeVar("Key", bound=Hashable)


def level(sizes: Iterable[int]) -> int:
    """The largest power of two, up to 64, that divides all sizes.

    >>> level((48, 32)), level((7,)), level(())
    (16, 1, 64)
    """
    return min((min(size & -size, LEVELS[-1]) for size in sizes), default=LEVELS[-1])


@dataclass(frozen=True)
class Seen:
    """Kernels at each level, each float64 ``[levels]``: what they took, what the polynomial says, how many they are."""

    measured: Floats
    smooth: Floats
    count: Floats

    def __add__(self, other: Seen) -> Seen:
        return Seen(self.measured + other.measured, self.smooth + other.smooth, self.count + other.count)


def staircases(seen: Mapping[Form, Seen]) -> dict[Form, Floats]:
    """Each form's factor at each level, float64 ``[levels]``; about 1.0 at its best."""
    operations = _sums((form.operation, one) for form, one in seen.items())
    families = _sums((_Family.of(form), one) for form, one in seen.items())
    flat = np.ones(len(LEVELS))
    general = {name: _scaled(_factors(one, flat)) for name, one in operations.items()}
    own = {family: _factors(one, general[family.operation]) for family, one in families.items()}
    return {form: _scaled(_factors(one, own[_Family.of(form)])) for form, one in seen.items()}


def aligned_level(factors: Floats) -> int:
    """The smallest level that is about as fast as the coarser ones are.

    >>> aligned_level(np.array([3.0, 2.0, 1.5, 1.4, 1.02, 1.0, 1.0]))
    16
    """
    best = len(LEVELS) - 1
    while best and factors[best - 1] <= _FLAT * factors[best:].mean():
        best -= 1
    return LEVELS[best]


@dataclass(frozen=True)
class _Family:
    """Forms of one operation and the same weights, at any image size or sequence length."""

    operation: str
    weights: tuple[int | None, ...]
    open: tuple[int, ...]

    @classmethod
    def of(cls, form: Form) -> _Family:
        return cls(form.operation, form.shapes[1] if len(form.shapes) > 2 else (), form.open)


def _sums(listed: Iterable[tuple[Key, Seen]]) -> dict[Key, Seen]:
    sums: dict[Key, Seen] = {}
    for key, one in listed:
        sums[key] = sums[key] + one if key in sums else one
    return sums


def _factors(seen: Seen, prior: Floats) -> Floats:
    """Measured over smooth at each level, drawn to the prior, and no level faster than a coarser one."""
    weight = _PRIOR * seen.smooth.sum() / max(seen.count.sum(), 1)
    below = seen.smooth + weight
    return _falling((seen.measured + weight * prior) / np.maximum(below, 1e-12), below)


def _falling(values: Floats, weights: Floats) -> Floats:
    """The nearest values that never rise, by weighted least squares (pooling of neighbours)."""
    pools: list[tuple[float, float, int]] = []
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        pool = (value, weight, 1)
        while pools and pools[-1][0] < pool[0]:
            mean, mass, length = pools.pop()
            total = mass + pool[1]
            pool = ((mean * mass + pool[0] * pool[1]) / max(total, 1e-300), total, length + pool[2])
        pools.append(pool)
    return np.concatenate([np.full(length, value) for value, _, length in pools])


def _scaled(factors: Floats) -> Floats:
    """With 1.0 at the best level, so that the polynomial alone has the scale."""
    found: Floats = factors / factors[-1]
    return found
