"""What a choice of channels did, told by the kinds of its groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from structprune.budget import Budget
from structprune.changes import Change
from structprune.graph import ChannelGroup, DependencyGraph
from structprune.selection.units import Constraints, candidate_groups

__all__ = ["KindCut", "QuantityCut", "changes_of", "cuts_by_kind", "left_whole", "quantity_cuts"]


@dataclass(frozen=True)
class KindCut:
    """How many channels of one kind stay, of all that its groups had; only groups that were cut are counted."""

    kind: str
    groups: int
    kept: int
    channels: int

    def __str__(self) -> str:
        return (
            f"{self.kind} {self.kept:,} of {self.channels:,} in {self.groups} group{'s' * (self.groups > 1)}"
        )


@dataclass(frozen=True)
class QuantityCut:
    """One quantity that a budget bounds, of the network before the cut and after it; memory and files in bytes."""

    quantity: str
    before: int
    after: int

    def __str__(self) -> str:
        unit = " bytes" if self.quantity in ("peak_memory", "file_size") else ""
        share = self.after / max(self.before, 1)
        return f"{self.quantity.replace('_', ' ')} {self.before:,} -> {self.after:,}{unit} ({share:.1%})"


def quantity_cuts(graph: DependencyGraph, budget: Budget, counts: np.ndarray) -> tuple[QuantityCut, ...]:
    """Return what became of each quantity of a budget that is counted when each group keeps ``counts``.

    Channels are those of the groups that are cut by default, and of all that were cut.
    """
    found = []
    sizes = graph.sizes()
    counted = [
        i for i, g in enumerate(graph.groups) if g.frozen is None and (g.primary or counts[i] < g.size)
    ]
    for limit in budget.limits:
        if limit.quantity == "channels":
            found.append(QuantityCut("channels", int(sizes[counted].sum()), int(counts[counted].sum())))
        elif limit != budget.time:
            prices = (round(graph.price(limit.quantity, one)) for one in (sizes, counts))
            found.append(QuantityCut(limit.quantity, *prices))
    return tuple(found)


def cuts_by_kind(groups: Sequence[ChannelGroup], counts: Sequence[int]) -> tuple[KindCut, ...]:
    """Return what was cut of each kind when each group keeps ``counts`` of its channels."""
    found: dict[str, KindCut] = {}
    for group, count in zip(groups, counts, strict=True):
        if count < group.size:
            known = found.get(group.kind, KindCut(group.kind, 0, 0, 0))
            kept, channels = known.kept + int(count), known.channels + group.size
            found[group.kind] = KindCut(group.kind, known.groups + 1, kept, channels)
    return tuple(found.values())


def changes_of(groups: Sequence[ChannelGroup], counts: Sequence[int]) -> tuple[Change, ...]:
    """Return the statistics that are taken over fewer channels when each group keeps ``counts``, each once."""
    cut = (group for group, count in zip(groups, counts, strict=True) if count < group.size)
    return tuple(dict.fromkeys(change for group in cut for change in group.changes))


def left_whole(
    groups: Sequence[ChannelGroup], keep: Sequence[str], only: Sequence[str]
) -> tuple[tuple[str, str], ...]:
    """Return every group that cannot be cut, with the reason: frozen, or as many as another that is not to be cut."""
    candidates = set(candidate_groups(groups, Constraints(keep=keep, only=only)))
    still: dict[int, ChannelGroup] = {}
    for position, group in enumerate(groups):
        if position not in candidates:
            still.setdefault(group.tie, group)
    found = []
    for position, group in enumerate(groups):
        other = still.get(group.tie)
        if group.frozen is not None:
            found.append((group.name, str(group.frozen)))
        elif position in candidates and other is not None:
            found.append((group.name, f"keeps as many as {other.name} ({other.kind}), which is not cut"))
    return tuple(found)
