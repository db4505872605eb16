"""Plots, where matplotlib is installed (``pip install structprune[plot]``): nothing else needs it.

Figures are made without pyplot, so no window opens and nothing of the caller's matplotlib settings is changed.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING

from structprune.archive import replaced
from structprune.destinations import require_file
from structprune.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["PLOT_SUFFIXES", "new_plot", "require_plots", "save_plot"]

PLOT_SUFFIXES = (".pdf", ".png", ".svg")
_PANEL = (5.6, 3.8)  # inches


def require_plots(path: str | os.PathLike[str] | None = None) -> None:
    """Pass where plots can be drawn, and written to `path`; asked before the measuring, not after it.

    Raises:
        InputError: without matplotlib, for another ending than .pdf, .png or .svg, or a path that cannot be written.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError("plots need matplotlib, which is not installed: pip install structprune[plot]")
    if path is None:
        return
    file = Path(path)
    if file.suffix.lower() not in PLOT_SUFFIXES:
        raise InputError(f"a plot's file ends in {', '.join(PLOT_SUFFIXES)}, got {str(path)!r}")
    require_file(file, f"plot{file.suffix}")


def new_plot(panels: int = 1, columns: int = 2) -> tuple[Figure, list[Axes]]:
    """A figure and the axes of its `panels`, at most `columns` side by side.

    Raises:
        InputError: without matplotlib.
    """
    require_plots()
    from matplotlib.figure import Figure

    across = min(panels, columns)
    down = -(-panels // across)
    figure = Figure(figsize=(_PANEL[0] * across, _PANEL[1] * down), layout="constrained")
    axes = [figure.add_subplot(down, across, place + 1) for place in range(panels)]
    for one in axes:
        one.grid(visible=True, alpha=0.3)
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def save_plot(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """The path of the figure's file, whose ending names the format; the same figure gives the same bytes.

    The folder of the file is made.

    Raises:
        InputError: for a path that cannot be written.
        StorageError: where the system refuses it only then, as on a full disk.
    """
    require_plots(path)
    import matplotlib

    file = Path(path)
    dates = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}
    kind = file.suffix.lower()
    with (
        replaced(file) as staged,
        matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "structprune"}),
    ):
        figure.savefig(staged, format=kind.removeprefix("."), metadata=dates.get(kind), dpi=150)
    return file
