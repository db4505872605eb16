"""Sensitivities for people: a table and a plot, one row and one line for each knob."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table
from rich.text import Text

import structprune as sp
from structprune.report.plots import new_plot

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from structprune.sensitivity import Curve

__all__ = ["sensitivity_plot", "sensitivity_table"]

_SHARES = (0.9, 0.75, 0.5, 0.25, 0.1)
_LINES = 10  # in one panel: as many as there are colours


def sensitivity_table(found: sp.Sensitivity) -> Table:
    """One row for each knob, what costs most at half of its channels first: by how much the loss rises at shares of
    its channels.
    """
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("group", overflow="fold")
    table.add_column("channels", justify="right", no_wrap=True)
    for share in _SHARES:
        table.add_column(f"{share:.0%}", justify="right", no_wrap=True)
    for curve in _costliest(found):
        rises = [f"{curve.rises[max(round(share * curve.size), 1) - 1]:.3g}" for share in _SHARES]
        table.add_row(Text(curve.name), str(curve.size), *rises)
    return table


def sensitivity_plot(found: sp.Sensitivity) -> Figure:
    """The loss against the share of the channels that a knob keeps, ten knobs in a panel, what costs most first; and
    the forecast against the measured loss of the joint plans.

    Raises:
        InputError: without matplotlib.
    """
    curves = _costliest(found)
    parts = [curves[start : start + _LINES] for start in range(0, len(curves), _LINES)]
    figure, panels = new_plot(len(parts) + bool(found.joint))
    for axes, part in zip(panels, parts, strict=False):
        for curve in part:
            shares = np.arange(1, curve.size + 1) / curve.size
            (line,) = axes.plot(shares, found.whole + curve.rises, linewidth=1, label=curve.name)
            axes.plot(
                np.array(curve.widths) / curve.size, curve.losses, "o", color=line.get_color(), markersize=3
            )
        axes.set_xlabel("share of the channels that is kept")
        axes.set_ylabel(found.loss)
        axes.legend(fontsize=6)
    if found.joint:
        measured = [one.loss for one in found.joint]
        forecasts = [found.forecast(one.counts) for one in found.joint]
        ends = [min(measured + forecasts), max(measured + forecasts)]
        panels[-1].plot(ends, ends, color="0.7", linewidth=1)
        panels[-1].plot(measured, forecasts, "o", markersize=4)
        known = "" if math.isnan(found.agreement) else f", rank correlation {found.agreement:.2f}"
        panels[-1].set_title(f"plans over all groups{known}", fontsize=10)
        panels[-1].set_xlabel(f"{found.loss}, measured")
        panels[-1].set_ylabel(f"{found.loss}, forecast")
    return figure


def _costliest(found: sp.Sensitivity) -> Sequence[Curve]:
    return sorted(found.curves, key=lambda curve: -curve.rises[max(round(curve.size / 2), 1) - 1])
