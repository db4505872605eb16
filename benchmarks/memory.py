"""Tracing a language model of 8 billion parameters on the meta device: seconds, and memory on top.

Usage:
    python -m benchmarks.memory
    python -m benchmarks.memory --turns 5 --tokens 512 --out runs/memory.json

Nothing has weights here: the model is built on the meta device, traced, and a cut to half its channels is
priced. The first turn also pays for what is loaded lazily; it stands in the table like the others. Memory
is the growth of the process's peak resident size while tracing, as Linux counts it.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import structprune as sp
from benchmarks.decoder import llama3_8b
from benchmarks.environment import environment

__all__ = ["main", "measure"]


def measure(tokens: int) -> dict[str, Any]:
    """One trace of the decoder: seconds, growth of the peak memory in bytes, and the price of a cut."""
    with torch.device("meta"):
        model = llama3_8b().eval()
        ids = torch.zeros(1, tokens, dtype=torch.long)
    gc.collect()
    before = _restart_peak()
    start = time.perf_counter()
    graph = sp.trace(model, ids)
    seconds = time.perf_counter() - start
    growth = max(0, _peak() - before)
    sizes = graph.sizes()
    free = [group.frozen is None and group.primary for group in graph.groups]
    half = np.where(free, np.maximum(1, sizes // 2), sizes)
    return {
        "seconds": seconds,
        "peak_growth_bytes": growth,
        "params": sp.count_params(model),
        "groups": len(graph.groups),
        "free_groups": sum(free),
        "params_at_half": round(graph.price("params", half)),
        "macs": round(graph.price("macs", sizes)),
        "macs_at_half": round(graph.price("macs", half)),
    }


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def _restart_peak() -> int:
    """The resident size now, in bytes; the peak is counted anew from here where the system allows it."""
    if not Path("/proc/self/clear_refs").exists():
        return _peak()
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak() -> int:
    if Path("/proc/self/status").exists():
        return _status("VmHWM")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a table and writes it as JSON; the exit status."""
    options = _parser().parse_args(argv)
    torch.set_num_threads(options.threads)
    rows = [measure(options.tokens) for _ in range(options.turns)]
    console = Console() if sys.stdout.isatty() else Console(width=140)  # a log has no width of its own
    console.print(_table(rows))
    last = rows[-1]
    console.print(f"{last['free_groups']} of {last['groups']} groups are free; at half their channels:")
    for unit in ("params", "macs"):
        console.print(f"  {unit} {last[unit]:,} -> {last[unit + '_at_half']:,}")
    if options.out is not None:
        document = {"environment": environment(options.threads), "tokens": options.tokens, "rows": rows}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(document, indent=1) + "\n")
    return 0


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(
        title="Llama-3-8B-like decoder, meta device", title_justify="left", pad_edge=False, show_edge=False
    )
    for column in ("turn", "params", "trace s", "peak memory on top, MB"):
        table.add_column(column, justify="right", no_wrap=True)
    for turn, row in enumerate(rows, 1):
        memory = row["peak_growth_bytes"] / 1e6
        table.add_row(str(turn), f"{row['params']:,}", f"{row['seconds']:.2f}", f"{memory:.0f}")
    return table


def _parser() -> argparse.ArgumentParser:
    summary, _, details = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.memory",
        description=summary,
        epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--turns", type=int, default=3, help="how often to trace, 3 if left out")
    add("--tokens", type=int, default=128, help="length of the traced sequence, 128 if left out")
    add("--threads", type=int, default=1, help="torch's threads, 1 if left out")
    add("--out", type=Path, help="where the figures go as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
