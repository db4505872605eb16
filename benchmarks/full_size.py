"""Networks of full size without their weights: seconds and memory of a trace, and of a plan at half the budget.

Usage:
    python -m benchmarks.full_size
    python -m benchmarks.full_size --only llama-3-8b --threads 1 --out runs/full_size.json

Each network is built with `empty_weights`, in a process of its own whose peak memory is that of everything: Python,
torch, transformers, the network's modules, the trace and the plans. Channels are ranked by chance, since there are no
values to rank them by. Each plan is applied to the empty network and what is left is counted anew, so that the price
that the plan was made by is checked, and the pruned network's forward has run on its shapes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import structprune as sp
from benchmarks.command_line import parser_of, write
from benchmarks.diffusion_unet import stable_diffusion_unet
from benchmarks.environment import environment

__all__ = ["NETWORKS", "main", "measure", "peak_bytes"]

BUDGETS = {"params": sp.Budget(params=0.5), "macs": sp.Budget(macs=0.5)}


def llama_3_8b() -> tuple[nn.Module, dict[str, Any]]:
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=128_256,
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=8192,
    )
    ids = torch.zeros(1, 128, dtype=torch.long)
    return transformers.LlamaForCausalLM(config), {"input_ids": ids, "use_cache": False}


def vit_h_14() -> tuple[nn.Module, dict[str, Any]]:
    import transformers

    config = transformers.ViTConfig(
        hidden_size=1280,
        num_hidden_layers=32,
        num_attention_heads=16,
        intermediate_size=5120,
        patch_size=14,
        num_labels=1000,  # type: ignore[call-arg]  # the base class takes it
    )
    return transformers.ViTForImageClassification(config), {"pixel_values": torch.zeros(1, 3, 224, 224)}


def unet() -> tuple[nn.Module, dict[str, Any]]:
    latent, text = torch.zeros(1, 4, 64, 64), torch.zeros(1, 77, 768)
    return stable_diffusion_unet(), {"x": latent, "steps": torch.zeros(1), "context": text}


NETWORKS: dict[str, Callable[[], tuple[nn.Module, dict[str, Any]]]] = {
    "llama-3-8b": llama_3_8b,
    "vit-h-14": vit_h_14,
    "sd-unet": unet,
}


def measure(name: str, threads: int) -> dict[str, Any]:
    """The row of one network, measured in this process; raises RuntimeError where a price is not what is counted."""
    torch.set_num_threads(threads)
    clock = Clock()
    with sp.empty_weights():
        model, inputs = NETWORKS[name]()
    model.eval()
    row: dict[str, Any] = {"network": name, "params": sp.count_params(model), "build_s": clock.lap()}
    graph = sp.trace(model, inputs)
    row |= {"trace_s": clock.lap(), "groups": len(graph.groups)}
    plans = {}
    for quantity, budget in BUDGETS.items():
        plans[quantity] = sp.select(graph, sp.score(model, graph, "random"), budget, criterion="random")
        row[f"plan_{quantity}_s"] = clock.lap()
    row["peak_bytes"] = peak_bytes()
    for quantity, plan in plans.items():
        row[f"at_half_{quantity}"] = _counted(model, plan, graph, inputs)
    return row


def _counted(
    model: nn.Module, plan: sp.PruningPlan, graph: sp.DependencyGraph, inputs: dict[str, Any]
) -> dict[str, int]:
    """Parameters and MACs of the cut network, counted on it; they must be what the plan was priced at."""
    small = sp.apply_plan(model, plan)
    found = {"params": sp.count_params(small), "macs": sp.count_macs(small, inputs)}
    for quantity, count in found.items():
        priced = round(plan.remaining[quantity] * graph.original[quantity])
        if priced != count:
            raise RuntimeError(f"{quantity}: priced at {priced:,}, but there are {count:,}")
    return found


class Clock:
    """Seconds since the last lap."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        now = time.perf_counter()
        passed, self._last = now - self._last, now
        return passed


def peak_bytes() -> int:
    """The most memory that this process has held at once, mapped files included."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage counts a parent's memory too
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a table and writes it as JSON; the exit status."""
    options = _parser().parse_args(argv)
    rows = []
    for name in options.only or NETWORKS:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as alone:
            rows.append(alone.submit(measure, name, options.threads).result())
    console = Console() if sys.stdout.isatty() else Console(width=140)  # a log has no width of its own
    console.print(_table(rows))
    write(options.out, {"environment": environment(options.threads), "rows": rows})
    return 0


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(title="Without weights", title_justify="left", pad_edge=False, show_edge=False)
    columns = (
        "params",
        "build s",
        "trace s",
        "plan at half the params s",
        "at half the MACs s",
        "peak memory GB",
    )
    table.add_column("network", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        seconds = [f"{row[key]:.2f}" for key in ("build_s", "trace_s", "plan_params_s", "plan_macs_s")]
        table.add_row(row["network"], f"{row['params']:,}", *seconds, f"{row['peak_bytes'] / 1e9:.2f}")
    return table


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("full_size", __doc__)
    add = parser.add_argument
    add("--only", action="append", choices=NETWORKS, help="one network; repeatable")
    add("--threads", type=int, default=1, help="torch's threads, 1 if left out")
    add("--out", type=Path, help="where the figures go as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
