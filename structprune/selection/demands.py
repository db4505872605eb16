"""Several limits as one: by how much a choice is beyond all of them together, and below which it is within each.

A step that narrows a network may bring it nearer to one limit and not to the others, and a peak of memory may be
reached at several moments at once. So a choice that is beyond a limit is judged by all that it is beyond; then every
step towards any of them counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from structprune.selection.contract import Counts

__all__ = ["Demand", "load"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Demand:
    """One quantity, and how much of it may remain.

    ``parts`` takes counts per group ``[choices, groups]`` and gives ``[choices, parts]``, shares of the original's:
    what remains is the largest of each row.
    """

    quantity: str
    parts: Callable[[Counts], Floats]
    allowed: float

    def shares(self, counts: Counts) -> Floats:
        """What remains of the original's at counts ``[choices, groups]``: ``[choices]``."""
        found: Floats = self.parts(counts).max(axis=1)
        return found

    def share(self, counts: Counts) -> float:
        """What remains of the original's at counts per group ``[groups]``."""
        return float(self.shares(counts[None])[0])


def load(demands: Sequence[Demand], counts: Counts) -> Floats:
    """At most 1.0 where every demand holds at counts ``[choices, groups]``, and the less the more is left of the one
    that is nearest; else 1.0 and what each is beyond its limit: ``[choices]``.
    """
    ratios = np.hstack([_ratios(demand, counts) for demand in demands])
    beyond = np.maximum(ratios - 1.0, 0.0).sum(axis=1)
    loads: Floats = np.where(beyond > 0, 1.0 + beyond, ratios.max(axis=1))
    return loads


def _ratios(demand: Demand, counts: Counts) -> Floats:
    parts = demand.parts(counts)
    if not np.isfinite(demand.allowed):
        return np.zeros_like(parts)
    above = np.nextafter(1.0, 2.0)  # a division may round what is just beyond to 1.0
    ratios: Floats = np.where(
        parts > demand.allowed, np.maximum(parts / demand.allowed, above), parts / demand.allowed
    )
    return ratios
