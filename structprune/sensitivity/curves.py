"""The loss against the width of one knob, as it was measured, and the curve through it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator
from scipy.optimize import isotonic_regression

from structprune.errors import InputError

__all__ = ["Curve", "Joint", "Mark", "mark_of"]

Floats = NDArray[np.float64]
Mark = tuple[float, float, float]
"""What tells the scores of one group from others: their sum, their squares' and their place's mean."""


@dataclass(frozen=True)
class Curve:
    """One knob: the groups that keep the same number of channels, and the loss at some widths of it alone.

    ``widths`` ascend up to ``size``, where nothing is cut; ``losses`` are those of the network whose other groups are
    whole. ``marks`` are of the scores of each group by which its best channels were kept. Raises InputError where the
    parts contradict each other.
    """

    groups: tuple[str, ...]
    size: int
    widths: tuple[int, ...]
    losses: tuple[float, ...]
    marks: tuple[Mark, ...]

    def __post_init__(self) -> None:
        widths, losses = np.array(self.widths), np.array(self.losses)
        fits = len(widths) == len(losses) > 1 and bool((np.diff(widths) > 0).all()) and widths[0] >= 1
        if not (fits and widths[-1] == self.size and np.isfinite(losses).all()):
            raise InputError(
                f"{self.name}: expected a finite loss at each of several widths that ascend to {self.size}"
            )
        if not self.groups or len(self.marks) != len(self.groups):
            raise InputError(f"{self.name}: expected groups, and the mark of the scores of each")

    @property
    def name(self) -> str:
        """The names of its groups."""
        return " + ".join(self.groups)

    @cached_property
    def rises(self) -> Floats:
        """By how much the loss rises with 1, 2, ..., ``size`` channels kept, float64 ``[size]``: never less for fewer.

        What was measured is made monotone by least squares. Between, the square roots are interpolated by monotone
        cubics (Fritsch, Butland 1984): the rise is about quadratic in what is cut, so they are nearly straight.
        """
        widths, losses = np.array(self.widths, dtype=np.float64), np.array(self.losses)
        falling = isotonic_regression(losses - losses[-1], increasing=False).x
        roots = np.sqrt(np.maximum(falling - falling[-1], 0.0))
        if widths[0] > 1:  # on towards nothing kept, as steeply as from the whole
            widths = np.append(0.0, widths)
            roots = np.append(roots[0] * self.size / (self.size - widths[1]), roots)
        found: Floats = np.maximum(PchipInterpolator(widths, roots)(np.arange(1, self.size + 1)), 0.0) ** 2
        found[-1] = 0.0
        return found


@dataclass(frozen=True)
class Joint:
    """A network in which several groups are cut: how many channels each of these keeps, and its loss."""

    counts: Mapping[str, int]
    loss: float


def mark_of(scores: Floats) -> Mark:
    """What tells these scores from others, whatever the rounding."""
    values = np.asarray(scores, dtype=np.float64)
    values = values.sum(axis=0) if values.ndim > 1 else values
    total = float(np.abs(values).sum())
    if not total:
        return 0.0, 0.0, 0.0
    places = np.linspace(0.0, 1.0, len(values))
    return float(values.sum()), float(np.square(values).sum()), float((places * values).sum() / total)
