"""How a latency budget was met, kernel by kernel: measured before, forecast and measured after."""

from __future__ import annotations

import math

from rich.table import Table

import structprune as sp

__all__ = ["layers_table"]


def layers_table(report: sp.LatencyReport, most: int = 20) -> Table:
    """The `most` slowest kernels of the dense network by the runtime's names, the others in one row, and the whole."""
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("kernel, ms", overflow="fold")
    for column in ("dense", "forecast", "measured"):
        table.add_column(column, justify="right", no_wrap=True)
    ordered = sorted(report.layers.items(), key=lambda item: -_known(item[1].dense_ms))
    for name, layer in ordered[:most]:
        table.add_row(name, *map(_ms, (layer.dense_ms, layer.forecast_ms, layer.measured_ms)))
    rest = [layer for _, layer in ordered[most:]]
    if rest:
        columns = zip(*((one.dense_ms, one.forecast_ms, one.measured_ms) for one in rest), strict=True)
        table.add_row(f"{len(rest)} others", *(_ms(sum(map(_known, column))) for column in columns))
    table.add_section()
    forecast = report.forecast * report.dense.median_ms
    table.add_row("whole network", *map(_ms, (report.dense.median_ms, forecast, report.pruned.median_ms)))
    return table


def _known(ms: float) -> float:
    return 0.0 if math.isnan(ms) else ms


def _ms(ms: float) -> str:
    return "-" if math.isnan(ms) else f"{ms:.3f}"
