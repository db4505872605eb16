"""Budgets of several quantities: each one holds, and little more is given up than they ask for."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import structprune as sp


def share(graph: sp.DependencyGraph, quantity: str, counts: np.ndarray) -> float:
    return graph.price(quantity, counts) / graph.price(quantity, graph.sizes())


class Net(nn.Module):
    """Early layers hold the activations, middle ones the MACs, late ones the parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.early, self.middle = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 24, 3, padding=1)
        self.late, self.wide = nn.Conv2d(24, 32, 3, padding=1), nn.Conv2d(32, 64, 3, padding=1)
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(self.early(x).relu(), 2)
        x = F.max_pool2d(self.middle(x).relu(), 2)
        return self.head(self.wide(self.late(x).relu()).relu().mean((2, 3)))


X = torch.zeros(1, 3, 16, 16)
ASKED: list[dict[str, float]] = [
    {"macs": 0.5, "params": 0.5},
    {"macs": 0.4, "peak_memory": 0.6},
    {"params": 0.3, "peak_memory": 0.8},
    {"file_size": 0.5, "channels": 0.6},
    {"macs": 0.5, "params": 0.4, "peak_memory": 0.5},
    {"peak_memory": 0.5},
    {"macs": 0.9, "params": 0.2},
]


def seeded(seed: int) -> tuple[sp.DependencyGraph, dict[str, np.ndarray]]:
    torch.manual_seed(seed)
    graph = sp.trace(Net(), X)
    generator = np.random.default_rng(seed)
    return graph, {g.name: generator.gamma(2.0, size=g.size) for g in graph.groups if g.frozen is None}


@pytest.mark.parametrize("asked", ASKED, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_the_choice_is_within_one_percent_of_the_best_there_is(seed: int, asked: dict[str, float]) -> None:
    graph, scores = seeded(seed)
    plan = sp.select(graph, scores, sp.Budget(**asked), multiple_of=4)
    assert plan.scope == "value"
    counts = graph.counts(plan)
    for quantity, limit in asked.items():
        assert share(graph, quantity, counts) <= limit
    free = [n for n, g in enumerate(graph.groups) if g.frozen is None]
    widths = [range(4, graph.groups[n].size + 1, 4) for n in free]
    grid = np.tile(graph.sizes(), (int(np.prod([len(w) for w in widths])), 1))
    grid[:, free] = list(itertools.product(*widths))
    holds = np.ones(len(grid), dtype=bool)
    for quantity, limit in asked.items():
        whole = graph.price(quantity, graph.sizes())
        holds &= graph.levels(quantity, grid).max(axis=1) <= limit * whole
    governed = graph.governed("macs")
    kept = np.zeros(len(grid))
    for n in free:
        best = np.sort(scores[graph.groups[n].name])[::-1]
        kept += governed[n] * np.cumsum(best / best.sum())[grid[:, n] - 1]
    own = float(kept[(grid == counts).all(axis=1)][0])
    assert own >= 0.99 * kept[holds].max()
