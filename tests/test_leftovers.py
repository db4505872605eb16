"""A trace leaves nothing of its own in the caches of the user's code."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor, nn

import structprune as sp

TABLES: dict[int, Tensor] = {}


@functools.lru_cache(maxsize=8)
def cached_ramp(length: int) -> Tensor:
    return torch.ones(length) * 2


@functools.cache
def cached_pair(length: int) -> tuple[Tensor, Tensor]:
    return torch.ones(length), torch.zeros(length)


class Caching(nn.Module):
    def __init__(self, way: str) -> None:
        super().__init__()
        self.first, self.second, self.way = nn.Linear(4, 8), nn.Linear(8, 2), way
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.first(x))
        if self.way == "lru":
            hidden = hidden * cached_ramp(len(x))[:, None]
        elif self.way == "pair":
            hidden = hidden * cached_pair(len(x))[0][:, None]
        elif self.way == "dict":
            if len(x) not in TABLES:
                TABLES[len(x)] = torch.ones(len(x), 1)
            hidden = hidden * TABLES[len(x)]
        else:
            self.last = hidden
        return self.second(hidden)


@pytest.mark.parametrize("way", ["lru", "pair", "dict", "attribute"])
def test_the_model_runs_as_before_after_a_trace(way: str) -> None:
    cached_ramp.cache_clear()
    cached_pair.cache_clear()
    TABLES.clear()
    net, x = Caching(way), torch.randn(3, 4)
    graph = sp.trace(net, x)
    assert graph.run.kind == "meta"
    assert net.last is None
    with torch.no_grad():
        assert net(x).device.type == "cpu"
    result = sp.prune(net, x, sp.Budget(channels=0.5))
    with torch.no_grad():
        assert result.model(x).shape == (3, 2)


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(nn.functional.dropout(self.first(x), 0.5, training=True))


def test_a_random_forward_is_said_to_be_random() -> None:
    net, x = Dropping(), torch.randn(64, 4)
    before = torch.get_rng_state()
    with pytest.raises(sp.VerificationError, match="draws random numbers"):
        sp.prune(net, x, sp.Budget(channels=0.5))
    assert torch.equal(before, torch.get_rng_state())


class DeviceCache(nn.Module):
    """Keeps a table for each device it ran on, as wide as its layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.scale, self.second = nn.Linear(4, 8), nn.Parameter(torch.rand(8)), nn.Linear(8, 2)
        self.tables: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        device = str(x.device)
        if device not in self.tables:
            self.tables[device] = self.scale.detach() * 2
        return self.second(torch.relu(self.first(x)) * self.tables[device])


def test_a_cache_that_was_filled_before_is_cut_with_the_rest() -> None:
    net, x = DeviceCache(), torch.randn(3, 4)
    net(x)
    small = sp.prune(net, x, sp.Budget(channels=0.5)).model
    assert list(small.tables) == ["cpu"]
    assert small.tables["cpu"].shape == (4,)
    assert net.tables["cpu"].shape == (8,)
