"""The demo's one table, and the same figures as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table

from structprune.demo.networks import Candidate
from structprune.latency import Measurement

__all__ = ["Row", "document", "table"]


@dataclass(frozen=True)
class Row:
    """A network and its figures: MACs of one image, bytes of the ONNX file, latency per runtime."""

    candidate: Candidate
    params: int
    nonzeros: int
    macs: int
    onnx_bytes: int
    onnx_error: float
    latency: Mapping[str, Measurement]


def table(rows: Sequence[Row]) -> Table:
    """One row per network, within 80 columns; latencies are medians over their 95 % intervals."""
    made = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False, caption_justify="left")
    made.caption = _caption(rows)
    made.add_column("network", no_wrap=True)
    for heading in (
        "acc.\nbefore",
        "acc.\ncut",
        "acc.\ntuned",
        "params\nnon-zero",
        "MACs\nONNX",
        "torch\nms",
        "onnxruntime\nms",
        "proof\nerror",
    ):
        made.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        made.add_row(*_cells(row))
    return made


def document(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows as plain data, with raw times and the training metrics."""
    return [
        {
            "network": row.candidate.name,
            "accuracy_before": row.candidate.accuracy_before,
            "accuracy_cut": row.candidate.accuracy_cut,
            "accuracy_after": row.candidate.accuracy_after,
            "params": row.params,
            "nonzeros": row.nonzeros,
            "macs": row.macs,
            "flops": 2 * row.macs,
            "onnx_bytes": row.onnx_bytes,
            "onnx_error": row.onnx_error,
            "proof_error": row.candidate.proof_error,
            "latency": {runtime: measured.to_dict() for runtime, measured in row.latency.items()},
            "history": row.candidate.history,
        }
        for row in rows
    ]


def _cells(row: Row) -> tuple[str, ...]:
    made = row.candidate
    return (
        made.name,
        _percent(made.accuracy_before),
        _percent(made.accuracy_cut),
        _percent(made.accuracy_after),
        f"{row.params:,}\n{row.nonzeros:,}",
        f"{row.macs / 1e6:.2f} M\n{row.onnx_bytes / 1e6:.2f} MB",
        _latency(row.latency["torch"]),
        _latency(row.latency["onnxruntime"]),
        "-" if made.proof_error is None else f"{made.proof_error:.0e}",
    )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def _latency(measured: Measurement) -> str:
    low, high = measured.interval_ms
    mark = "~" if measured.unstable else ""
    return f"{mark}{_short(measured.median_ms)}\n[dim]{_short(low)}-{_short(high)}[/dim]"


def _short(ms: float) -> str:
    """Milliseconds in five characters at most (below 100 seconds)."""
    return f"{ms:.{max(0, 3 - len(str(int(ms))))}f}" if ms >= 1 else f"{ms:.3f}"


def _caption(rows: Sequence[Row]) -> str:
    measured = next(iter(rows[0].latency.values()))
    threads = f"{measured.threads} thread{'s' if measured.threads > 1 else ''}"
    text = (
        "acc.: accuracy on the test images in %, of the dense network, right after the cut, and fine-tuned. "
        f"ms: latency of {measured.batch} images on {threads}, networks timed by turns, median and its 95 % "
        "interval. MACs are those of one image; 1 MAC = 2 FLOPs. The proof's error is the largest relative "
        "difference between the pruned network and the masked original, in float64, before fine-tuning."
    )
    unstable = any(m.unstable for row in rows for m in row.latency.values())
    return f"{text} ~ marks latencies that varied much: the machine was busy." if unstable else text
