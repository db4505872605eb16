"""How long choosing widths takes, and how much of the best choice's importance it keeps.

Usage:
    python -m benchmarks.selection
    python -m benchmarks.selection --network resnet50 --share 0.5 --seconds 120 --out runs/selection.json

Latency is a model of it: the network's MACs, pair of widths by pair, slower off multiples of 16 as on a CPU with
vectors of that length; so nothing is timed but the selection. What a choice keeps is the harmonic mean over the groups
of the importance that each keeps, as under the scope "value"; it is compared with the solver's best choice, and with
the bound on all choices where the solver runs out of time.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import nn

import structprune as sp
from benchmarks.environment import environment
from benchmarks.modern_networks import VisionTransformer
from benchmarks.networks import NETWORKS as CLASSIFIERS
from benchmarks.selection_milp import Widths, best_choice
from structprune.select import value_units
from structprune.selection import Unit, most_valuable

__all__ = ["Costs", "compare", "costs_of", "main", "widths_of"]

BLOCK = 16
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet50": CLASSIFIERS["resnet50"][0],
    "mobilenet_v2": CLASSIFIERS["mobilenet_v2"][0],
    "vit_b": lambda: VisionTransformer(768, 12),
}

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Costs:
    """A latency as a sum over units and pairs of units, per channel at whole blocks: `pairs` is symmetric, `[units,
    units]`, `single` is `[units]`.
    """

    pairs: Floats
    single: Floats
    fixed: float

    def table(self, u: int, v: int, units: Sequence[Unit]) -> Floats:
        """What a pair of units costs, `[places of u, places of v]`; `[places of u]` for one by itself."""
        left, right = _slow(units[u].allowed), _slow(units[v].allowed)
        cost: Floats = 2 * self.pairs[u, v] * np.outer(left, right)
        return cost if u != v else self.single[u] * left + self.pairs[u, u] * left**2

    def __call__(self, counts: Ints) -> Floats:
        """What choices cost, `[choices]`, for counts `[choices, units]`."""
        slow = _slow(counts)
        total: Floats = self.fixed + slow @ self.single + ((slow @ self.pairs) * slow).sum(axis=1)
        return total


def _slow(counts: Ints) -> Floats:
    """Counts as if all were at whole blocks: more of them where they are not."""
    off = np.where(counts % BLOCK == 0, 1.0, np.where(counts % (BLOCK // 2) == 0, 1.1, 1.2))
    found: Floats = counts.astype(np.float64) * off
    return found


def costs_of(graph: sp.DependencyGraph, units: Sequence[Unit]) -> Costs:
    """The network's MACs as units and pairs of units, from what it takes without one and without two of them.

    Raises:
        ValueError: where some operation's MACs depend on more than two units.
    """
    count = len(units)
    first, second = (list(one) for one in zip(*itertools.combinations(range(count), 2), strict=True))
    without = np.ones((1 + 2 * count + len(first), count))
    each = np.arange(count)
    without[1 + each, each] = 0.0
    without[1 + count + each, each] = 0.5
    without[1 + 2 * count :, :][np.arange(len(first)), first] = 0.0
    without[1 + 2 * count :, :][np.arange(len(first)), second] = 0.0
    macs = _macs(graph, units, without)
    whole, none, half, neither = (
        macs[0],
        macs[1 : 1 + count],
        macs[1 + count : 1 + 2 * count],
        macs[1 + 2 * count :],
    )
    square = 4 * ((whole - half) - (whole - none) / 2)
    pairs = np.zeros((count, count))
    pairs[first, second] = pairs[second, first] = (neither - none[first] - none[second] + whole) / 2
    single = whole - none - square - 2 * pairs.sum(axis=1)
    fixed = whole - single.sum() - square.sum() - pairs.sum()
    shares = np.random.default_rng(0).uniform(size=(8, count))
    pairs += np.diag(square)
    if not np.allclose(
        fixed + shares @ single + ((shares @ pairs) * shares).sum(axis=1), _macs(graph, units, shares)
    ):
        raise ValueError("some operation's MACs depend on more than two units")
    sizes = np.array([unit.size for unit in units], dtype=np.float64)
    return Costs(pairs / np.outer(sizes, sizes), single / sizes, float(fixed))


def _macs(graph: sp.DependencyGraph, units: Sequence[Unit], shares: Floats) -> Floats:
    """The network's MACs with shares of the units' channels, `[choices]` for `[choices, units]`."""
    counts = np.tile(graph.sizes().astype(np.float64), (len(shares), 1))
    for unit, share in zip(units, shares.T, strict=True):
        counts[:, list(unit.positions)] *= share[:, None]
    return graph.polynomial("macs").many(counts)


def widths_of(units: Sequence[Unit], costs: Costs) -> Widths:
    """The same choice as the solver's; what is kept, negative, is the inverse of the harmonic mean."""
    weights = np.array([unit.curve[0] * len(unit.positions) for unit in units])
    values = [_inverse(unit) * weight / -weights.sum() for unit, weight in zip(units, weights, strict=True)]
    tables = {
        (u, v): costs.table(u, v, units)
        for u, v in itertools.combinations_with_replacement(range(len(units)), 2)
        if u == v or abs(costs.pairs[u, v]) > 1e-12 * costs.pairs.max()
    }
    return Widths(values, tables, costs.fixed)


