"""Staircases for people: a table, a plot, and the same as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.table import Table

import structprune as sp
from structprune.report.plots import new_plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["staircase_document", "staircase_plot", "staircase_table"]


def staircase_table(staircase: sp.Staircase) -> Table:
    """The steps in the order of their widths: what the group's kernels take before and after each."""
    table = Table(show_edge=False, pad_edge=False)
    for column in ("step", "ms before", "ms after", "change"):
        table.add_column(column, justify="right", no_wrap=True)
    places = {point.width: place for place, point in enumerate(staircase.stairs.points)}
    for step in staircase.stairs.steps:
        after = staircase.stairs.points[places[step.width] + 1].width
        change = f"{step.after_ms / step.before_ms - 1:+.1%}" if step.before_ms else "-"
        table.add_row(f"{step.width} | {after}", f"{step.before_ms:.4f}", f"{step.after_ms:.4f}", change)
    return table


def staircase_plot(staircases: Sequence[sp.Staircase]) -> Figure:
    """One panel for each staircase: the group's kernels at the widths that were measured, steps marked.

    Raises:
        InputError: without matplotlib.
    """
    figure, panels = new_plot(len(staircases))
    for axes, staircase in zip(panels, staircases, strict=True):
        _draw(axes, staircase)
    return figure


def _draw(axes: Axes, staircase: sp.Staircase) -> None:
    points = staircase.stairs.points
    widths = [point.width for point in points]
    axes.plot(widths, [point.ms for point in points], "o-", markersize=3, linewidth=1, label="its kernels")
    axes.plot(
        widths,
        [point.ms for point in staircase.whole],
        ".:",
        color="0.6",
        markersize=3,
        label="whole network",
    )
    for n, step in enumerate(step for step in staircase.stairs.steps if step.up):
        label = "steps up" if n == 0 else None
        axes.plot([step.width], [step.before_ms], "v", color="tab:red", markersize=5, label=label)
    pattern = f"low at multiples of {staircase.alignment}" if (staircase.alignment or 1) > 1 else "no pattern"
    axes.set_title(f"{staircase.group}: {pattern}", fontsize=10)
    axes.set_xlabel("channels")
    axes.set_ylabel(f"ms on {staircase.runtime.name}, {staircase.runtime.threads} thread(s)")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)


def staircase_document(staircase: sp.Staircase) -> dict[str, Any]:
    """The same as plain data."""
    stairs = staircase.stairs
    whole = {point.width: point for point in staircase.whole}
    return {
        "group": staircase.group,
        "channels": staircase.size,
        **staircase.runtime.settings(),
        "kernels": list(staircase.kernels),
        "alignment": stairs.alignment,
        "noise": stairs.noise,
        "measurements": stairs.visits,
        "points": [
            {
                "width": point.width,
                "ms": point.ms,
                "times_ms": list(point.times),
                "whole_ms": whole[point.width].ms,
            }
            for point in stairs.points
        ],
        "steps": [asdict(step) for step in stairs.steps],
        "open": [list(pair) for pair in stairs.open],
    }
