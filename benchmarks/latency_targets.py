"""Latency budgets: what was asked for, what was measured, and how long it took to get there.

Usage:
    python -m benchmarks.latency_targets
    python -m benchmarks.latency_targets --network resnet50 --share 0.5 --runtime torch --out runs/targets.json

A row is met where the measured share of the dense network's latency, both timed by turns, is at most what was asked for
and no more than 3 % under. Weights are random: latency does not depend on them. Profiles that an earlier run left are
used again (`--fresh` takes all anew).
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import structprune as sp
from benchmarks.catalogue import factory
from benchmarks.command_line import parser_of, write
from benchmarks.environment import environment
from structprune.inputs import parse_inputs

__all__ = ["main"]

NETWORKS = ("resnet50", "mobilenet_v2", "efficientnet_b0", "convnext_tiny", "vit_small")
SHARES = (0.75, 0.5, 0.33)
_UNDER = 0.97


def main(argv: Sequence[str] | None = None) -> int:
    """Prints one row for each network and share; 1 where one of them was not met."""
    options = _parser().parse_args(argv)
    console = Console() if sys.stdout.isatty() else Console(width=140)
    with tempfile.TemporaryDirectory() as folder:
        if options.fresh:
            os.environ["STRUCTPRUNE_CACHE"] = folder
        rows = []
        for name in options.network or NETWORKS:
            torch.manual_seed(options.seed)
            model, inputs = (
                factory(name)().eval(),
                parse_inputs(options.input or ["1x3x224x224"], options.seed),
            )
            for share in options.share or SHARES:
                rows.append({"network": name, **_row(model, inputs, share, options)})
                print(_line(rows[-1]), file=sys.stderr, flush=True)
    console.print(_table(rows))
    met = sum(row["met"] for row in rows)
    console.print(f"{met} of {len(rows)} within [-3 %, 0 %] of what was asked")
    document = {"runtime": options.runtime, "environment": environment(options.threads), "rows": rows}
    write(options.out, document)
    return 0 if met == len(rows) else 1


def _row(model: torch.nn.Module, inputs: Any, share: float, options: argparse.Namespace) -> dict[str, Any]:
    budget = sp.Budget(latency=share, runtime=options.runtime, threads=options.threads)
    start = time.perf_counter()
    row: dict[str, Any] = {"asked": share, "met": False}
    try:
        result = sp.prune(model, inputs, budget)
    except sp.BudgetError as error:
        return {**row, "seconds": time.perf_counter() - start, "error": str(error)}
    row["seconds"] = time.perf_counter() - start
    latency = result.report.latency
    assert latency is not None
    return {
        **row,
        "met": share * _UNDER <= latency.ratio.value <= share,
        "measured": latency.ratio.value,
        "interval": [latency.ratio.low, latency.ratio.high],
        "turns": [[turn.forecast, turn.measured.value] for turn in latency.turns],
        "forecast_error": latency.forecast_error,
        "macs": result.report.macs_after / result.report.macs_before,
        "dense_ms": latency.dense.median_ms,
        "pruned_ms": latency.pruned.median_ms,
        "proof": str(result.report.verify),
    }


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(pad_edge=False, show_edge=False)
    table.add_column("network", no_wrap=True)
    for column in (
        "asked",
        "measured [95 %]",
        "off",
        "dense ms",
        "MACs left",
        "choices",
        "first forecast",
        "s",
    ):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        if "error" in row:
            table.add_row(
                row["network"], f"{row['asked']:g}", "not reached", *["-"] * 5, f"{row['seconds']:.0f}"
            )
            continue
        forecast, measured = row["turns"][0]
        table.add_row(
            row["network"],
            f"{row['asked']:g}",
            escape("{:.3f} [{:.3f}, {:.3f}]".format(row["measured"], *row["interval"])),
            f"{100 * (row['measured'] / row['asked'] - 1):+.1f} %",
            f"{row['dense_ms']:.2f}",
            f"{row['macs']:.3f}",
            str(len(row["turns"])),
            f"{100 * (forecast / measured - 1):+.1f} %",
            f"{row['seconds']:.0f}",
        )
    return table


def _line(row: dict[str, Any]) -> str:
    found = row.get("error") or f"measured {row['measured']:.3f}, choices {row['turns']}"
    return f"{row['network']} {row['asked']:g}: {found} ({row['seconds']:.0f} s)"


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("latency_targets", __doc__)
    add = parser.add_argument
    add("--network", action="append", metavar="NAME", help=f"repeatable; {', '.join(NETWORKS)} if left out")
    add("--share", action="append", type=float, help="repeatable; 0.75, 0.5 and 0.33 if left out")
    add("--input", action="append", metavar="SPEC", help="1x3x224x224 if left out")
    add("--runtime", default="onnxruntime")
    add("--threads", type=int, default=1)
    add("--fresh", action="store_true", help="take all profiles anew, and keep none")
    add("--seed", type=int, default=0)
    add("--out", type=Path, metavar="FILE", help="write rows and environment as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