def _inverse(unit: Unit) -> Floats:
    """The inverse of the share of its importance that a unit keeps at each of its widths."""
    left = np.concatenate([[0.0], np.cumsum(unit.curve)]) / unit.curve[0]
    found: Floats = 1 + left[-1] - left[unit.allowed]
    return found


def compare(name: str, share: float, seconds: float) -> dict[str, Any]:
    """Seconds of the selection, and what its choice keeps of the best one's, or of the bound on all."""
    torch.manual_seed(0)
    model, x = NETWORKS[name]().eval(), torch.randn(1, 3, 224, 224)
    graph = sp.trace(model, x)
    scores = sp.score(model, graph, "l2")
    units = value_units(graph, scores, {group.name: BLOCK for group in graph.groups})
    costs = costs_of(graph, units)
    limit = share * float(costs(np.array([[unit.size for unit in units]]))[0])
    begin = time.perf_counter()
    found = most_valuable(units, lambda counts: costs(counts) / limit)
    spent = time.perf_counter() - begin
    widths = widths_of(units, costs)
    places = [int(np.searchsorted(unit.allowed, count)) for unit, count in zip(units, found, strict=True)]
    kept = -1 / widths.value(places)
    best = best_choice(widths, limit, seconds)
    most = -1 / best.bound if best.bound < 0 else 1.0
    solved = None if best.places is None else -1 / best.value
    return {
        "network": name,
        "share": share,
        "units": len(units),
        "widths": sum(len(unit.allowed) for unit in units),
        "select_s": spent,
        "of_limit": float(costs(found[None])[0]) / limit,
        "kept": kept,
        "solver_kept": solved,
        "solver_s": best.seconds,
        "bound": most,
        "of_solver": None if solved is None else kept / solved,
        "of_bound": kept / most,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; write it as JSON where `--out` says so."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", action="append", choices=list(NETWORKS), help="default: all")
    parser.add_argument(
        "--share", type=float, action="append", help="of the cost; default: 0.75, 0.5 and 0.33"
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="the solver's time for each")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    rows = []
    table = Table(show_edge=False, pad_edge=False)
    for column in (
        "network",
        "budget",
        "units",
        "selection s",
        "of the solver's",
        "of the bound",
        "solver s",
    ):
        table.add_column(column, justify="right" if column != "network" else "left")
    for name in given.network or NETWORKS:
        for share in given.share or (0.75, 0.5, 0.33):
            row = compare(name, share, given.seconds)
            rows.append(row)
            solver = "-" if row["of_solver"] is None else f"{row['of_solver']:.2%}"
            cells = (f"{share:.2f}", str(row["units"]), f"{row['select_s']:.1f}", solver)
            table.add_row(name, *cells, f"{row['of_bound']:.2%}", f"{row['solver_s']:.1f}")
    Console().print(table)
    if given.out is not None:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps({"environment": environment(1), "rows": rows}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
