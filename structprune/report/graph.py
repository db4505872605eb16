"""A dependency graph for people and for pipelines: one row per group, and how much can be cut at all."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from structprune.graph import ChannelGroup, DependencyGraph
from structprune.report.numbers import format_count
from structprune.table import group_state

__all__ = ["Coverage", "coverage", "graph_document", "graph_table", "types_table"]


@dataclass(frozen=True)
class Coverage:
    """Params and MACs, and the shares of them, in [0, 1], in layers that a free group reaches into."""

    params: int
    macs: int
    free_params: float
    free_macs: float

    def __str__(self) -> str:
        return (
            f"free groups reach {self.free_params:.1%} of {format_count(self.params)} params "
            f"and {self.free_macs:.1%} of {format_count(self.macs)} MACs"
        )


def coverage(graph: DependencyGraph) -> Coverage:
    """How much of the network free groups govern: what no free channel takes part in stays at any budget."""
    params, macs = (round(graph.price(quantity, graph.sizes())) for quantity in ("params", "macs"))
    return Coverage(params, macs, graph.coverage("params"), graph.coverage("macs"))


def graph_table(graph: DependencyGraph) -> Table:
    """The group table: name, kind, channels, members, the params and MACs it governs, free or why not."""
    table = Table(title="channel groups", title_justify="left", show_edge=False, pad_edge=False)
    table.add_column("group", overflow="fold")
    table.add_column("kind")
    for column in ("channels", "members", "params", "MACs"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("state", overflow="fold")
    governed = zip(graph.groups, graph.governed("params"), graph.governed("macs"), strict=True)
    for group, params, macs in governed:
        figures = (str(group.size), str(len(group.members)), format_count(params), format_count(macs))
        table.add_row(Text(group.name), Text(group.kind), *figures, _state(group))
    return table


def _state(group: ChannelGroup) -> Text:
    if group.frozen is not None:
        return Text(f"frozen: {group_state(group)}", style="yellow")
    return Text(group_state(group), style="green")


def types_table(graph: DependencyGraph) -> Table:
    """The inferred type of every tensor: parameters and buffers, then what each operation returned."""
    table = Table(title="tensors", title_justify="left", show_edge=False, pad_edge=False)
    for column in ("tensor or layer", "operation", "type"):
        table.add_column(column, overflow="fold")
    for layer in graph.types():
        table.add_row(
            Text(layer.name), Text(layer.operation), Text("\n".join(f"[{one}]" for one in layer.types))
        )
    return table


def graph_document(graph: DependencyGraph) -> dict[str, Any]:
    """The same as plain data, with every member's tensor, dimension and role."""
    share = coverage(graph)
    governed = zip(graph.groups, graph.governed("params"), graph.governed("macs"), strict=True)
    return {
        "params": share.params,
        "macs": share.macs,
        "free_params": share.free_params,
        "free_macs": share.free_macs,
        "groups": [_group_document(group, round(params), round(macs)) for group, params, macs in governed],
    }


def _group_document(group: ChannelGroup, params: int, macs: int) -> dict[str, Any]:
    frozen = group.frozen
    return {
        "name": group.name,
        "kind": group.kind,
        "channels": group.size,
        "free": frozen is None,
        "primary": group.primary,
        "reason": frozen.reason if frozen else None,
        "where": (frozen.where or None) if frozen else None,
        "tie": group.tie,
        "rivals": list(group.rivals),
        "changes": [asdict(change) for change in group.changes],
        "params": params,
        "macs": macs,
        "members": [{"tensor": m.tensor, "dim": m.dim, "role": m.role} for m in group.members],
    }
