"""What code does with a size that is no size: seen as it happens, or by rehearsing the cut; frozen with its line."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import structprune as sp
from tests.nets.case import Net

Between = Callable[[Any, Tensor], Tensor]


def net(between: Between) -> nn.Module:
    """Something done to twelve neurons, whose number the model also keeps as `width`."""

    def forward(m: Any, x: Tensor) -> Tensor:
        return m.head(between(m, m.stem(x).relu()))  # type: ignore[no-any-return]

    return Net(forward, stem=nn.Linear(4, 12), head=nn.Linear(12, 3), width=12)


NUMBER, STEPS = "the code uses this size", "the code takes other steps where this size changes"

FROZEN: dict[str, tuple[Between, str]] = {
    "a float divided": (lambda m, x: x * (1.0 / x.shape[1]), NUMBER),
    "a float multiplied": (lambda m, x: x * (0.5 * x.shape[1]), NUMBER),
    "a float added": (lambda m, x: x + (0.5 + x.shape[1]), NUMBER),
    "math.log": (lambda m, x: x / math.log(x.shape[1]), NUMBER),
    "math.sqrt of an attribute": (lambda m, x: x.view(-1, m.width) / math.sqrt(m.width), NUMBER),
    "a float divided by an attribute": (lambda m, x: x.view(-1, m.width) * (1.0 / m.width), NUMBER),
    "bit_length": (lambda m, x: x * x.shape[1].bit_length(), NUMBER),
    "numpy": (lambda m, x: x * float(np.log(x.shape[1])), NUMBER),
    "real": (lambda m, x: x * x.shape[1].real, NUMBER),
    "an index into a list": (lambda m, x: x * [float(i) for i in range(20)][x.shape[1]], NUMBER),
    "a key of text": (lambda m, x: x * {"w12": 2.0}.get(f"w{x.shape[1]}", 1.0), NUMBER),
    "len": (lambda m, x: x * len(x.t()), NUMBER),
    "the size of a weight": (lambda m, x: x * (1.0 / m.stem.weight.shape[0]), NUMBER),
    "a loop": (lambda m, x: sum(x * i for i in range(x.shape[1])), STEPS),  # type: ignore[arg-type, return-value]
    "a loop over an attribute": (
        lambda m, x: sum(x.view(-1, m.width) * i for i in range(m.width)),  # type: ignore[arg-type, return-value]
        STEPS,
    ),
    "one of some numbers": (
        lambda m, x: x if x.shape[1] in (12, 14) else -x,
        "a comparison is written with the number 12",
    ),
    "a list as long": (
        lambda m, x: x + torch.tensor([0.5] * x.shape[1]),
        "add joins it with a dimension of fixed size",
    ),
    "arange": (lambda m, x: x + torch.arange(x.shape[1]), "arange numbers its positions"),
}


@pytest.mark.parametrize("name", FROZEN)
def test_a_size_used_otherwise_is_frozen_with_its_line(name: str) -> None:
    between, words = FROZEN[name]
    reasons = {group.name: str(group.frozen) for group in sp.trace(net(between), torch.randn(2, 4)).groups}
    assert words in reasons["stem"]
    assert f"(test_rehearsal.py:{between.__code__.co_firstlineno}" in reasons["stem"] or "loop" in name


CUT: dict[str, Between] = {
    "an attribute that is no size": lambda m, x: x * (1.0 / m.width),
    "truth": lambda m, x: x if x.shape[1] else -x,
    "a multiple asked for": lambda m, x: x if x.shape[1] % 2 == 0 else -x,
    "no multiple": lambda m, x: x if x.shape[1] % 5 == 0 else -x,
    "the smaller": lambda m, x: x[:, : min(x.shape[1], 100)],
    "the larger": lambda m, x: x[:, : max(x.shape[1], 3)],
    "divmod": lambda m, x: x.view(-1, divmod(x.shape[1], 2)[0], 2).flatten(1),
    "math.prod": lambda m, x: x.view(x.shape[0], math.prod(x.shape[1:])),
    "the number of dimensions": lambda m, x: x * len(x.shape),
    "the batch": lambda m, x: x * len(x),
    "equal to an attribute": lambda m, x: x if x.shape[1] == m.width else -x,
}


@pytest.mark.parametrize("name", CUT)
def test_a_size_that_follows_is_cut_and_proven(name: str) -> None:
    result = sp.prune(net(CUT[name]), torch.randn(2, 4), sp.Budget(channels=0.5))
    assert result.model.get_parameter("stem.weight").shape == (6, 4)
    assert result.report.verify is not None


def test_a_multiple_that_is_asked_for_is_kept() -> None:
    result = sp.prune(net(CUT["a multiple asked for"]), torch.randn(2, 4), sp.Budget(macs=0.45))
    assert result.model.get_parameter("stem.weight").shape[0] % 2 == 0


class Named(nn.Module):
    """Reads what torch's own layer calls its size."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.other, self.head = nn.Linear(4, 12), nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.other(self.stem(x).relu() * (1.0 / self.stem.out_features))
        return self.head(x.relu())  # type: ignore[no-any-return]


def test_only_what_is_used_as_a_number_is_frozen() -> None:
    reasons = {group.name: group.frozen for group in sp.trace(Named(), torch.randn(2, 4)).groups}
    line = Named.forward.__code__.co_firstlineno + 1
    assert str(reasons["stem"]) == f"the code uses this size as a number (test_rehearsal.py:{line})"
    assert reasons["other"] is None


def test_where_the_forward_of_a_cut_model_fails_the_line_is_named() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.other, self.head = nn.Linear(4, 12), nn.Linear(12, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x).relu()
            factor = {12: 2.0, 11: 3.0}[int.__index__(x.shape[1])]
            return self.head(self.other(x * factor).relu())  # type: ignore[no-any-return]

    reasons = {group.name: group.frozen for group in sp.trace(Table(), torch.randn(2, 4)).groups}
    line = Table.forward.__code__.co_firstlineno + 2
    fails = "the code does not follow this size: its forward fails where it is cut"
    assert str(reasons["stem"]) == f"{fails} (test_rehearsal.py:{line})"
    assert reasons["other"] is None


def test_the_model_and_the_users_caches_are_left_alone() -> None:
    kept: dict[int, Tensor] = {}

    def cached(m: Any, x: Tensor) -> Tensor:
        if x.shape[1] not in kept:
            kept[x.shape[1]] = torch.ones(x.shape[1]) * 2
        return x * kept[x.shape[1]]

    model = net(cached)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    sp.trace(model, torch.randn(2, 4))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(tensor.is_meta for tensor in kept.values())
