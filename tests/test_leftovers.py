"""A trace leaves nothing of its own in the caches of the user's code."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import structprune as sp
from tests.nets import architectures_odd

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
    with pytest.raises(sp.TraceError, match="draws random numbers"):
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


SEEN: dict[str, Tensor] = {}
last: Tensor | None = None


class Telling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        global last
        last = torch.relu(self.first(x))
        return self.second(last)


def test_the_users_variables_keep_their_names() -> None:
    global last
    net, x = Telling(), torch.randn(3, 4)
    store: list[Tensor] = []
    net.first.register_forward_hook(lambda _module, _inputs, out: store.append(out))
    net(x)
    sp.prune(net, x, sp.Budget(channels=0.5))
    assert len(store) == 1
    assert store[0].device.type == "cpu"
    assert "last" in globals()


def test_a_budget_is_a_share_of_the_original_on_any_batch() -> None:
    net = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 2))
    first = sp.prune(net, torch.randn(1, 4), sp.Budget(macs=0.5))
    second = sp.prune(first.model, torch.randn(8, 4), sp.Budget(macs=0.25))
    assert second.model[0].out_features == 16


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.other = nn.Linear(4, 8), nn.Linear(8, 2), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.first(x))
        return self.other(hidden) if self.training else self.second(hidden)


def test_what_the_forward_does_not_reach_is_told() -> None:
    with pytest.warns(UserWarning, match=r"other\.weight"):
        report = sp.prune(TwoHeads(), torch.randn(3, 4), sp.Budget(channels=0.5)).report
    assert report.unused == ("other.weight", "other.bias")
    assert "not reached by this forward" in str(report)


def test_nothing_is_proven_on_numbers_that_are_not_finite() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(sp.VerificationError, match="has a finite number"):
        sp.prune(net, torch.full((3, 4), torch.nan) * torch.arange(4), sp.Budget(channels=0.5))


class Overflowing(nn.Module):
    """A network whose numbers overflow in float64 alone, as some masks of a dtype's least number do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.second(torch.relu(self.first(x)))
        return (scores - 10.0 * torch.finfo(x.dtype).max / torch.finfo(torch.float32).max).softmax(-1)


def test_what_overflows_in_double_is_proven_in_single() -> None:
    net, x = Overflowing(), torch.randn(3, 4)
    assert net.double()(x.double()).isnan().all()
    assert net.float()(x).isfinite().all()
    report = sp.prune(net.float(), x, sp.Budget(channels=0.5)).report.verify
    assert report is not None
    assert report.tolerance == 1e-4


def test_load_leaves_a_living_model_alone(tmp_path: Path) -> None:
    net, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(3, 4)
    before = net(x)
    result = sp.prune(net, x, sp.Budget(channels=0.5))
    sp.save(tmp_path, result.model, result.plan)
    loaded = sp.load(tmp_path, lambda: net)
    assert loaded is not net
    assert torch.equal(net(x), before)
    assert torch.allclose(loaded(x), result.model(x))


def test_inference_mode_changes_nothing() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    with torch.inference_mode():
        result = sp.prune(net, torch.randn(3, 4), sp.Budget(channels=0.5))
    assert result.model[0].out_features == 4


def test_inference_mode_leaves_the_same_groups_free() -> None:
    def made() -> nn.Module:
        layers = (
            nn.Conv2d(1, 8, 3),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3),
            nn.Flatten(),
            nn.Linear(128, 4),
        )
        return nn.Sequential(*layers)

    wanted = [(group.name, group.frozen) for group in sp.trace(made(), torch.zeros(2, 1, 8, 8)).groups]
    outside = made()
    with torch.inference_mode():
        for net in (outside, made()):
            graph = sp.trace(net, torch.zeros(2, 1, 8, 8))
            assert [group.name for group in graph.groups] == [name for name, _ in wanted]
            assert [group.frozen is None for group in graph.groups] == [
                frozen is None for _, frozen in wanted
            ]


def test_an_example_without_samples_is_refused() -> None:
    with pytest.raises(sp.InputError, match=r"no samples in the example input: its shape is \[0, 4\]"):
        sp.trace(nn.Linear(4, 2), torch.zeros(0, 4))


def test_cached_functions_of_sizes_keep_no_traced_ones() -> None:
    net = nn.Sequential(nn.Linear(6, 16), architectures_odd.Remembered(16, 4), nn.Linear(16, 3)).eval()
    net(torch.zeros(2, 6, 6))
    cached = architectures_odd.split_shape
    graph = sp.trace(net, torch.zeros(2, 6, 6))
    assert any(group.frozen is None and "1.qkv.weight" in group.layers for group in graph.groups)
    assert architectures_odd.split_shape is cached
    assert {type(size) for size in cached((2, 6, 16), 4)} == {int}


class Forgetful(nn.Module):
    """Keeps a table for inference, and drops it when it is told whether to train."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner, self.width, self.known = nn.Conv2d(width, width, 3, padding=1), width, {}

    @torch.no_grad()
    def train(self, mode: bool = True) -> Forgetful:
        self.known = {} if mode else self.known
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        if "scale" not in self.known:
            self.known["scale"] = torch.full((1, 1), 2.0)
        return self.inner(x).view(len(x), self.width, *x.shape[2:]) * self.known["scale"]


def test_what_a_module_does_when_told_to_train_is_no_step_of_its_forward() -> None:
    net = nn.Sequential(nn.Conv2d(3, 16, 3), Forgetful(16), nn.Conv2d(16, 2, 1)).eval()
    graph = sp.trace(net, torch.zeros(1, 3, 8, 8))
    assert not [group.name for group in graph.groups if "other steps" in str(group.frozen)]
