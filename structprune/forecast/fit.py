"""From profiles of a network at sampled widths to its latency at any widths.

Kernels of one form share one function of their open sizes: a polynomial with coefficients that are not negative, since
a kernel only takes longer as it gets wider. On top lies the staircase (`stairs.py`): one factor for each *level*, the
largest power of two that divides all open sizes. Both are fitted in turn. So little has to be measured: one sample of
the whole network says something about every kernel.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from structprune.forecast.forms import Form, Part, Sample
from structprune.forecast.stairs import LEVELS, Seen, level, staircases

__all__ = ["Fit", "fit"]

_TURNS = 8
_FACTORS = 3  # at most so many open sizes are multiplied with each other
_SHORTEST = 1e-4  # milliseconds: what is shorter weighs as much

Floats = np.ndarray


@dataclass(frozen=True)
class Fit:
    """The latency of kernels: for each form the coefficients of its monomials, and its staircase's factors.

    ``stairs[form]`` is float64 ``[levels]``: how many times slower than at its best level a kernel of that form is.
    """

    coefficients: Mapping[Form, Floats]
    stairs: Mapping[Form, Floats]

    def terms(self, form: Form) -> list[tuple[tuple[int, ...], float]]:
        """The form's polynomial, as if all sizes were multiples of the runtime's blocks: for each monomial the places
        of its factors among the open sizes, and its coefficient in milliseconds.
        """
        return list(zip(_subsets(len(set(form.open))), self.coefficients[form].tolist(), strict=True))


@dataclass(frozen=True)
class _Point:
    sizes: tuple[int, ...]
    level: int  # its position in LEVELS
    ms: float


@dataclass
class _Points:
    """The kernels of one form that were seen: their monomials [kernels, monomials], levels and times."""

    rows: Floats
    levels: np.ndarray
    ms: Floats
    smooth: Floats  # what the polynomial says, of the turn before

    @classmethod
    def of(cls, seen: Sequence[_Point]) -> _Points:
        rows = np.array([_monomials(point.sizes) for point in seen])
        ms = np.array([point.ms for point in seen])
        return cls(rows, np.array([point.level for point in seen], dtype=np.int64), ms, ms)

    def polynomial(self, factors: Floats) -> Floats:
        """Coefficients of the monomials, by least squares of the errors relative to what was fitted before: relative
        to the measured times, they would lean to the short ones.
        """
        scale = self.rows.max(axis=0)
        slower = factors[self.levels]
        weights = 1.0 / np.maximum(self.smooth * slower, _SHORTEST)
        solution, _ = nnls(self.rows / scale * (weights * slower)[:, None], self.ms * weights)
        found: Floats = solution / scale
        self.smooth = np.maximum(self.rows @ found, _SHORTEST)
        return found

    def seen(self) -> Seen:
        """The measured and the smooth milliseconds at each level, and the number of kernels."""
        count = len(LEVELS)
        measured = np.bincount(self.levels, self.ms, count)
        smooth = np.bincount(self.levels, self.smooth, count)
        return Seen(measured, smooth, np.bincount(self.levels, minlength=count))


def fit(parts: Sequence[Part], samples: Sequence[Sample], levels: np.ndarray) -> Fit:
    """The fit of all samples' kernels that have one of the parts' forms.

    ``levels`` are positions in LEVELS, int64 ``[samples, parts]``: those of the network's widths, which a runtime may
    pad before its kernels see them.
    """
    points = {form: _Points.of(seen) for form, seen in _points(parts, samples, levels).items()}
    stairs = {form: np.ones(len(LEVELS)) for form in points}
    coefficients: dict[Form, Floats] = {}
    for _ in range(_TURNS):
        coefficients = {form: seen.polynomial(stairs[form]) for form, seen in points.items()}
        stairs = staircases({form: seen.seen() for form, seen in points.items()})
    coefficients = {form: seen.polynomial(stairs[form]) for form, seen in points.items()}
    return Fit(coefficients, stairs)


def _monomials(sizes: Sequence[int]) -> list[float]:
    """The products of all subsets of the sizes, at most three in each: the constant first."""
    return [float(np.prod([float(sizes[i]) for i in chosen])) for chosen in _subsets(len(sizes))]


def _subsets(count: int) -> list[tuple[int, ...]]:
    return [
        chosen
        for factors in range(min(count, _FACTORS) + 1)
        for chosen in itertools.combinations(range(count), factors)
    ]


def _points(parts: Sequence[Part], samples: Sequence[Sample], levels: np.ndarray) -> dict[Form, list[_Point]]:
    own = {part.name: number for number, part in enumerate(parts)}
    forms = tuple(dict.fromkeys(part.form for part in parts))
    points: dict[Form, list[_Point]] = {form: [] for form in forms}
    for sample, known in zip(samples, levels.tolist(), strict=True):
        for kernel in sample.profile.kernels:
            number = own.get(kernel.name)
            for form in forms if number is None else (parts[number].form,):
                sizes = form.widths(kernel)
                if sizes is not None:
                    at = LEVELS.index(level(sizes)) if number is None else known[number]
                    points[form].append(_Point(sizes, at, kernel.ms))
                    break
    return {form: seen for form, seen in points.items() if seen}
