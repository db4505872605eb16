"""From profiles of a network at sampled widths to its latency at any widths.

Kernels of one form share one function of their open sizes: a polynomial with coefficients that are not negative, since
a kernel only takes longer as it gets wider. On top lies the staircase: runtimes are fast at multiples of their blocks.
How much slower a kernel is elsewhere is one factor for each operation and *level*, the largest power of two that
divides all its open sizes. Both are fitted in turn. So little has to be measured: one sample of the whole network says
something about every kernel.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from structprune.forecast.forms import Form, Part, Sample

__all__ = ["LEVELS", "Fit", "fit", "level"]

LEVELS = (1, 2, 4, 8, 16, 32, 64)
_TURNS = 8
_FACTORS = 3  # at most so many open sizes are multiplied with each other

_Point = tuple[tuple[int, ...], float]  # open sizes, milliseconds


def level(sizes: Iterable[int]) -> int:
    """The largest power of two, up to 64, that divides all sizes.

    >>> level((48, 32)), level((7,)), level(())
    (16, 1, 64)
    """
    return min((min(size & -size, LEVELS[-1]) for size in sizes), default=LEVELS[-1])


@dataclass(frozen=True)
class Fit:
    """The latency of kernels: for each form the coefficients of its monomials, and the staircase's factors.

    ``factors[operation][level]`` is 1.0 at the best level.
    """

    coefficients: Mapping[Form, np.ndarray]
    factors: Mapping[str, Mapping[int, float]]

    def terms(self, form: Form) -> list[tuple[tuple[int, ...], float]]:
        """The form's polynomial, as if all sizes were multiples of the runtime's blocks: for each monomial the places
        of its factors among the open sizes, and its coefficient in milliseconds.
        """
        return list(zip(_subsets(len(set(form.open))), self.coefficients[form].tolist(), strict=True))

    def factor(self, name: str, at: int) -> float:
        """How many times slower than at its best level the operation is at level ``at``."""
        return self.factors.get(name, {}).get(at, 1.0)


def fit(parts: Sequence[Part], samples: Sequence[Sample]) -> Fit:
    """The fit of all samples' kernels that have one of the parts' forms."""
    points = _points(parts, samples)
    factors: dict[str, dict[int, float]] = {}
    coefficients: dict[Form, np.ndarray] = {}
    for _ in range(_TURNS):
        for form, seen in points.items():
            known = factors.get(form.operation, {})
            coefficients[form] = _polynomial(
                [(sizes, ms / known.get(level(sizes), 1.0)) for sizes, ms in seen]
            )
        factors = _staircases(points, coefficients)
    return Fit(coefficients, factors)


def monomials(sizes: Sequence[int]) -> np.ndarray:
    """The products of all subsets of the sizes, at most three in each: the constant first."""
    return np.array([np.prod([float(sizes[i]) for i in chosen]) for chosen in _subsets(len(sizes))])


def _subsets(count: int) -> list[tuple[int, ...]]:
    return [
        chosen
        for factors in range(min(count, _FACTORS) + 1)
        for chosen in itertools.combinations(range(count), factors)
    ]


def _points(parts: Sequence[Part], samples: Sequence[Sample]) -> dict[Form, list[_Point]]:
    own = {part.name: part.form for part in parts}
    forms = tuple(dict.fromkeys(own.values()))
    points: dict[Form, list[_Point]] = {form: [] for form in forms}
    for sample in samples:
        for kernel in sample.profile.kernels:
            for form in (own[kernel.name],) if kernel.name in own else forms:
                sizes = form.widths(kernel)
                if sizes is not None:
                    points[form].append((sizes, kernel.ms))
                    break
    return points


def _polynomial(points: Sequence[_Point]) -> np.ndarray:
    """Coefficients of the monomials, by least squares of the relative errors."""
    rows = np.array([monomials(sizes) for sizes, _ in points])
    times = np.array([ms for _, ms in points])
    scale = rows.max(axis=0)
    weights = 1.0 / np.maximum(times, 1e-4)
    solution, _ = nnls(rows / scale * weights[:, None], np.ones(len(times)))
    found: np.ndarray = solution / scale
    return found


def _staircases(
    points: Mapping[Form, Sequence[_Point]], coefficients: Mapping[Form, np.ndarray]
) -> dict[str, dict[int, float]]:
    """Each operation's factor at each level: the mean of measured over smooth, weighted by time."""
    above: dict[str, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    below: dict[str, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for form, seen in points.items():
        for sizes, ms in seen:
            if sizes:
                above[form.operation][level(sizes)] += ms
                below[form.operation][level(sizes)] += float(monomials(sizes) @ coefficients[form])
    found = {}
    for name, times in above.items():
        ratios = {at: times[at] / max(below[name][at], 1e-9) for at in sorted(times)}
        best = min(ratios.values())
        found[name] = {at: ratio / best for at, ratio in ratios.items()}
    return found
