"""Latency of a network: dense, cut by structure, and sparse with as many weights, by runtime and batch size.

Usage:
    python -m benchmarks.latency
    python -m benchmarks.latency --network mobilenet_v2 --macs 0.5 --batch 1 --batch 8 --out runs/latency.json
    python -m benchmarks.latency --network package.module:factory --input 1x3x64x64 --runtime torch

The four rows of a table are timed by turns in one call. "dense again" is the dense network a second time: how
far its ratio lies from 1, and how wide its interval is, is the noise of the machine. Weights are those of the
factory.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import nn

import structprune as sp
from benchmarks.environment import environment
from benchmarks.networks import NETWORKS
from structprune.inputs import parse_inputs
from structprune.latency import ratio

__all__ = ["main", "measure", "twins"]

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a table for each network, runtime and batch size, and writes them as JSON; the exit status."""
    options = _parser().parse_args(argv)
    console = Console() if sys.stdout.isatty() else Console(width=140)  # a log has no width of its own
    rows: list[dict[str, Any]] = []
    for name in options.network or ["resnet18", "mobilenet_v2"]:
        torch.manual_seed(options.seed)
        inputs = parse_inputs(options.input or ["1x3x224x224"], options.seed)
        models = twins(_factory(name)().eval(), inputs, options.macs)
        sizes = {twin: counts(model, inputs) for twin, model in models.items()}
        for runtime in options.runtime or ["torch", "onnxruntime"]:
            for batch in options.batch or [1, 4]:
                settings = {"runtime": runtime, "batch": batch, "threads": options.threads}
                settings |= {"repeats": options.repeats, "min_time": options.min_time, "seed": options.seed}
                measured = [row | sizes[row["model"]] for row in measure(models, inputs, **settings)]
                rows += [{"network": name, **row} for row in measured]
                console.print(
                    _table(f"{name}, {runtime}, batch {batch}, {options.threads} thread(s)", measured)
                )
    if options.out is not None:
        document = {"macs": options.macs, "environment": environment(options.threads), "rows": rows}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(document, indent=1) + "\n")
    return 0


def twins(model: nn.Module, inputs: Inputs, macs: float) -> dict[str, nn.Module]:
    """The dense network twice, its structured cut at `macs`, and a sparse one with as many weights left."""
    structured = sp.prune(model, inputs, sp.Budget(macs=macs)).model
    return {
        "dense": model,
        "dense again": model,
        "structured": structured,
        "unstructured": _sparse(model, sp.nonzeros(structured)),
    }


def _sparse(model: nn.Module, remaining: int) -> nn.Module:
    """A twin with `remaining` non-zero parameters, one more a layer at most: the largest of each layer."""
    dense = sp.nonzeros(model)
    trial = dense - sp.nonzeros(sp.finalize(sp.sparsify(model, sparsity=0.5, scope="layer")))
    maskable = 2 * trial  # half of what sparsify may mask was zeroed
    sparsity = min(max((dense - remaining) / maskable, 0.0), 1.0 - 1.0 / maskable)
    return sp.finalize(sp.sparsify(model, sparsity=sparsity, scope="layer"))


def counts(model: nn.Module, inputs: Inputs) -> dict[str, Any]:
    """The model's parameters, those that are not zero, and its MACs for one inference."""
    params, macs = sp.count_params(model), sp.count_macs(model, inputs)
    return {"params": params, "nonzeros": sp.nonzeros(model), "macs": macs}


def measure(models: dict[str, nn.Module], inputs: Inputs, **settings: Any) -> list[dict[str, Any]]:
    """One row for each model, timed by turns: latency, and its ratio to the first with an interval."""
    measured = sp.measure_latency(models, inputs, **settings)
    base = next(iter(measured.values()))
    rows = []
    for name in models:
        compared = ratio(measured[name], base)
        row = {
            "model": name,
            "ratio": compared.value,
            "ratio_interval": [compared.low, compared.high],
            **measured[name].to_dict(),
        }
        del row["environment"], row["session"]  # said once, at the top of the document
        rows.append(row)
    return rows


def _table(title: str, rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(title=title, title_justify="left", pad_edge=False, show_edge=False)
    table.add_column("model", no_wrap=True)
    for column in ("params", "non-zeros", "MACs", "median ms [95 %]", "to dense [95 %]"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("note")
    for row in rows:
        notes = ["unstable"] if row["unstable"] else []
        notes += [f"{row['subnormal_weights']} subnormal weights"] if row["subnormal_weights"] else []
        sizes = (f"{row['params']:,}", f"{row['nonzeros']:,}", f"{row['macs']:,}")
        median = "{:.3f} [{:.3f}, {:.3f}]".format(row["median_ms"], *row["interval_ms"])
        compared = "{:.3f} [{:.3f}, {:.3f}]".format(row["ratio"], *row["ratio_interval"])
        table.add_row(row["model"], *sizes, escape(median), escape(compared), ", ".join(notes))
    return table


def _factory(name: str) -> Callable[[], nn.Module]:
    if name in NETWORKS:
        return NETWORKS[name][0]
    module, separator, attribute = name.partition(":")
    if not separator:
        raise SystemExit(f"network {name!r}: give package.module:factory or one of {', '.join(NETWORKS)}")
    factory: Callable[[], nn.Module] = getattr(importlib.import_module(module), attribute)
    return factory


def _parser() -> argparse.ArgumentParser:
    summary, _, details = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.latency",
        description=summary,
        epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--network", action="append", metavar="NAME", help="repeatable; resnet18 and mobilenet_v2 if left out"
    )
    add("--input", action="append", metavar="SPEC", help="1x3x224x224 if left out")
    add("--macs", type=float, default=0.5, help="the share of MACs that the structured cut leaves")
    add("--runtime", action="append", help="repeatable; torch and onnxruntime if left out")
    add("--batch", action="append", type=int, help="repeatable; 1 and 4 if left out")
    add("--threads", type=int, default=1)
    add("--repeats", type=int, default=50, help="rounds at least")
    add("--min-time", type=float, default=1.0, help="seconds of timed inferences for each model at least")
    add("--seed", type=int, default=0)
    add("--out", type=Path, metavar="FILE", help="write raw times and environment as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
