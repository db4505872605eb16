"""The best choice of widths there is: selection as a mixed-integer linear program, solved by HiGHS.

Each unit takes one of its widths (a binary for each), a kernel that two units govern has a variable for each pair of
their widths, tied to the binaries by its sums over either unit: the tightest linear form of a product of binaries
(Adams and Sherali, Management Science 1986). Its relaxation bounds what any choice can keep, also where the solver runs
out of time. Where one unit is part of every such kernel (the residual width of a transformer), the program falls apart
into one without pairs for each of its widths.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

__all__ = ["Optimum", "Widths", "best_choice"]

_GAP = 1e-4  # between what is found and what is proven to be impossible, relative
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Widths:
    """What a choice of widths keeps and costs: `values[u]` is float64 `[places of u]`, ascending widths; `costs[u, v]`
    is float64 `[places of u, places of v]`, and `costs[u, u]` `[places of u]`; `fixed` is what every choice costs.
    """

    values: Sequence[Floats]
    costs: Mapping[tuple[int, int], Floats]
    fixed: float = 0.0

    def value(self, places: Sequence[int] | Ints) -> float:
        """What the choice of one place for each unit keeps."""
        return float(sum(kept[place] for kept, place in zip(self.values, places, strict=True)))

    def cost(self, places: Ints) -> Floats:
        """What choices cost, `[choices]`, for places `[choices, units]`."""
        total = np.full(len(places), self.fixed)
        for (u, v), table in self.costs.items():
            total += table[places[:, u]] if u == v else table[places[:, u], places[:, v]]
        return total


@dataclass(frozen=True)
class Optimum:
    """What the solver found: the places of the best choice (None for none), what it keeps, and what none can exceed."""

    places: tuple[int, ...] | None
    value: float
    bound: float
    seconds: float

    @property
    def proven(self) -> bool:
        """True where nothing better exists, up to what the solver leaves open."""
        return self.places is not None and self.bound - self.value <= 2 * _GAP * abs(self.bound)


def best_choice(widths: Widths, limit: float, seconds: float = 60.0) -> Optimum:
    """The choice that keeps the most and costs at most `limit`, or the best found in the time with the bound on all."""
    pairs = [set(pair) for pair in widths.costs if pair[0] != pair[1]]
    common = set.intersection(*pairs) if pairs else set()
    if not common:
        return _solved(widths, limit, seconds)
    return _by_place(widths, min(common), limit, seconds)


def _by_place(widths: Widths, hub: int, limit: float, seconds: float) -> Optimum:
    """The best over the places of one unit, those first whose relaxation promises most; the others need no solving."""
    begin = time.perf_counter()
    held = [_held(widths, hub, place) for place in range(len(widths.values[hub]))]
    promised = [_solved(one, limit, seconds, whole=False).bound for one in held]
    best = Optimum(None, -np.inf, -np.inf, 0.0)
    highest = -np.inf
    for place in np.argsort(-np.array(promised)):
        left = seconds - (time.perf_counter() - begin)
        if promised[place] <= best.value or left <= 0:
            highest = max(highest, promised[place])
            break
        one = _solved(held[place], limit, left)
        highest = max(highest, one.bound)
        best = one if one.value > best.value else best
    return Optimum(best.places, best.value, max(highest, best.value), time.perf_counter() - begin)


def _held(widths: Widths, hub: int, place: int) -> Widths:
    """The choice with one unit at one place: what it shares with another unit, that one costs by itself."""
    values = [
        kept if n != hub else np.where(np.arange(len(kept)) == place, kept, -np.inf)
        for n, kept in enumerate(widths.values)
    ]
    alone = {(n, n): np.zeros(len(kept)) for n, kept in enumerate(widths.values)}
    for (u, v), table in widths.costs.items():
        if u == v:
            alone[u, u] = alone[u, u] + table
        else:
            other, costs = (v, table[place]) if u == hub else (u, table[:, place])
            alone[other, other] = alone[other, other] + costs
    return Widths(values, alone, widths.fixed)


def _solved(widths: Widths, limit: float, seconds: float, *, whole: bool = True) -> Optimum:
    """The program's solution; with `whole=False` that of its relaxation, which only bounds."""
    program = _Program(widths)
    begin = time.perf_counter()
    solved = milp(
        -program.objective,
        integrality=program.integral * whole,
        bounds=Bounds(0, program.possible),
        constraints=[
            LinearConstraint(program.equalities, program.right, program.right),
            LinearConstraint(program.price[None, :], -np.inf, limit - widths.fixed),
        ],
        options={"time_limit": seconds, "mip_rel_gap": _GAP},
    )
    spent = time.perf_counter() - begin
    bound = getattr(solved, "mip_dual_bound", None) if whole else solved.fun
    impossible = solved.status == 2
    highest = -np.inf if impossible else np.inf if bound is None else -float(bound)
    if solved.x is None or not whole:
        return Optimum(None, -np.inf, highest, spent)
    places = program.places(solved.x)
    return Optimum(tuple(places), widths.value(places), highest, spent)


