"""How well forecasts predict whole networks: random prunings, forecast first, then measured beside the dense network.

Usage:
    python -m benchmarks.forecast
    python -m benchmarks.forecast --network resnet50 --prunings 10 --alignment 1 --out runs/forecast.json

For each network the forecast is learnt once. Then networks with random widths are forecast, made, converted and timed
by turns with the dense one: none of them had a part in what was learnt. The table has Spearman's rank correlation
between forecast and measured shares, and the median and 90th percentile of their relative error. Widths are multiples
of the alignment at which the runtime is fast (`--alignment 1` takes any).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr

import structprune as sp
from benchmarks.catalogue import factory
from benchmarks.command_line import parser_of, write
from benchmarks.environment import environment
from structprune.forecast import cut_to_counts, draw
from structprune.inputs import parse_inputs
from structprune.latency import ratio

__all__ = ["main"]

NETWORKS = ("resnet50", "mobilenet_v2", "efficientnet_b0", "vit_small")
_AT_ONCE = 10  # networks timed by turns with the dense one
_FIRST_SEED = 10_000  # far from those of the networks that are learnt from


def main(argv: Sequence[str] | None = None) -> int:
    """Prints one row for each network."""
    options = _parser().parse_args(argv)
    rows = []
    for name in options.network or NETWORKS:
        torch.manual_seed(options.seed)
        inputs = parse_inputs(options.input or ["1x3x224x224"], options.seed)
        rows.append({"network": name, **_row(factory(name)().eval(), inputs, options)})
        print(f"{name}: median error {rows[-1]['median_error']:.3f}", file=sys.stderr, flush=True)
    console = Console() if sys.stdout.isatty() else Console(width=140)
    console.print(_table(rows))
    document = {"runtime": options.runtime, "environment": environment(options.threads), "rows": rows}
    write(options.out, document)
    return 0


def _row(model: torch.nn.Module, inputs: Any, options: argparse.Namespace) -> dict[str, Any]:
    runtime = sp.Runtime(options.runtime, options.threads)
    forecast = sp.forecast_latency(model, inputs, runtime=runtime)
    graph = forecast.graph
    free = frozenset(i for i, g in enumerate(graph.groups) if g.frozen is None and g.primary)
    usual = int(np.median(list(forecast.alignment.values())))
    drawn = [
        draw(graph, free, options.alignment or usual, _FIRST_SEED + number)
        for number in range(options.prunings)
    ]
    pairs = []
    for start in range(0, len(drawn), _AT_ONCE):
        batch = drawn[start : start + _AT_ONCE]
        models = (model, *(cut_to_counts(model, graph, counts) for counts in batch))
        dense, *pruned = sp.measure_latency(
            models, inputs, runtime=runtime, repeats=15, min_time=options.min_time
        )
        for counts, one in zip(batch, pruned, strict=True):
            measured = ratio(one, dense)
            pairs.append((forecast(counts) / forecast.dense_ms, measured.value, measured.low, measured.high))
    found = np.array(pairs)
    errors = np.abs(found[:, 0] / found[:, 1] - 1)
    return {
        "alignment": options.alignment or usual,
        "profiles": len(forecast.samples),
        "rank_correlation": float(spearmanr(found[:, 0], found[:, 1]).statistic),
        "median_error": float(np.median(errors)),
        "p90_error": float(np.quantile(errors, 0.9)),
        "bias": float(np.median(found[:, 0] / found[:, 1]) - 1),
        "pairs": found.tolist(),
    }


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(pad_edge=False, show_edge=False)
    table.add_column("network", no_wrap=True)
    columns = ("prunings", "shares", "profiles", "widths by", "rank corr.", "median error", "90 %", "bias")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        shares = [pair[1] for pair in row["pairs"]]
        table.add_row(
            row["network"],
            str(len(shares)),
            f"{min(shares):.2f}-{max(shares):.2f}",
            str(row["profiles"]),
            str(row["alignment"]),
            f"{row['rank_correlation']:.3f}",
            *(f"{100 * row[key]:.1f} %" for key in ("median_error", "p90_error")),
            f"{100 * row['bias']:+.1f} %",
        )
    return table


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("forecast", __doc__)
    add = parser.add_argument
    add("--network", action="append", metavar="NAME", help=f"repeatable; {', '.join(NETWORKS)} if left out")
    add("--prunings", type=int, default=30, help="of each network")
    add("--alignment", type=int, help="widths are multiples of it; what the runtime is fast at if left out")
    add("--input", action="append", metavar="SPEC", help="1x3x224x224 if left out")
    add("--runtime", default="onnxruntime")
    add("--threads", type=int, default=1)
    add("--min-time", type=float, default=0.5, help="seconds of timed inferences for each network at least")
    add("--seed", type=int, default=0)
    add("--out", type=Path, metavar="FILE", help="write pairs and environment as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
