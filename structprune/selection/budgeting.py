"""A budget as a limit on the units, or as an error that says what can be reached and what is in the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from structprune.errors import BudgetError
from structprune.plan import Budget
from structprune.selection.comparisons import Limit
from structprune.selection.contract import Counts, GraphLike, Prices
from structprune.selection.knapsack import ValueLimit
from structprune.selection.matching import kept_groups
from structprune.selection.search import PriceLimit, ShareLimit
from structprune.selection.units import Constraints, Unit

__all__ = ["VALUE", "Task"]

VALUE = "value"
"""The scope that keeps the most importance for the price, whatever the order of channels."""


@dataclass(frozen=True)
class Task:
    """What is to be cut, and how far."""

    graph: GraphLike
    candidates: tuple[int, ...]  #: positions of the groups that may be cut
    units: tuple[Unit, ...]
    budget: Budget
    bounds: Constraints
    prices: Prices | None = None  #: of what is measured on a runtime

    def limit(self, scope: str, original: float | None) -> Limit:
        """The budget as a fraction of `original` (default: of what the graph knows of the network before it was
        ever pruned, else of the graph itself).

        Raises BudgetError, with the reachable range, where even the least of all units is beyond it.
        """
        whole = self.price(np.array([group.size for group in self.graph.groups], dtype=np.int64))
        reference = self._original(whole) if original is None else original
        if not whole > 0 or not reference > 0:
            raise BudgetError(self._unreachable(1.0, 1.0))
        if scope == "layer" and self.budget.quantity == "channels":
            return self._share_limit(whole / reference)
        limit: PriceLimit | ValueLimit
        if scope == VALUE:
            limit = ValueLimit(lambda many: self._prices(many) / reference, self._fraction, self.graph.groups)
        else:
            limit = PriceLimit(
                lambda counts: self.price(counts) / reference, self._fraction, self.graph.groups, scope
            )
        if not limit.admits(self.units):
            raise BudgetError(self._unreachable(limit.lowest(self.units), whole / reference))
        return limit

    def _original(self, whole: float) -> float:
        """The quantity in the network before it was ever pruned, as far as the graph knows."""
        if self.prices is not None:  # shares already
            return 1.0
        known: float | None = getattr(self.graph, "original", {}).get(self.budget.quantity)
        if known is None or self.budget.quantity != "channels":
            return whole if known is None else known
        sizes = np.array([group.size for group in self.graph.groups], dtype=np.int64)
        present = self.graph.price("channels", sizes)  # of the default groups; those asked for may be others
        return whole * known / present if present else whole

    @property
    def _fraction(self) -> float:
        return self.budget.fraction if self.prices is None else self.prices.limit

    def _prices(self, many: Counts) -> NDArray[np.float64]:
        """The budget's quantity for counts [choices, groups]: [choices]."""
        if self.prices is not None:
            return self.prices.share(many)
        return np.array([self.price(counts) for counts in many])

    def price(self, counts: Counts) -> float:
        """The budget's quantity for counts per group. Only what can be cut counts as a channel."""
        if self.prices is not None:
            return float(self.prices.share(counts[None])[0])
        if self.budget.quantity != "channels":
            return self.graph.price(self.budget.quantity, counts)
        return float(counts[self._channels].sum())

    @cached_property
    def _channels(self) -> list[int]:
        """The groups whose channels count: free, and cut by default or by request."""
        free = [position for position, group in enumerate(self.graph.groups) if group.frozen is None]
        chosen = set(self.candidates)
        return [position for position in free if self.graph.groups[position].primary or position in chosen]

    def _share_limit(self, present: float) -> Limit:
        """A share of each unit, where the network has `present` of the original's channels before the cut."""
        share = self.budget.fraction / present
        lowest = min((unit.least / unit.size for unit in self.units), default=1.0)
        if share < min(1.0, lowest * (1 - 1e-12)):
            raise BudgetError(self._unreachable(lowest * present, present))
        return ShareLimit.of(share, self.units)

    def _unreachable(self, lowest: float, highest: float) -> str:
        """What was asked, what can be reached, and what stands in the way."""
        quantity = "latency" if self.budget.timed else self.budget.quantity
        text = f"{self.budget} cannot be met: "
        if self.units:
            text += f"between {lowest:.4g} and {highest:.4g} of the original's {quantity} can be reached"
        else:
            text += f"no group can be cut, so {highest:.4g} of the original's {quantity} stay"
        text += f" under {self.bounds}" if str(self.bounds) else ""
        cut = {position for unit in self.units for position in unit.positions}
        held = [self._held(n) for n in self.candidates if n not in cut]
        asked = kept_groups(self.graph.groups, self.bounds.only)
        groups = sorted(enumerate(self.graph.groups), key=lambda item: item[0] not in asked)
        frozen = [
            f"{group.name} ({', '.join(filter(None, (group.frozen.reason, group.frozen.where)))})"
            for _, group in groups
            if group.frozen is not None
        ]
        text += f"; held whole by constraints and ties: {_first(held)}" if held else ""
        return text + (f"; frozen: {_first(frozen)}" if frozen else "")

    def _held(self, position: int) -> str:
        """A group that could be cut but for another one, which may not be and keeps the same number."""
        group = self.graph.groups[position]
        others = [
            f"{other.name} ({other.kind})"
            for n, other in enumerate(self.graph.groups)
            if other.tie == group.tie and n not in self.candidates
        ]
        return group.name + (f" (keeps as many as {_first(others, 2)})" if others else "")


def _first(names: Sequence[str], shown: int = 5) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
