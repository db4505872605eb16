"""The graph as plain text."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from structprune.graph import DependencyGraph

__all__ = ["graph_table"]


def graph_table(graph: DependencyGraph) -> str:
    """Return a table of the groups: name, channels, members, params and MACs they govern, free or why not."""
    params, macs = graph.governed("params"), graph.governed("macs")
    header = ("group", "channels", "members", "params", "MACs", "free, or why not")
    rows = [header]
    for number, group in enumerate(graph.groups):
        state = "free" if group.primary else "free, on request"
        rows.append(
            (
                group.name,
                str(group.size),
                str(len(group.members)),
                f"{params[number]:,.0f}",
                f"{macs[number]:,.0f}",
                state if group.frozen is None else str(group.frozen),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = [_line(row, widths) for row in rows]
    lines.insert(1, "-" * len(lines[0]))
    lines.append(
        f"coverage: {graph.coverage('params'):.1%} of the params and {graph.coverage('macs'):.1%} of the MACs "
        "lie in layers with a free group (1 MAC = 2 FLOPs)"
    )
    return "\n".join(lines)


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    cells = [row[0].ljust(widths[0])]
    cells += [row[column].rjust(widths[column]) for column in range(1, 5)]
    return "  ".join([*cells, row[5]])
