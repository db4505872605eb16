"""The points of a sweep as a table and as a plot."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.table import Table

import structprune as sp
from structprune.report.plots import new_plot, save_plot

__all__ = ["plot_sweep", "sweep_table"]

_SHARES = (("MACs", "macs"), ("params", "params"), ("peak memory", "peak_memory"), ("bytes", "file_size"))


def sweep_table(points: Sequence[sp.SweepPoint]) -> Table:
    """One row for each budget: the importance it keeps, what remains of each quantity, its latency."""
    timed = any(point.forecast is not None for point in points)
    measured = any(point.measured is not None for point in points)
    lossy = any(point.loss is not None for point in points)
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("budget", no_wrap=True)
    columns = [*["loss, forecast"] * lossy, "importance kept", *(name for name, _ in _SHARES)]
    columns += ["latency, forecast"] * timed + ["latency, measured"] * measured
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for point in points:
        asked = ", ".join(map(str, point.budget.limits))
        if point.plan is None or point.remaining is None:
            table.add_row(asked, "not met")
            continue
        cells = ["-" if point.loss is None else f"{point.loss:.3g}"] * lossy
        cells += [_share(point.importance), *(_share(point.remaining.get(key)) for _, key in _SHARES)]
        cells += [_share(point.forecast)] * timed
        cells += ["-" if point.measured is None else str(point.measured)] * measured
        table.add_row(asked, *cells)
    return table


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def plot_sweep(points: Sequence[sp.SweepPoint], path: str | os.PathLike[str]) -> Path:
    """The file of a plot of the importance kept: against the MACs that remain, and against the latency where it is
    known; one line for each set of quantities that budgets bound.

    Raises:
        InputError: without matplotlib, or for a path that cannot be written.
    """
    met = [point for point in points if point.plan is not None]
    panels: list[tuple[str, Callable[[sp.SweepPoint], float | None]]] = [
        ("MACs, share of the original's", _macs)
    ]
    if any(point.measured is not None for point in met):
        panels.append(("latency, share of dense, measured", _measured))
    elif any(point.forecast is not None for point in met):
        panels.append(("latency, share of dense, forecast", _forecast))
    figure, axes = new_plot(len(panels))
    for one, (label, across) in zip(axes, panels, strict=True):
        for name, line in _lines(met).items():
            ends = sorted((x, point.importance or 0.0) for point in line if (x := across(point)) is not None)
            one.plot([x for x, _ in ends], [y for _, y in ends], marker="o", label=f"budgets of {name}")
        one.set_xlabel(label)
        one.set_ylabel("importance kept")
        if met:
            one.legend()
    return save_plot(figure, path)


def _macs(point: sp.SweepPoint) -> float | None:
    return (point.remaining or {}).get("macs")


def _forecast(point: sp.SweepPoint) -> float | None:
    return point.forecast


def _measured(point: sp.SweepPoint) -> float | None:
    return None if point.measured is None else point.measured.value


def _lines(points: Sequence[sp.SweepPoint]) -> dict[str, list[sp.SweepPoint]]:
    lines: dict[str, list[sp.SweepPoint]] = {}
    for point in points:
        name = ", ".join(limit.quantity.replace("_", " ") for limit in point.budget.limits)
        lines.setdefault(name, []).append(point)
    return lines
