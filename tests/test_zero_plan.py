"""A plan of all channels that are zero: exactly these, and the function stays as it was."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import structprune as sp
from structprune.errors import InputError
from structprune.train import zero_plan
from structprune.train.penalties.channels import channels_of
from tests.nets.by_row import FREE, TOGETHER
from tests.oracle import fill_distinct


def emptied(model: nn.Module, graph: sp.DependencyGraph, count: int) -> dict[str, int]:
    """Set other channels to zero in each row of each group that is cut by default; how many each lost."""
    groups = [group for group in graph.groups if group.frozen is None and group.primary]
    lost = {}
    chance = np.random.default_rng(0)
    for group, channels in zip(groups, channels_of(model, groups, lambda m: m.is_parameter), strict=True):
        lost[group.name] = min(count, group.size - 1)
        factors = torch.ones(channels.shape).reshape(-1, group.size)
        for row in factors:
            row[chance.permutation(group.size)[: lost[group.name]]] = 0
        channels.scale_(factors.reshape(-1))
    return lost


def outputs(model: nn.Module, x: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.double().eval()(x.double() if x.is_floating_point() else x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", [*FREE, *TOGETHER])
def test_zero_channels_go_and_nothing_changes(name: str) -> None:
    torch.manual_seed(0)
    model, x = {**FREE, **TOGETHER}[name][0]()
    fill_distinct(model).eval()
    graph = sp.trace(model, x)
    changing = {group.name for group in graph.groups if group.changes}
    lost = emptied(model, graph, 1)
    plan = zero_plan(graph, model)
    found = {group.name: group.size - group.count for group in plan.groups if group.count < group.size}
    assert found.items() <= lost.items()
    assert not found.keys() & changing
    small = sp.apply_plan(model, plan)
    sp.verify(model, small, plan, x)
    torch.testing.assert_close(outputs(model, x), outputs(small, x), rtol=1e-10, atol=1e-10)


def net() -> nn.Sequential:
    """Hidden neurons with the norms 1, 2, 3, 4, 5, 6: all that each has is its bias."""
    model = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model[0].bias.copy_(torch.tensor([3.0, 1.0, 6.0, 2.0, 5.0, 4.0]))
    return model


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, [0, 1, 2, 3, 4, 5]),
        ({"threshold": 1.0}, [0, 2, 3, 4, 5]),
        ({"threshold": 3.5}, [2, 4, 5]),
        ({"threshold": 100.0}, [2]),
        ({"threshold": 100.0, "min_channels": 2}, [2, 4]),
        ({"threshold": 3.5, "multiple_of": 4}, [0, 2, 4, 5]),
        ({"threshold": 3.5, "max_pruned": 0.34}, [0, 2, 4, 5]),
        ({"threshold": 1.0, "normalize": "mean"}, [2, 4, 5]),
        ({"threshold": 100.0, "keep": "0"}, [0, 1, 2, 3, 4, 5]),
        ({"threshold": 9.0, "criterion": lambda group: np.arange(6) * 3.0}, [4, 5]),
    ],
)
def test_all_at_most_the_threshold_and_no_other(options: dict[str, Any], kept: list[int]) -> None:
    model = net()
    plan = zero_plan(sp.trace(model, torch.randn(3, 2)), model, **options)
    assert list(plan.groups[0].keep) == kept


def test_groups_that_keep_equal_numbers_lose_what_both_can_spare() -> None:
    class Gated(nn.Module):
        """Two halves of one output, that must stay equal."""

        def __init__(self) -> None:
            super().__init__()
            self.both, self.left, self.right = nn.Linear(3, 12), nn.Linear(6, 2), nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            a, b = self.both(x).chunk(2, dim=1)
            return self.left(a.tanh()) + self.right(b.relu())

    model, x = Gated(), torch.randn(4, 3)
    graph = sp.trace(model, x)
    with torch.no_grad():
        for dead in (1, 2, 3):
            model.both.weight[dead], model.both.bias[dead], model.left.weight[:, dead] = 0, 0, 0
        for dead in (0, 5):
            model.both.weight[6 + dead], model.both.bias[6 + dead], model.right.weight[:, dead] = 0, 0, 0
    plan = zero_plan(graph, model)
    assert sorted(group.count for group in plan.groups if group.count < group.size) == [4, 4]
    torch.testing.assert_close(outputs(model, x), outputs(sp.apply_plan(model, plan), x))


def test_statistics_over_fewer_channels_are_asked_for() -> None:
    model = nn.Sequential(nn.Linear(3, 6), nn.LayerNorm(6), nn.Linear(6, 2))
    graph = sp.trace(model, torch.randn(4, 3))
    with torch.no_grad():
        for tensor in (model[0].weight, model[0].bias, model[1].weight, model[1].bias):
            tensor[2] = 0
        model[2].weight[:, 2] = 0
    assert zero_plan(graph, model).groups[0].count == 6
    assert zero_plan(graph, model, statistics=True).groups[0].keep == (0, 1, 3, 4, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"threshold": float("inf")}, "threshold"), ({"normalize": "max"}, "normalize"), ({"seed": 1}, "seed")],
)
def test_bad_arguments_are_named(options: dict[str, Any], message: str) -> None:
    model = net()
    with pytest.raises(InputError, match=message):
        zero_plan(sp.trace(model, torch.randn(3, 2)), model, **options)
