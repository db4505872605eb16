"""From the rises of single knobs to the rise of all together.

What each knob cuts is noise to the rest, and noise adds up: by its squares where cuts have nothing to do with each
other, by its size where they have the same direction, a power sum in any case. A network that says nothing any more
cannot get much worse, so the sum stays below a ceiling. And where cuts that spoil nearly everything by themselves are
among the plans, the loss no longer goes with the noise but with its logarithm: beside the worst cut the others count
for little. That begins at a knee. Power, factor, ceiling and whether there is a knee are fitted to some plans that are
measured; without any, they are those that fit most networks.

The forecast only depends on a sum of one term for each knob, so widths can be chosen knob by knob for what they cost.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

__all__ = ["Combination", "fitted"]

Floats = NDArray[np.float64]

_USUAL = 0.9
_POWERS = np.arange(0.5, 1.51, 0.05)
_HELD = 0.1  # what a power that is e times the usual one has to win in the squared error of the logarithms
_KNEES = (1 / 3, np.inf)  # of the largest rise that was measured
_FACTORS = np.geomspace(0.1, 20.0, 54)
_CEILINGS = np.array([1.05, 1.5, 3.0, 10.0, 100.0])  # of the largest rise that was measured
_LEAST = 0.01  # of the largest rise: smaller ones are told apart no further
_CLOSE = 1e-3  # a squared error of the logarithms that says nothing
_FEW = 3  # plans that say something
_STEEPEST = 20.0  # knees: from there on noise grows no faster, lest it overflow


@dataclass(frozen=True)
class Combination:
    """``rise = 1 / (1 / (factor * found) + 1 / ceiling)``, where ``found = knee * log(1 + noise / knee)``, and the
    noise is the power sum ``sum(noise_k ** power) ** (1 / power)`` of ``noise_k = knee * (exp(rise_k / knee) - 1)``.
    """

    power: float = _USUAL
    factor: float = 1.0
    ceiling: float = np.inf
    knee: float = np.inf

    def __call__(self, rises: Floats) -> Floats:
        """The rise of plans whose knobs have the rises ``[plans, knobs]`` alone: ``[plans]``.

        >>> Combination(power=1.0, ceiling=6.0)(np.array([[0.0, 0.0], [2.0, 1.0]])).tolist()
        [0.0, 2.0]
        >>> Combination(power=1.0, knee=0.5)(np.array([[0.01, 0.01], [5.0, 4.0]])).round(2).tolist()
        [0.02, 5.06]
        """
        found = self.factor * self.together(rises)
        limited: Floats = found / (1.0 + found / self.ceiling)
        return limited

    def together(self, rises: Floats) -> Floats:
        """The rise of plans as `__call__` has it, before the factor and the ceiling."""
        noise: Floats = self.terms(rises).sum(axis=-1) ** (1.0 / self.power)
        return noise if np.isinf(self.knee) else self.knee * np.log1p(noise / self.knee)

    def terms(self, rises: Floats) -> Floats:
        """What each rise adds to a sum that orders plans as their forecasts do, of the same shape."""
        noise = rises
        if np.isfinite(self.knee):
            height = rises / self.knee
            steep = np.minimum(height, _STEEPEST)
            noise = self.knee * (np.expm1(steep) + np.exp(steep) * (height - steep))
        found: Floats = noise**self.power
        return found


def fitted(rises: Floats, measured: Floats) -> Combination:
    """The combination that comes nearest to the measured rises ``[plans]`` of plans with rises ``[plans, knobs]``.

    The nearest has the least squared error of the logarithms. Rises that add up to more than is measured tell of a
    knee: the error of a combination without one counts as many times as their sum is more, in the median over the
    plans, and less where it is less.
    """
    largest = float(measured.max(initial=0.0))
    useful = rises.sum(axis=1) > 0 if len(rises) else np.zeros(0, dtype=bool)
    if largest <= 0 or int(useful.sum()) < _FEW:
        return Combination()
    rises, measured = rises[useful], np.maximum(measured[useful], _LEAST * largest)
    more = float(np.median(rises.sum(axis=1) / measured))
    best = (np.inf, Combination())
    for knee in _KNEES:
        for power in _POWERS.tolist():
            error, found = _scaled(Combination(power, knee=knee * largest), rises, measured)
            error += _CLOSE + _HELD * float(np.log(power / _USUAL)) ** 2
            cost = error * more if np.isinf(knee) else error
            if cost < best[0]:
                best = (cost, found)
    return best[1]


def _scaled(found: Combination, rises: Floats, measured: Floats) -> tuple[float, Combination]:
    """The combination with the best factor and ceiling, and its squared error."""
    ceilings = _CEILINGS * float(measured.max())
    sums = found.together(rises)[:, None, None] * _FACTORS[:, None]
    errors = np.log(1.0 / (1.0 / sums + 1.0 / ceilings)) - np.log(measured)[:, None, None]
    squares = np.minimum(errors**2, 1.0).mean(axis=0)  # [factors, ceilings]; one plan counts for 1 at most
    factor, ceiling = np.unravel_index(int(squares.argmin()), squares.shape)
    best = replace(found, factor=float(_FACTORS[factor]), ceiling=float(ceilings[ceiling]))
    return float(squares.min()), best