class _Program:
    """The variables: a binary for each place of each unit, then one for each pair of places of each kernel."""

    def __init__(self, widths: Widths) -> None:
        self._sizes = [len(values) for values in widths.values]
        self._first = np.concatenate([[0], np.cumsum(self._sizes)]).astype(np.int64)
        pairs = [(u, v) for u, v in widths.costs if u != v]
        starts = np.cumsum([self._first[-1], *(widths.costs[pair].size for pair in pairs)]).astype(np.int64)
        count = int(starts[-1])
        self.objective, self.price = np.zeros(count), np.zeros(count)
        kept = np.concatenate(list(widths.values))
        self.objective[: self._first[-1]] = np.where(np.isfinite(kept), kept, 0.0)
        self.possible = np.ones(count)
        self.possible[: self._first[-1]] = np.isfinite(kept)
        self.integral = (np.arange(count) < self._first[-1]).astype(np.int64)
        rows: list[tuple[Ints, Ints, Floats]] = []
        right: list[Floats] = [np.ones(len(self._sizes))]
        used = len(self._sizes)
        unit = np.repeat(np.arange(len(self._sizes)), self._sizes)
        rows.append((unit, np.arange(int(self._first[-1])), np.ones(len(unit))))
        for u, table in ((u, table) for (u, v), table in widths.costs.items() if u == v):
            self.price[self._first[u] : self._first[u + 1]] += table
        for (u, v), start in zip(pairs, starts.tolist(), strict=False):
            table = widths.costs[u, v]
            self.price[start : start + table.size] = table.ravel()
            number = start + np.arange(table.size).reshape(table.shape)
            for one, sums in ((u, number), (v, number.T)):
                rows += [_sums(used, sums), _minus(used, int(self._first[one]), len(sums))]
                right.append(np.zeros(len(sums)))
                used += len(sums)
        row, column, value = (np.concatenate([part[n] for part in rows]) for n in range(3))
        self.equalities: Any = coo_array((value, (row, column)), shape=(used, count)).tocsr()
        self.right = np.concatenate(right)

    def places(self, solution: Floats) -> list[int]:
        """The place of each unit."""
        ends = zip(self._first, self._first[1:], strict=False)
        return [int(np.argmax(solution[low:high])) for low, high in ends]


def _sums(first_row: int, numbers: Ints) -> tuple[Ints, Ints, Floats]:
    rows = first_row + np.repeat(np.arange(len(numbers)), numbers.shape[1])
    return rows, numbers.ravel(), np.ones(numbers.size)


def _minus(first_row: int, first_column: int, count: int) -> tuple[Ints, Ints, Floats]:
    return first_row + np.arange(count), first_column + np.arange(count), -np.ones(count)
