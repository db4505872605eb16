"""Latency of a network and of its cuts, by runtime, batch size and threads.

Usage:
    python -m benchmarks.latency
    python -m benchmarks.latency --network mobilenet_v2 --macs 0.9 --batch 1 --threads 1 --out runs/latency.json
    python -m benchmarks.latency --network package.module:factory --input 1x3x64x64 --row "by latency"

The rows of a table are timed by turns in one call:
- dense, and dense again: how far its ratio lies from 1, and how wide its interval is, is the noise of the machine;
- by MACs: structprune's cut at a share of the MACs, `--macs`;
- by latency: structprune's cut at a share of the latency, `--latency` (the same number if left out), on this very
  runtime, batch size and thread count; where it cannot be reached, the row says why;
- unstructured: as many weights left as in the cut by MACs, the others zero;
- torch-pruning: uniform and global, widths rounded to 8 and 16, its pruning ratio set so that its MACs are the nearest
  to those of the cut by MACs.
Weights are those of the factory. A network by latency is chosen anew for each configuration, from some twenty profiles
(kept on disk) and up to eight measurements: that is most of the time this takes, so choose rows and configurations.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

import structprune as sp
from benchmarks.catalogue import factory
from benchmarks.command_line import parser_of, write
from benchmarks.environment import environment
from benchmarks.latency_rows import BY_LATENCY, DENSE, ROWS, by_latency, counts, twins
from benchmarks.latency_table import plot, summary, table, verdict
from structprune.inputs import parse_inputs
from structprune.latency import ratio
from structprune.report import require_plots

__all__ = ["main", "measure"]

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a table for each network, runtime, batch size and thread count, and writes them; the exit status."""
    options = _parser().parse_args(argv)
    if options.plot is not None:
        require_plots(options.plot)
    console = Console() if sys.stdout.isatty() else Console(width=140)  # a log has no width of its own
    rows: list[dict[str, Any]] = []
    for name in options.network or ["resnet18", "mobilenet_v2"]:
        torch.manual_seed(options.seed)
        inputs = parse_inputs(options.input or ["1x3x224x224"], options.seed)
        for runtime, measured in _of_network(factory(name)().eval(), inputs, options):
            rows += [{"network": name, **row} for row in measured]
            console.print(table(f"{name}, {runtime}, batch {runtime.batch}", measured))
    found = verdict(rows)
    console.print(summary(found), markup=False, highlight=False)
    document = {"macs": options.macs, "latency": options.latency or options.macs, "summary": found}
    document |= {"environment": environment(max(options.threads or [1])), "rows": rows}
    write(options.out, document)
    if options.plot is not None:
        plot(rows, options.plot)
    return 0


def _of_network(model: nn.Module, inputs: Inputs, options: argparse.Namespace) -> Any:
    """(runtime, rows) of each configuration, one after the other."""
    wanted = options.row or ROWS
    models = twins(model, inputs, options.macs, wanted)
    sizes = {name: counts(one, inputs) for name, one in models.items()}
    configurations = product(
        options.runtime or ["torch", "onnxruntime"], options.batch or [1, 4], options.threads or [1, 2]
    )
    for name, batch, threads in configurations:
        runtime = sp.Runtime(name, threads, batch)
        timed, missing = dict(models), []
        if BY_LATENCY in wanted:
            found = by_latency(model, inputs, options.latency or options.macs, runtime)
            if isinstance(found, nn.Module):
                timed[BY_LATENCY], sizes[BY_LATENCY] = found, counts(found, inputs)
            else:
                settings = {"runtime": name, "batch": batch, "threads": threads}
                missing = [{"model": BY_LATENCY, "error": found, **settings}]
        timed = {row: timed[row] for row in ROWS if row in timed}
        repeats = {"repeats": options.repeats, "min_time": options.min_time, "seed": options.seed}
        measured = measure(timed, inputs, runtime=runtime, **repeats)
        yield runtime, [row | sizes[row["model"]] for row in measured] + missing


def measure(models: dict[str, nn.Module], inputs: Inputs, **settings: Any) -> list[dict[str, Any]]:
    """One row for each model, timed by turns: latency, its ratio to the first with an interval, and whether it is
    slower: all of the interval above 1.
    """
    measured = sp.measure_latency(models, inputs, **settings)
    base = next(iter(measured.values()))
    rows = []
    for name in models:
        compared = ratio(measured[name], base)
        row = {
            "model": name,
            "ratio": compared.value,
            "ratio_interval": [compared.low, compared.high],
            "slower": name != DENSE and compared.low > 1.0,
            **measured[name].to_dict(),
        }
        del row["environment"], row["session"]  # said once, at the top of the document
        rows.append(row)
    return rows


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("latency", __doc__)
    add = parser.add_argument
    add(
        "--network", action="append", metavar="NAME", help="repeatable; resnet18 and mobilenet_v2 if left out"
    )
    add("--input", action="append", metavar="SPEC", help="1x3x224x224 if left out")
    add("--macs", type=float, default=0.5, help="the share of MACs that the cut by MACs leaves")
    add(
        "--latency",
        type=float,
        help="the share of the latency that the cut by latency leaves; --macs if left out",
    )
    add("--row", action="append", choices=ROWS, help="repeatable; all if left out. Dense is always there")
    add("--runtime", action="append", help="repeatable; torch and onnxruntime if left out")
    add("--batch", action="append", type=int, help="repeatable; 1 and 4 if left out")
    add("--threads", action="append", type=int, help="repeatable; 1 and 2 if left out")
    add("--repeats", type=int, default=50, help="rounds at least")
    add("--min-time", type=float, default=1.0, help="seconds of timed inferences for each model at least")
    add("--seed", type=int, default=0)
    add("--out", type=Path, metavar="FILE", help="write raw times and environment as JSON")
    add("--plot", type=Path, metavar="FILE", help="draw the ratios (.pdf, .png or .svg); needs matplotlib")
    return parser


if __name__ == "__main__":
    sys.exit(main())
