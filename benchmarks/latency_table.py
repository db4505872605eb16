"""What the latency benchmark shows of its rows: a table for each configuration, one sentence for all, a plot."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from benchmarks.latency_rows import AGAIN, BY_LATENCY, BY_MACS, DENSE, ROWS
from structprune.report import new_plot, save_plot

__all__ = ["plot", "summary", "table", "verdict"]

Row = dict[str, Any]
_MARKERS = "os^Dv<>Ph*X"


def table(title: str, rows: Sequence[Row]) -> Table:
    """One row for each network of a configuration; slower than dense is said in red."""
    made = Table(title=title, title_justify="left", pad_edge=False, show_edge=False)
    made.add_column("network", no_wrap=True)
    for column in ("params", "non-zeros", "MACs", "median ms [95 %]", "to dense [95 %]"):
        made.add_column(column, justify="right", no_wrap=True)
    made.add_column("note")
    for row in rows:
        if "error" in row:
            made.add_row(row["model"], "", "", "", "", "", escape(row["error"]))
            continue
        notes = ["[red]slower than dense[/red]"] if row["slower"] else []
        notes += ["unstable"] if row["unstable"] else []
        notes += [f"{row['subnormal_weights']} subnormal weights"] if row["subnormal_weights"] else []
        sizes = (f"{row['params']:,}", f"{row['nonzeros']:,}", f"{row['macs']:,}")
        median = "{:.3f} [{:.3f}, {:.3f}]".format(row["median_ms"], *row["interval_ms"])
        compared = "{:.3f} [{:.3f}, {:.3f}]".format(row["ratio"], *row["ratio_interval"])
        made.add_row(row["model"], *sizes, escape(median), escape(compared), ", ".join(notes))
    return made


def verdict(rows: Sequence[Row]) -> dict[str, Any]:
    """How many configurations there are, and in which of them each kind of network is slower than dense.

    Slower means that the whole interval of the ratio lies above 1. `not_reached` are the configurations without a
    network by latency.
    """
    found: dict[str, Any] = {"configurations": len({_configuration(row) for row in rows})}
    found["slower_than_dense"] = {
        name: [_configuration(row) for row in rows if row["model"] == name and row.get("slower")]
        for name in ROWS
        if name != DENSE and any(row["model"] == name for row in rows)
    }
    found["not_reached"] = [_configuration(row) for row in rows if "error" in row]
    return found


def summary(found: dict[str, Any]) -> str:
    """The verdict as sentences."""
    slower = found["slower_than_dense"]
    text = [
        f"{found['configurations']} configurations. Slower than dense, the whole interval of the ratio above 1:"
    ]
    text += [
        f"  {name}: {len(places)}" + (f" ({'; '.join(places)})" if places else "")
        for name, places in slower.items()
    ]
    if BY_MACS in slower and BY_LATENCY in slower:
        both = [place for place in slower[BY_LATENCY] if place in slower[BY_MACS]]
        text.append(f"Where the cut by MACs is slower, the one by latency is so {len(both)} times.")
    if found["not_reached"]:
        text.append(f"Not reached by latency: {'; '.join(found['not_reached'])}.")
    return "\n".join(text)


def plot(rows: Sequence[Row], path: Path) -> Path:
    """The plot's file: one panel for each network and runtime, the ratios to dense with their intervals."""
    shown = [row for row in rows if "error" not in row and row["model"] not in (DENSE, AGAIN)]
    panels = [
        (key, list(group)) for key, group in groupby(shown, lambda row: (row["network"], row["runtime"]))
    ]
    figure, axes = new_plot(len(panels))
    for axis, ((network, runtime), group) in zip(axes, panels, strict=True):
        places = list(dict.fromkeys((row["batch"], row["threads"]) for row in group))
        names = [name for name in ROWS if any(row["model"] == name for row in group)]
        for number, name in enumerate(names):
            own = [row for row in group if row["model"] == name]
            x = [
                places.index((row["batch"], row["threads"])) + 0.08 * (number - len(names) / 2) for row in own
            ]
            low = [max(0.0, row["ratio"] - row["ratio_interval"][0]) for row in own]
            high = [max(0.0, row["ratio_interval"][1] - row["ratio"]) for row in own]
            ratios = [row["ratio"] for row in own]
            marker = _MARKERS[number % len(_MARKERS)]
            axis.errorbar(x, ratios, yerr=[low, high], fmt=marker, markersize=4, label=name)
        axis.axhline(1.0, color="black", linewidth=0.8)
        axis.set_xticks(range(len(places)), [f"batch {b}, {t} threads" for b, t in places], fontsize=7)
        axis.set_title(f"{network}, {runtime}")
        axis.set_ylabel("latency to dense")
        axis.set_ylim(bottom=0.0)
    axes[0].legend(fontsize=6)
    return save_plot(figure, path)


def _configuration(row: Row) -> str:
    return f"{row['network']}, {row['runtime']}, batch {row['batch']}, {row['threads']} threads"
