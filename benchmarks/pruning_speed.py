"""Time from a model to its pruned model, structprune and torch-pruning by turns in one process.

Usage:
    python -m benchmarks.pruning_speed
    python -m benchmarks.pruning_speed --network resnet50 --turns 9 --out runs/pruning_speed.json

Both cut half of every layer's channels by their L2 norm. structprune is timed over trace, score, select
and apply; torch-pruning over its pruner's constructor, which builds the dependency graph, and one step.
Each turn runs both on fresh copies, in alternating order; the copies are not timed. A ratio is the median
of the ratios within turns, with the smallest and the largest beside it. The proof (`verify`) is timed by
itself, in forward passes of the same model.
"""

from __future__ import annotations

import argparse
import copy
import gc
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch_pruning as tp
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import structprune as sp
from benchmarks.command_line import parser_of, write
from benchmarks.environment import environment
from benchmarks.networks import NETWORKS

__all__ = ["by_structprune", "by_torch_pruning", "compare", "main", "proof_cost"]

TIMED = ("resnet50", "densenet201", "mobilenet_v2", "vgg16")
TURNS = 7
SLOW_TURNS = {"densenet201": 2}  # torch-pruning takes tens of seconds there


def by_structprune(model: nn.Module, x: Tensor) -> nn.Module:
    """The model with half of every free group's channels, without the proof."""
    graph = sp.trace(model, x)
    scores = sp.score(model, graph, "l2")
    return sp.apply_plan(model, sp.select(graph, scores, sp.Budget(channels=0.5)))


def by_torch_pruning(model: nn.Module, x: Tensor) -> nn.Module:
    """The model itself without half of its channels, as torch-pruning's README does it."""
    classifier = [layer for layer in model.modules() if isinstance(layer, nn.Linear)][-1]
    importance = tp.importance.GroupMagnitudeImportance(p=2)
    options = {"importance": importance, "pruning_ratio": 0.5, "ignored_layers": [classifier]}
    tp.pruner.BasePruner(model, x, global_pruning=False, **options).step()
    return model


TOOLS: dict[str, Callable[[nn.Module, Tensor], nn.Module]] = {
    "structprune": by_structprune,
    "torch-pruning": by_torch_pruning,
}


def compare(name: str, turns: int) -> dict[str, Any]:
    """Seconds of every turn of both tools on one network, and the parameters they leave."""
    torch.manual_seed(0)
    model, x = NETWORKS[name][0]().eval(), torch.randn(1, 3, 224, 224)
    seconds: dict[str, list[float]] = {tool: [] for tool in TOOLS}
    params: dict[str, int] = {}
    for turn in range(turns):
        for tool in sorted(TOOLS, reverse=bool(turn % 2)):
            twin = copy.deepcopy(model)
            gc.collect()
            start = time.perf_counter()
            pruned = TOOLS[tool](twin, x)
            seconds[tool].append(time.perf_counter() - start)
            params[tool] = sp.count_params(pruned)
    ratios = [theirs / ours for ours, theirs in zip(*seconds.values(), strict=True)]
    dense = sp.count_params(model)
    return {"network": name, "params": {"dense": dense, **params}, "seconds": seconds, "ratios": ratios}


def proof_cost(name: str, turns: int) -> dict[str, Any]:
    """Seconds of `verify` and of one forward of the dense model, and their ratio, turn by turn."""
    torch.manual_seed(0)
    model, x = NETWORKS[name][0]().eval(), torch.randn(1, 3, 224, 224)
    result = sp.prune(model, x, sp.Budget(channels=0.5), verify=False)
    proofs, forwards = [], []
    with torch.no_grad():
        model(x)
        for _ in range(turns):
            start = time.perf_counter()
            model(x)
            between = time.perf_counter()
            sp.verify(model, result.model, result.plan, x)
            proofs.append(time.perf_counter() - between)
            forwards.append(between - start)
    ratios = [proof / forward for proof, forward in zip(proofs, forwards, strict=True)]
    return {"network": name, "verify_seconds": proofs, "forward_seconds": forwards, "forward_passes": ratios}


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the tables and writes them as JSON; the exit status."""
    options = _parser().parse_args(argv)
    torch.set_num_threads(options.threads)
    console = Console() if sys.stdout.isatty() else Console(width=140)  # a log has no width of its own
    first = compare("resnet18", 1)  # also warms both tools up
    for tool in TOOLS:
        console.print(
            f"resnet18, half the channels, {tool}: {first['params']['dense']:,} -> {first['params'][tool]:,}"
        )
    rows, proofs = [], []
    for name in options.network or TIMED:
        rows.append(compare(name, options.turns or SLOW_TURNS.get(name, TURNS)))
        proofs.append(proof_cost(name, options.turns or 3))
        console.print(f"{name}: {_spread(rows[-1]['ratios'], 'x')} faster")
    console.print(_table(rows, proofs))
    mean = statistics.geometric_mean(statistics.median(row["ratios"]) for row in rows)
    console.print(f"geometric mean over {len(rows)} networks: {mean:.1f}x")
    figures = {"geometric_mean": mean, "resnet18": first["params"], "rows": rows, "verify": proofs}
    write(options.out, {"environment": environment(options.threads), **figures})
    return 0


def _spread(values: Sequence[float], unit: str = "") -> str:
    return f"{statistics.median(values):.2f}{unit} ({min(values):.2f} to {max(values):.2f})"


def _table(rows: Sequence[dict[str, Any]], proofs: Sequence[dict[str, Any]]) -> Table:
    table = Table(title="median (smallest to largest)", title_justify="left", pad_edge=False, show_edge=False)
    table.add_column("network", no_wrap=True)
    for column in ("turns", "structprune s", "torch-pruning s", "ratio", "verify, forward passes"):
        table.add_column(column, justify="right", no_wrap=True)
    for row, proof in zip(rows, proofs, strict=True):
        ours, theirs = (_spread(row["seconds"][tool]) for tool in TOOLS)
        turns = str(len(row["ratios"]))
        table.add_row(
            row["network"], turns, ours, theirs, _spread(row["ratios"]), _spread(proof["forward_passes"])
        )
    return table


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("pruning_speed", __doc__)
    add = parser.add_argument
    add("--network", action="append", choices=sorted(NETWORKS), help="repeatable; four networks if left out")
    add("--turns", type=int, help=f"of both tools, {TURNS} if left out and fewer on slow networks")
    add("--threads", type=int, default=1, help="torch's threads, 1 if left out")
    add("--out", type=Path, help="where the figures go as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
