"""What structprune found and did: tables for people, plain documents for pipelines, fvcore's count beside."""

from __future__ import annotations

from structprune.report.comparison import NetworkSize, comparison_document, comparison_table, network_size
from structprune.report.fvcore_figure import FvcoreFigure, fvcore_figure, fvcore_line
from structprune.report.graph import Coverage, coverage, graph_document, graph_table, types_table
from structprune.report.latency import layers_table
from structprune.report.plots import new_plot, require_plots, save_plot
from structprune.report.sensitivity import sensitivity_plot, sensitivity_table
from structprune.report.staircase import staircase_document, staircase_plot, staircase_table

__all__ = [
    "Coverage",
    "FvcoreFigure",
    "NetworkSize",
    "comparison_document",
    "comparison_table",
    "coverage",
    "fvcore_figure",
    "fvcore_line",
    "graph_document",
    "graph_table",
    "layers_table",
    "network_size",
    "new_plot",
    "require_plots",
    "save_plot",
    "sensitivity_plot",
    "sensitivity_table",
    "staircase_document",
    "staircase_plot",
    "staircase_table",
    "types_table",
]
