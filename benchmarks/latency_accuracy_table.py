"""Paired differences between structprune and torch-pruning over seeds: statistics, tables, sentences."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from itertools import groupby
from operator import getitem
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table
from scipy.stats import t as student

__all__ = ["paired", "sentences", "statistics", "tables"]

Row = dict[str, Any]


def paired(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """Means, standard deviations, and the paired difference with its 95 % interval; `better` where ours is larger.

    `verdict` is "higher", "lower" or "not told apart" (the interval holds 0, or there is one pair alone).

    >>> found = paired([3.0, 4.0, 5.0], [1.0, 2.0, 2.9])
    >>> found["verdict"], round(found["difference"], 3), found["better"]
    ('higher', 2.033, 3)
    """
    a, b = np.asarray(ours, dtype=float), np.asarray(theirs, dtype=float)
    gap = a - b
    reach = np.inf
    if len(gap) > 1:
        reach = float(student.ppf(0.975, len(gap) - 1) * gap.std(ddof=1) / np.sqrt(len(gap)))
    low, high = gap.mean() - reach, gap.mean() + reach
    return {
        "seeds": len(gap),
        "ours": [float(a.mean()), _spread(a)],
        "theirs": [float(b.mean()), _spread(b)],
        "difference": float(gap.mean()),
        "interval": [float(low), float(high)] if np.isfinite(reach) else None,
        "better": int((gap > 0).sum()),
        "worse": int((gap < 0).sum()),
        "verdict": "higher" if low > 0 else "lower" if high < 0 else "not told apart",
    }


def statistics(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """For each network, share and mode of torch-pruning what became of all seeds."""

    def key(row: Row) -> tuple[str, float, str]:
        return row["network"], -row["share"], row["mode"]

    return [_figures(list(group)) for _, group in groupby(sorted(rows, key=key), key)]


def _figures(rows: Sequence[Row]) -> dict[str, Any]:
    first = rows[0]
    both = [row for row in rows if row["ours"] is not None]
    macs = [row for row in rows if row["equal_macs"] is not None]
    found: dict[str, Any] = {name: first[name] for name in ("network", "share", "mode")}
    found["seeds"], found["not_reached"] = len(rows), len(rows) - len(both)
    if both:
        found["latency"] = _compared(both, "ours", "latency", "ratio")
        found["macs"] = _compared(both, "ours", "macs")
        for name in first["theirs"]["importance"]:
            found[f"importance, {name}"] = _compared(both, "ours", "importance", name)
        steps = range(len(first["theirs"]["accuracy"]))
        found["accuracy"] = [_compared(both, "ours", "accuracy", step) for step in steps]
        found["refitted"] = [_compared(both, "ours", "refitted", step, against="accuracy") for step in steps]
    if macs:
        found["latency at equal MACs"] = _compared(macs, "equal_macs", "latency", "ratio")
        found["MACs at equal MACs"] = _compared(macs, "equal_macs", "macs")
    return found


def _compared(rows: Sequence[Row], role: str, *path: str | int, against: str | None = None) -> dict[str, Any]:
    """The figure that the path leads to, of structprune's network in a role against torch-pruning's, whose own may
    have another name.
    """
    their_path = path if against is None else (against, *path[1:])
    ours = [reduce(getitem, path, row[role]) for row in rows]
    return paired(ours, [reduce(getitem, their_path, row["theirs"]) for row in rows])


def tables(figures: Sequence[dict[str, Any]]) -> list[Table]:
    """One table of sizes and two of accuracy at equal latency, one at equal MACs."""
    equal = [one for one in figures if "accuracy" in one]
    sizes = _table(
        "At equal measured latency: structprune / torch-pruning (means over seeds)",
        ("latency", "MACs", "importance kept", "difference [95 %]", "seeds +/-"),
    )
    for one in equal:
        importance = one["importance, harmonic"]
        cells = [_both(one["latency"]), _both(one["macs"]), _both(importance)]
        sizes.add_row(*_name(one), *cells, *_difference(importance))
    made = [sizes]
    if equal:
        made += [_accuracies(title, equal, name) for name, title in _WAYS]
    macs = _table(
        "At equal MACs: structprune / torch-pruning", ("MACs", "latency", "difference [95 %]", "seeds +/-")
    )
    for one in (one for one in figures if "latency at equal MACs" in one):
        latency = one["latency at equal MACs"]
        cells = [_both(one["MACs at equal MACs"]), _both(latency, spread=True)]
        macs.add_row(*_name(one), *cells, *_difference(latency))
    return [*made, macs]


_WAYS = (
    ("accuracy", "Accuracy in % at equal latency, the widths alone: structprune / torch-pruning"),
    ("refitted", "Accuracy in % at equal latency, with calibration=: structprune / torch-pruning"),
)


def _accuracies(title: str, equal: Sequence[dict[str, Any]], name: str) -> Table:
    """After the cut, then for each epoch of fine-tuning both means, the difference and the seeds."""
    epochs = range(1, len(equal[0][name]))
    columns = [
        column for n in epochs for column in (f"epoch {n}", f"difference {n} [95 %]", f"seeds {n} +/-")
    ]
    made = _table(title, ("cut", *columns))
    for one in equal:
        cells = [_both(one[name][0], 100.0)]
        for epoch in epochs:
            cells += [_both(one[name][epoch], 100.0), *_difference(one[name][epoch], 100.0)]
        made.add_row(*_name(one), *cells)
    return made


def sentences(figures: Sequence[dict[str, Any]]) -> list[str]:
    """How many of the comparisons came out which way."""
    equal = [one for one in figures if "accuracy" in one]
    told = [_told("importance kept at equal latency", [one["importance, harmonic"] for one in equal])]
    for name, way in (("accuracy", "the widths alone"), ("refitted", "with calibration=")):
        for epoch in range(1, len(equal[0][name]) if equal else 1):
            title = f"accuracy at equal latency after {epoch} epoch{'s' * (epoch > 1)} of fine-tuning, {way}"
            told.append(_told(title, [one[name][epoch] for one in equal]))
    told.append(_told("latency at equal MACs", [one.get("latency at equal MACs") for one in figures]))
    missing = sum(one["not_reached"] for one in figures)
    return [*told, *([f"{missing} latencies of torch-pruning's were out of reach."] if missing else [])]


def _told(title: str, compared: Sequence[dict[str, Any] | None]) -> str:
    found = [one["verdict"] for one in compared if one is not None]
    ways = ", ".join(f"{found.count(way)} {way}" for way in ("higher", "lower", "not told apart"))
    return f"structprune's {title}: of {len(found)} comparisons {ways}."


def _table(title: str, columns: Sequence[str]) -> Table:
    made = Table(title=title, title_justify="left", pad_edge=False, show_edge=False)
    for column in ("network", "asked", "torch-pruning"):
        made.add_column(column, no_wrap=True)
    for column in columns:
        made.add_column(column, justify="right", no_wrap=True)
    return made


def _name(one: dict[str, Any]) -> tuple[str, str, str]:
    return one["network"], f"{one['share']:g}", one["mode"].removeprefix("torch-pruning ")


def _both(found: dict[str, Any], scale: float = 1.0, *, spread: bool = False) -> str:
    digits = 3 if scale == 1.0 else 2 if spread else 1
    values = [[scale * number for number in found[role]] for role in ("ours", "theirs")]
    return " / ".join(f"{mean:.{digits}f}" + f" ±{std:.{digits}f}" * spread for mean, std in values)


def _difference(found: dict[str, Any], scale: float = 1.0) -> tuple[str, str]:
    digits = 3 if scale == 1.0 else 2
    text = f"{scale * found['difference']:+.{digits}f}"
    if found["interval"] is not None:
        text += " [{:+.{d}f}, {:+.{d}f}]".format(*(scale * end for end in found["interval"]), d=digits)
    return escape(text), f"{found['better']}/{found['worse']}"


def _spread(values: Any) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0
