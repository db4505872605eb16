"""A budget as a limit on the units, or as an error that says what can be reached and what is in the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray

from structprune import budget as budgets
from structprune.budget import Budget
from structprune.errors import BudgetError, InputError
from structprune.selection.comparisons import Limit
from structprune.selection.contract import Counts, GraphLike, Prices
from structprune.selection.demands import Demand, load
from structprune.selection.knapsack import ValueLimit
from structprune.selection.matching import kept_groups
from structprune.selection.search import PriceLimit, ShareLimit, expander
from structprune.selection.units import Constraints, Unit

__all__ = ["VALUE", "Original", "Task"]

VALUE = "value"
"""The scope that keeps the most importance for the price, whatever the order of channels."""

Original = float | Mapping[str, float] | None
"""The price of the network that a budget is a fraction of; by quantity, where the budget has several."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Task:
    """What is to be cut, and how far."""

    graph: GraphLike
    candidates: tuple[int, ...]  #: positions of the groups that may be cut
    units: tuple[Unit, ...]
    budget: Budget
    bounds: Constraints
    prices: Prices | None = None  #: of what is measured on a runtime

    def limit(self, scope: str, original: Original) -> Limit:
        """The budget as fractions of `original` (default: of what the graph knows of the network before it was
        ever pruned, else of the graph itself).

        Raises BudgetError, with the reachable range, where even the least of all units is beyond it.
        """
        given = self._given(original)
        demands = [self._demand(limit, given.get(limit.quantity)) for limit in self.budget.limits]
        one = demands[0] if len(demands) == 1 else None
        if scope == "layer" and one is not None and one.quantity == "channels":
            return self._share_limit(one)
        limit: PriceLimit | ValueLimit
        single = one is not None and one.quantity != "peak_memory"
        share, fraction = (demands[0].shares, demands[0].allowed) if single else (partial(load, demands), 1.0)
        if scope == VALUE:
            limit = ValueLimit(share, fraction, self.graph.groups)
        else:
            limit = PriceLimit(
                lambda counts: float(share(counts[None])[0]), fraction, self.graph.groups, scope
            )
        if not limit.admits(self.units):
            least = np.array([unit.least for unit in self.units], dtype=np.int64)
            narrowest = expander(self.graph.groups, self.units)(least)
            lowest = [(one, one.share(narrowest)) for one in demands]
            raise BudgetError(self._unreachable(lowest), self._fastest(lowest))
        return limit

    def _given(self, original: Original) -> Mapping[str, float]:
        """The price of the original network, as far as the caller says it, by quantity."""
        if original is None or isinstance(original, Mapping):
            known = {limit.quantity for limit in self.budget.limits}
            if unknown := sorted((original or {}).keys() - known):
                raise InputError(f"original= names {unknown}, which {self.budget} does not bound")
            return original or {}
        if len(self.budget.limits) > 1:
            raise InputError(
                f"{self.budget}: original= is a mapping from quantity to price, got {original!r}"
            )
        return {self.budget.quantity: original}

    def _demand(self, limit: budgets.Limit, original: float | None) -> Demand:
        """One limit as shares of the original network's quantity."""
        if self.prices is not None and limit == self.budget.time:
            prices = self.prices
            return Demand(limit.quantity, lambda many: prices.share(many)[:, None], prices.limit)
        quantity = limit.quantity
        sizes = self._sizes()
        whole = float(self._levels(quantity, sizes[None]).max())
        reference = self._original(quantity, whole) if original is None else original
        if not whole > 0 or not reference > 0:
            nothing = Demand(quantity, lambda many: np.ones((len(many), 1)), limit.value)
            if limit.value < 1:
                raise BudgetError(self._unreachable([(nothing, 1.0)]))
            return nothing
        return Demand(quantity, lambda many: self._levels(quantity, many) / reference, limit.value)

    def _original(self, quantity: str, whole: float) -> float:
        """The quantity in the network before it was ever pruned, as far as the graph knows."""
        known: float | None = getattr(self.graph, "original", {}).get(quantity)
        if known is None or quantity != "channels":
            return whole if known is None else known
        present = float(self.graph.levels("channels", self._sizes()[None]).max())
        # of the default groups; those asked for may be others
        return whole * known / present if present else whole

    def _levels(self, quantity: str, many: Counts) -> Floats:
        """The quantity for counts [choices, groups]: [choices, parts]. Only what can be cut counts as a channel."""
        if quantity != "channels":
            return self.graph.levels(quantity, many)
        found: Floats = many[:, self._channels].sum(axis=1, keepdims=True).astype(np.float64)
        return found

    def _sizes(self) -> Counts:
        return np.array([group.size for group in self.graph.groups], dtype=np.int64)

    @cached_property
    def _channels(self) -> list[int]:
        """The groups whose channels count: free, and cut by default or by request."""
        free = [position for position, group in enumerate(self.graph.groups) if group.frozen is None]
        chosen = set(self.candidates)
        return [position for position in free if self.graph.groups[position].primary or position in chosen]

    def _share_limit(self, demand: Demand) -> Limit:
        """A share of each unit, where the network may have been cut before."""
        present = demand.share(self._sizes())
        share = demand.allowed / present
        lowest = min((unit.least / unit.size for unit in self.units), default=1.0)
        if share < min(1.0, lowest * (1 - 1e-12)):
            raise BudgetError(self._unreachable([(demand, lowest * present)]))
        return ShareLimit.of(share, self.units)

    def _unreachable(self, lowest: Sequence[tuple[Demand, float]]) -> str:
        """What was asked, what can be reached of each quantity, and what stands in the way."""
        missed = [demand.quantity for demand, low in lowest if low > demand.allowed]
        text = f"{self.budget} cannot be met: "
        if len(lowest) > 1:
            text += f"{' and '.join(missed)} cannot, "
        if self.units:
            text += ", ".join(self._range(*one) for one in lowest) + " can be reached"
        else:
            whole = [f"{one.share(self._sizes()):.4g} of the original's {one.quantity}" for one, _ in lowest]
            text += f"no group can be cut, so {', '.join(whole)} stay"
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

    def _range(self, demand: Demand, lowest: float) -> str:
        """What can be reached of one quantity, in the unit that it was asked for in."""
        lowest, highest = sorted((lowest, demand.share(self._sizes())))
        asked = self.budget.time
        if asked is None or asked.quantity != demand.quantity or asked.quantity == "latency":
            whose = "original" if asked is None or asked.quantity != demand.quantity else "given network"
            return f"between {lowest:.4g} and {highest:.4g} of the {whose}'s {demand.quantity}"
        if asked.quantity == "latency_ms":
            whole = asked.value / demand.allowed
            return f"between {lowest * whole:.4g} and {highest * whole:.4g} ms"
        whole = asked.value * demand.allowed
        return f"between {whole / highest:.4g} and {whole / lowest:.4g} samples per second"

    def _fastest(self, lowest: Sequence[tuple[Demand, float]]) -> float | None:
        """The least share of the latency, where all else that is asked for can be met."""
        asked = None if self.budget.time is None else self.budget.time.quantity
        if any(share > one.allowed for one, share in lowest if one.quantity != asked):
            return None
        return next((share for one, share in lowest if one.quantity == asked), None)

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
