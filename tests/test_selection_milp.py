"""The choice of widths beside the best there is, found by a solver; and the solver's formulation beside trying all."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import structprune as sp
from benchmarks.selection import Costs, costs_of, widths_of
from benchmarks.selection_milp import Widths, best_choice
from structprune.select import value_units
from structprune.selection import Prices, Unit, most_valuable

BLOCK = 8


def drawn_units(generator: np.random.Generator, count: int, most: int) -> list[Unit]:
    units = []
    for number in range(count):
        size = BLOCK * int(generator.integers(3, most + 1))
        curve = np.sort(generator.gamma(1.0, size=size))[::-1]
        units.append(Unit((number,), size, np.arange(BLOCK, size + 1, BLOCK), curve / curve.sum()))
    return units


def drawn_costs(generator: np.random.Generator, count: int) -> Costs:
    """Layers one after the other, and a unit (the first) that each third layer reads and writes as well."""
    pairs = np.zeros((count, count))
    for u, v in [*itertools.pairwise(range(count)), *((0, v) for v in range(2, count, 3))]:
        pairs[u, v] = pairs[v, u] = generator.uniform(0.2, 2.0)
    return Costs(pairs, generator.uniform(1.0, 20.0, count), 100.0)


def plain(units: list[Unit], costs: Costs) -> Widths:
    """What is kept is a plain sum of importance."""
    values = [np.concatenate([[0.0], np.cumsum(unit.curve)])[unit.allowed] for unit in units]
    return Widths(values, widths_of(units, costs).costs, costs.fixed)


def whole(units: list[Unit], costs: Costs) -> float:
    return float(costs(np.array([[unit.size for unit in units]]))[0])


def places_of(units: list[Unit], counts: np.ndarray) -> list[int]:
    return [int(np.searchsorted(unit.allowed, count)) for unit, count in zip(units, counts, strict=True)]


@pytest.mark.parametrize("seed", range(3))
def test_the_solver_finds_what_trying_all_choices_finds(seed: int) -> None:
    generator = np.random.default_rng(seed)
    units, costs = drawn_units(generator, 4, 5), drawn_costs(generator, 4)
    widths, limit = plain(units, costs), generator.uniform(0.4, 0.8) * whole(units, costs)
    choices = np.array(list(itertools.product(*(range(len(unit.allowed)) for unit in units))))
    counts = np.stack([unit.allowed[choices[:, n]] for n, unit in enumerate(units)], axis=1)
    assert np.allclose(widths.cost(choices), costs(counts))
    best = max(widths.value(one) for one in choices[costs(counts) <= limit])
    found = best_choice(widths, limit)
    assert found.places is not None
    assert found.proven
    assert found.value == pytest.approx(best, rel=3e-4)
    assert widths.cost(np.array([found.places]))[0] <= limit * (1 + 1e-6)
    assert found.bound >= best * (1 - 1e-9)


def test_what_no_choice_can_hold_has_none() -> None:
    generator = np.random.default_rng(0)
    units, costs = drawn_units(generator, 3, 4), drawn_costs(generator, 3)
    assert best_choice(plain(units, costs), 50.0).places is None


@pytest.mark.parametrize("share", [0.35, 0.5, 0.75])
def test_on_networks_of_middle_size_the_choice_keeps_99_percent_of_the_best(share: float) -> None:
    generator = np.random.default_rng(int(100 * share))
    units, costs = drawn_units(generator, 12, 8), drawn_costs(generator, 12)
    widths, limit = plain(units, costs), share * whole(units, costs)
    found = most_valuable(units, lambda counts: costs(counts) / limit)
    best = best_choice(widths, limit, seconds=20.0)
    assert costs(found[None])[0] <= limit
    assert widths.value(places_of(units, found)) >= 0.99 * best.bound


@pytest.mark.parametrize("share", [0.35, 0.6])
def test_where_every_width_is_a_choice_the_stairs_do_not_hold_it_up(share: float) -> None:
    generator = np.random.default_rng(int(100 * share))
    units, costs = drawn_units(generator, 10, 16), drawn_costs(generator, 10)
    limit = share * whole(units, costs)
    fine = [replace(unit, allowed=np.arange(1, unit.size + 1)) for unit in units]
    found = most_valuable(fine, lambda counts: costs(counts) / limit)
    best = best_choice(plain(units, costs), limit, seconds=20.0)  # of multiples of 8 alone
    assert costs(found[None])[0] <= limit
    assert plain(fine, costs).value(places_of(fine, found)) >= 0.99 * best.value


def test_where_one_width_is_part_of_all_the_choice_is_as_good() -> None:
    generator = np.random.default_rng(5)
    units = drawn_units(generator, 10, 12)
    pairs = np.zeros((10, 10))
    pairs[0, 1:] = pairs[1:, 0] = generator.uniform(0.5, 2.0, 9)
    costs = Costs(pairs, np.zeros(10), 0.0)
    widths, limit = plain(units, costs), 0.4 * whole(units, costs)
    found = most_valuable(units, lambda counts: costs(counts) / limit)
    best = best_choice(widths, limit)
    assert best.proven
    assert widths.value(places_of(units, found)) >= 0.99 * best.bound


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(64, 96, 1), nn.ReLU(), nn.Conv2d(96, 64, 3, padding=1)) for _ in range(4)
        )
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x).relu()
        out: torch.Tensor = self.head(x.mean((2, 3)))
        return out


def test_what_select_chooses_in_a_network_is_what_the_solver_chooses() -> None:
    torch.manual_seed(0)
    model, x = Residual(), torch.zeros(1, 3, 8, 8)
    graph = sp.trace(model, x)
    scores = sp.score(model, graph, "l2")
    alignment = {group.name: 16 for group in graph.groups}
    units = value_units(graph, scores, alignment)
    costs = costs_of(graph, units)
    positions = [unit.positions[0] for unit in units]
    all_of_it = whole(list(units), costs)
    assert all_of_it == pytest.approx(sp.count_macs(model, x))
    prices = Prices(lambda counts: costs(counts[:, positions]) / all_of_it, 0.5, alignment)
    plan = sp.select(graph, scores, sp.Budget(latency=0.5), prices=prices)
    counts = graph.counts(plan)[positions]
    assert costs(counts[None])[0] <= 0.5 * all_of_it
    widths = widths_of(units, costs)
    best = best_choice(widths, 0.5 * all_of_it)
    assert best.proven
    assert -1 / widths.value(places_of(list(units), counts)) >= 0.99 * -1 / best.bound
