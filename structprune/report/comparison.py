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
    """One network's size: `params`, the `nonzero` ones, `macs` of one forward, `bytes` of its state."""

    params: int
    nonzero: int
    macs: int
    fvcore: FvcoreFigure
    bytes: int

    def document(self) -> dict[str, Any]:
        """The same as plain data."""
        return {
            "params": self.params,
            "nonzero": self.nonzero,
            "macs": self.macs,
            "flops": 2 * self.macs,
            "bytes": self.bytes,
            "fvcore": self.fvcore.document(),
        }


def network_size(model: nn.Module, example_inputs: Any) -> NetworkSize:
    """The size of a network; MACs are those of a forward on `example_inputs`, its batch included.

    `bytes` is of the state as `save` writes it: each tensor once, however often it is shared.
    """
    state = {t.data_ptr(): t for t in model.state_dict().values() if t.numel()}.values()
    return NetworkSize(
        params=sp.count_params(model),
        nonzero=sum(int(p.count_nonzero()) for p in model.parameters()),
        macs=sp.count_macs(model, example_inputs),
        fvcore=fvcore_figure(model, example_inputs),
        bytes=sum(t.numel() * t.element_size() for t in state),
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
    table.add_row(
        "weights",
        format_bytes(before.bytes),
        format_bytes(after.bytes),
        format_share(after.bytes, before.bytes),
    )
    return table


def _count(value: int | None) -> str:
    return "not available" if value is None else format_count(value)


def comparison_document(before: NetworkSize, after: NetworkSize) -> dict[str, Any]:
    """The same as plain data."""
    return {"before": before.document(), "after": after.document()}
