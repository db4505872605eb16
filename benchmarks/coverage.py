"""Which architectures of the package transformers are pruned exactly at half their channels: one row each, one oracle.

Usage:
    python -m benchmarks.coverage
    python -m benchmarks.coverage --only bert --only "qwen*" --jobs 2 --limit 60 --out runs/coverage.json
    python -m benchmarks.coverage --family detection --peers

Every case is a tiny configuration with random weights, and runs in its own process with a time limit, so that a hang
is a result too. What a pruner removed and whether the rest still computes the same is judged from the values alone
(`tests.oracle`), by code that knows nothing of either tool's graphs:

    exact       smaller, and its outputs are those of the original without what was removed
    left whole  nothing was removed
    refused     the tool says that it does not prune this network, and why
    broken      the tool or the pruned network fails
    wrong       the pruned network runs and computes something else
    hang        no result within the time limit
    unjudged    the model does not run here, or the oracle cannot run it
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.command_line import write
from benchmarks.coverage_case import Case
from benchmarks.coverage_models import CASES
from benchmarks.environment import environment

__all__ = ["STATUSES", "cases", "main", "run_case"]

STATUSES = ("exact", "left whole", "refused", "broken", "wrong", "hang", "unjudged")
TOOLS = ("structprune", "torch-pruning")
# Cases are forked from a process that has imported what they share.
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["transformers.modeling_utils", "rich.table", "benchmarks.coverage_worker"])


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a row for each case and the counts, and writes them as JSON; 1 if anything is wrong or broken."""
    options = _parser().parse_args(argv)
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"))
    os.environ["PYTHONWARNINGS"] = "ignore"
    console = Console() if sys.stdout.isatty() else Console(width=160)
    chosen = [case for case in cases() if _asked(case, options)]
    if options.list:
        for case in chosen:
            print(f"{case.name:<28}{case.family:<20}{case.model}")
        return 0
    tools = options.tool or (TOOLS if options.peers else TOOLS[:1])
    rows = _done(options.out) if options.resume else []
    done = {(row["case"], row["tool"]) for row in rows}
    work = [(case, tool) for case in chosen for tool in tools if (case.name, tool) not in done]
    with ThreadPoolExecutor(options.jobs) as pool:
        for row in pool.map(lambda item: run_case(item[0], item[1], options.limit), work):
            rows.append(row)
            console.print(_line(row), markup=False, highlight=False, soft_wrap=True)
            if options.out is not None:
                _write(options.out, rows, options)
    for tool in dict.fromkeys(row["tool"] for row in rows):
        console.print(_counts(tool, [row for row in rows if row["tool"] == tool]))
    return int(any(row["tool"] == TOOLS[0] and row["status"] in ("broken", "wrong", "hang") for row in rows))


def cases() -> list[Case]:
    """Every case, in the order of the tables; names are unique."""
    twice = [name for name, count in Counter(case.name for case in CASES).items() if count > 1]
    if twice:
        raise ValueError(f"two cases of one name: {', '.join(twice)}")
    return list(CASES)


def run_case(case: Case, tool: str, limit_s: float) -> dict[str, Any]:
    """The row of one case, from a process of its own that ends after `limit_s` seconds at the latest."""
    began = time.perf_counter()
    receiver, sender = _SERVER.Pipe(duplex=False)
    process = _SERVER.Process(target=answer, args=(sender, case.name, tool))
    process.start()
    sender.close()
    found: dict[str, Any]
    try:
        found = receiver.recv() if receiver.poll(limit_s) else {}
    except EOFError:
        process.join()
        found = {"status": "broken", "detail": f"the process ended with {process.exitcode}"}
    process.kill()
    process.join()
    found = found or {"status": "hang", "detail": f"no result within {limit_s:g} s"}
    wall = round(time.perf_counter() - began, 1)
    return {
        "case": case.name,
        "family": case.family,
        "model": case.model,
        "tool": tool,
        "wall_s": wall,
        **found,
    }


def answer(sender: Connection, name: str, tool: str) -> None:
    """Sends the row of one case; the body of a case's process."""
    from benchmarks.coverage_worker import judged

    sender.send(judged(next(case for case in cases() if case.name == name), tool))


def _asked(case: Case, options: argparse.Namespace) -> bool:
    named = not options.only or any(fnmatch.fnmatch(case.name, f"{glob}*") for glob in options.only)
    return named and (not options.family or case.family in options.family)


def _line(row: dict[str, Any]) -> str:
    removed = f"{row['removed']:6.1%}" if "removed" in row else " " * 6
    seconds = f"{row['seconds']:6.1f} s" if "seconds" in row else " " * 8
    detail = "" if row["status"] == "exact" else row.get("detail", "")
    tool = "" if row["tool"] == TOOLS[0] else f"[{row['tool']}] "
    return f"{row['case']:<24}{row['family']:<18}{row['status']:<11}{seconds} {removed}  {tool}{detail[:300]}"


def _counts(tool: str, rows: list[dict[str, Any]]) -> Table:
    """The counts of each status by family; medians of the seconds, and of the share removed where exact."""
    table = Table(title=escape(f"{tool}: {len(rows)} architectures at half the channels"))
    for column in ("family", "cases", *STATUSES, "removed (median)", "seconds (median)"):
        table.add_column(column, justify="left" if column == "family" else "right")
    families = list(dict.fromkeys(row["family"] for row in rows))
    for family in (*families, "all"):
        part = [row for row in rows if family in ("all", row["family"])]
        count = Counter(row["status"] for row in part)
        removed = [row["removed"] for row in part if row["status"] == "exact"]
        seconds = [row["seconds"] for row in part if "seconds" in row]
        table.add_row(
            family,
            str(len(part)),
            *(str(count[s] or "") for s in STATUSES),
            f"{statistics.median(removed):.0%}" if removed else "",
            f"{statistics.median(seconds):.1f}" if seconds else "",
        )
    return table


def _done(path: Path | None) -> list[dict[str, Any]]:
    """The rows of an earlier run, where it wrote any."""
    if path is None or not path.is_file():
        return []
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return rows


def _write(path: Path, rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    document = {"channels": 0.5, "limit_s": options.limit, "environment": environment(1), "rows": rows}
    write(path, document)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", action="append", metavar="GLOB", help="cases whose name begins so")
    parser.add_argument("--family", action="append", help="text encoder, detection, state space, ...")
    parser.add_argument("--peers", action="store_true", help="torch-pruning with its defaults as well")
    parser.add_argument("--tool", action="append", choices=TOOLS, help="this one; structprune if left out")
    parser.add_argument(
        "--resume", action="store_true", help="keep the rows that --out has, and do the others"
    )
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time, of one thread each")
    parser.add_argument("--limit", type=float, default=60.0, metavar="SECONDS", help="for one case")
    parser.add_argument("--out", type=Path, help="write the rows as JSON, after every case")
    parser.add_argument("--list", action="store_true", help="name the cases and stop")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
