"""A network before and after a cut, side by side: own counts, fvcore's figures, bytes of weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.table import Table
from torch import nn

import structprune as sp
from structprune.report.fvcore_figure import FvcoreFigure, fvcore_figure
from structprune.report.numbers import format_bytes, format_count, format_share

__all__ = ["NetworkSize", "comparison_document", "comparison_table", "network_size"]


@dataclass(frozen=True)
class NetworkSize:
    """One network's size: `params`, the `nonzero` ones, `macs` of a forward, and the memory that it takes."""

    params: int
    nonzero: int
    macs: int
    fvcore: FvcoreFigure
    weight_bytes: int
    peak_activation_bytes: int

    def document(self) -> dict[str, Any]:
        """The same as plain data."""
        return {
            "params": self.params,
            "nonzero": self.nonzero,
            "macs": self.macs,
            "flops": 2 * self.macs,
            "weight_bytes": self.weight_bytes,
            "peak_activation_bytes": self.peak_activation_bytes,
            "fvcore": self.fvcore.document(),
        }


def network_size(model: nn.Module, example_inputs: Any) -> NetworkSize:
    """The size of a network; MACs and activations are those of a forward on `example_inputs`, its batch included."""
    return NetworkSize(
        params=sp.count_params(model),
        nonzero=sp.nonzeros(model),
        macs=sp.count_macs(model, example_inputs),
        fvcore=fvcore_figure(model, example_inputs),
        weight_bytes=sp.weight_bytes(model),
        peak_activation_bytes=sp.peak_activation_bytes(model, example_inputs),
    )


def comparison_table(before: NetworkSize, after: NetworkSize) -> Table:
    """Params, non-zeros, MACs (own and fvcore's) and bytes; before, after and the share that remains."""
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("")
    for column in ("before", "after", "remains"):
        table.add_column(column, justify="right", no_wrap=True)
    rows = (
        ("params", before.params, after.params),
        ("non-zero params", before.nonzero, after.nonzero),
        ("MACs (x 2 = FLOPs)", before.macs, after.macs),
        ("MACs by fvcore", before.fvcore.macs, after.fvcore.macs),
    )
    for name, old, new in rows:
        table.add_row(
            name, _count(old), _count(new), "-" if old is None or new is None else format_share(new, old)
        )
    for name, old, new in (
        ("weights", before.weight_bytes, after.weight_bytes),
        ("peak activations", before.peak_activation_bytes, after.peak_activation_bytes),
    ):
        table.add_row(name, format_bytes(old), format_bytes(new), format_share(new, old))
    return table


def _count(value: int | None) -> str:
    return "not available" if value is None else format_count(value)


def comparison_document(before: NetworkSize, after: NetworkSize) -> dict[str, Any]:
    """The same as plain data."""
    return {"before": before.document(), "after": after.document()}
