"""What the rows of the accuracy benchmark say: tables over seeds, structprune's best against torch-pruning's best."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.table import Table
from scipy.stats import t as student

from benchmarks.latency_accuracy_table import paired

__all__ = ["COMPARED", "best", "compared", "sentences", "tables"]

Row = dict[str, Any]
Line = tuple[str, str, str]  # tool, criterion, mode

STAGES = ("cut", "bn", "fold", "all", "cut, tuned", "all, tuned")
COMPARED = {
    "right after the cut": ("cut", "cut"),
    "before training, refitted": ("all", "cut"),
    "fine-tuned from the cut": ("cut, tuned", "cut, tuned"),
    "fine-tuned, refitted before": ("all, tuned", "cut, tuned"),
}
"""What is compared: the stage of structprune's network, and that of torch-pruning's."""


def tables(rows: Sequence[Row]) -> list[Table]:
    """One table for each network and point: accuracy in per cent at each stage, the mean over seeds and the half of its
    95 % interval.
    """
    return [_table(place, part) for place, part in _places(rows).items()]


def compared(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """For each network, point and comparison the best of both tools, and their difference paired over seeds.

    The best are those with the largest mean over the seeds: on both sides a little too good, being chosen on the same
    seeds that are shown.
    """
    found = []
    for (network, asked), part in _places(rows).items():
        for title, (ours, theirs) in COMPARED.items():
            pair = best(part, "structprune", ours), best(part, "torch-pruning", theirs)
            if pair[0] is not None and pair[1] is not None:
                a, b = _by_seed(part, pair[0], ours), _by_seed(part, pair[1], theirs)
                seeds = sorted(a.keys() & b.keys())
                figures = paired([a[seed] for seed in seeds], [b[seed] for seed in seeds])
                names = {"ours_is": pair[0][1], "theirs_is": " ".join(pair[1][:0:-1])}
                found.append({"network": network, "asked": asked, "what": title, **names, **figures})
    return found


def sentences(rows: Sequence[Row]) -> list[str]:
    """How often which tool's best is ahead, and what is told apart from chance."""
    found = compared(rows)
    said = []
    for title in COMPARED:
        each = [one for one in found if one["what"] == title]
        if each:
            ways = ", ".join(
                f"{sum(one['verdict'] == way for one in each)} {way}"
                for way in ("higher", "lower", "not told apart")
            )
            gaps = [100 * one["difference"] for one in each]
            said.append(
                f"{title}: structprune's best against torch-pruning's best at {len(each)} points: {ways} (by 95 % "
                f"intervals over seeds); differences from {min(gaps):+.1f} to {max(gaps):+.1f} points of per cent."
            )
    for stage in ("cut", "all", "cut, tuned", "all, tuned"):
        verdicts = [v for part in _places(rows).values() for v in _against_chance(part, stage)]
        if verdicts:
            ways = ", ".join(f"{verdicts.count(way)} {way}" for way in ("higher", "lower", "not told apart"))
            said.append(f"structprune's criteria against random, {stage!r}: of {len(verdicts)}, {ways}.")
    return said


def best(rows: Sequence[Row], tool: str, stage: str) -> Line | None:
    """The tool's line with the largest mean at a stage, among those that have the most seeds; chance left out."""
    lines = {
        _line(row) for row in rows if row["tool"] == tool and stage in row and row["criterion"] != "random"
    }
    values = {line: list(_by_seed(rows, line, stage).values()) for line in lines}
    return max(sorted(values), key=lambda line: (len(values[line]), np.mean(values[line])), default=None)


def _against_chance(rows: Sequence[Row], stage: str) -> list[str]:
    chance = _by_seed(rows, ("structprune", "random", "default"), stage)
    found = []
    for line in sorted({_line(row) for row in rows if row["tool"] == "structprune"}):
        own = _by_seed(rows, line, stage)
        seeds = sorted(own.keys() & chance.keys())
        if line[1] != "random" and seeds:
            found.append(paired([own[s] for s in seeds], [chance[s] for s in seeds])["verdict"])
    return found


def _places(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    found: dict[tuple[str, str], list[Row]] = {}
    for row in sorted(rows, key=lambda row: (row["network"], -row["share"])):
        found.setdefault((row["network"], row["asked"]), []).append(row)
    return found


def _by_seed(rows: Sequence[Row], line: Line, stage: str) -> dict[int, float]:
    return {row["seed"]: row[stage] for row in rows if _line(row) == line and stage in row}


def _line(row: Row) -> Line:
    return row["tool"], row["criterion"], row["mode"]


def _table(place: tuple[str, str], rows: Sequence[Row]) -> Table:
    dense = [row["dense"] for row in {row["seed"]: row for row in rows}.values()]
    title = f"{place[0]}, {place[1]}; dense {_cell(dense)} %, {len(dense)} seeds"
    stages = [stage for stage in STAGES if any(stage in row for row in rows)]
    made = Table(title=title, title_justify="left", pad_edge=False, show_edge=False)
    for column in ("tool", "criterion", "mode", "MACs", *stages):
        made.add_column(
            column, no_wrap=True, justify="left" if column in ("tool", "criterion", "mode") else "right"
        )
    for line in sorted({_line(row) for row in rows}, key=lambda line: (line[0], line[2])):
        own = [row for row in rows if _line(row) == line]
        macs = f"{np.mean([row['macs'] for row in own]):.3f}"
        made.add_row(*line, macs, *(_cell([row[stage] for row in own if stage in row]) for stage in stages))
    return made


def _cell(values: Sequence[float]) -> str:
    if not values:
        return ""
    mean = f"{100 * np.mean(values):.1f}"
    if len(values) < 2:
        return mean
    half = student.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return f"{mean} ±{100 * half:.1f}"
