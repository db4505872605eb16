"""From the rises of single knobs to the rise of all together.

Errors that have nothing to do with each other add up by their squares, ones in the same direction by their sizes; and
a network that says nothing any more cannot get much worse. So what stands for all knobs is a power sum of their rises,
where the power says how much errors agree (1: as little as can be), times a factor, below a ceiling. The three are
fitted to some plans that are measured; without any, they are those that fit most networks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Combination", "fitted"]

Floats = NDArray[np.float64]

_USUAL = 0.9
_POWERS = np.arange(0.5, 1.51, 0.05)
_FACTORS = np.geomspace(0.1, 20.0, 54)
_CEILINGS = np.array([1.05, 1.5, 3.0, 10.0, 100.0])  # of the largest rise that was measured
_HELD = 0.1  # what a power that is e times the usual one has to win in the squared error of the logarithms
_LEAST = 0.01  # of the largest rise: smaller ones are told apart no further
_FEW = 3  # plans that say something


@dataclass(frozen=True)
class Combination:
    """``rise = 1 / (1 / (factor * power_sum) + 1 / ceiling)``, the power sum being ``sum(rises ** power) ** (1 /
    power)``.
    """

    power: float = _USUAL
    factor: float = 1.0
    ceiling: float = np.inf

    def __call__(self, rises: Floats) -> Floats:
        """The rise of plans whose knobs have the rises ``[plans, knobs]`` alone: ``[plans]``.

        >>> Combination(power=1.0, ceiling=6.0)(np.array([[0.0, 0.0], [2.0, 1.0]])).tolist()
        [0.0, 2.0]
        """
        found = self.factor * _power_sum(rises, self.power)
        limited: Floats = found / (1.0 + found / self.ceiling)
        return limited


def fitted(rises: Floats, measured: Floats) -> Combination:
    """The combination that comes nearest to the measured rises ``[plans]`` of plans with rises ``[plans, knobs]``."""
    largest = float(measured.max(initial=0.0))
    useful = rises.sum(axis=1) > 0 if len(rises) else np.zeros(0, dtype=bool)
    if largest <= 0 or int(useful.sum()) < _FEW:
        return Combination()
    logarithms = np.log(np.maximum(measured[useful], _LEAST * largest))
    best = (np.inf, Combination())
    for power in _POWERS.tolist():
        sums = _power_sum(rises[useful], power)[:, None, None] * _FACTORS[:, None]
        errors = np.log(1.0 / (1.0 / sums + 1.0 / (_CEILINGS * largest))) - logarithms[:, None, None]
        squares = np.minimum(errors**2, 1.0).mean(
            axis=0
        )  # [factors, ceilings]; one plan counts for 1 at most
        factor, ceiling = np.unravel_index(int(squares.argmin()), squares.shape)
        cost = float(squares.min()) + _HELD * float(np.log(power / _USUAL)) ** 2
        if cost < best[0]:
            found = Combination(power, float(_FACTORS[factor]), float(_CEILINGS[ceiling]) * largest)
            best = (cost, found)
    return best[1]


def _power_sum(rises: Floats, power: float) -> Floats:
    found: Floats = (rises**power).sum(axis=-1) ** (1.0 / power)
    return found
