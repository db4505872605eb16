"""The graph as plain text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from structprune.changes import told

if TYPE_CHECKING:
    from structprune.graph import ChannelGroup, DependencyGraph

__all__ = ["graph_table", "group_state"]


def graph_table(graph: DependencyGraph) -> str:
    """Return a table of the groups: name, kind, channels, members, params and MACs they govern, free or why not."""
    params, macs = graph.governed("params"), graph.governed("macs")
    header = ("group", "kind", "channels", "members", "params", "MACs", "free, or why not")
    rows = [header]
    for number, group in enumerate(graph.groups):
        rows.append(
            (
                group.name,
                group.kind,
                str(group.size),
                str(len(group.members)),
                f"{params[number]:,.0f}",
                f"{macs[number]:,.0f}",
                group_state(group),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(6)]
    lines = [_line(row, widths) for row in rows]
    lines.insert(1, "-" * len(lines[0]))
    lines.append(
        f"coverage: {graph.coverage('params'):.1%} of the params and {graph.coverage('macs'):.1%} of the MACs "
        "lie in layers with a free group (1 MAC = 2 FLOPs)"
    )
    return "\n".join(lines)


def group_state(group: ChannelGroup) -> str:
    """Return whether a group is free, and what a cut changes; or why it must stay."""
    if group.frozen is not None:
        return str(group.frozen)
    state = "free" if group.primary else "free, on request"
    return f"{state}; statistics: {told(group.changes)}" if group.changes else state


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    cells = [row[column].ljust(widths[column]) for column in range(2)]
    cells += [row[column].rjust(widths[column]) for column in range(2, 6)]
    return "  ".join([*cells, row[6]])
