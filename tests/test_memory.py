"""The prices of memory: the peak of activations and the bytes on disk, against other ways of counting them."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import structprune as sp


class Walk(TorchDispatchMode):
    """Runs a model for real and notes every storage: its bytes, who makes it, and who is given it last."""

    def __init__(self, model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        super().__init__()
        self.storages: dict[int, Any] = {}  # held, so that no number is given twice
        self.first: dict[int, int] = {}
        self.last: dict[int, int] = {}
        self.time = 0
        own = {id(t.untyped_storage()) for t in (*model.parameters(), *model.buffers())}
        given = {id(t.untyped_storage()): t.untyped_storage() for t in inputs}
        with torch.no_grad(), self:
            result = model.eval()(*inputs)
        for leaf in tree_leaves(result):
            self.last[id(leaf.untyped_storage())] = self.time
        for key, storage in given.items():
            self.storages[key], self.first[key], self.last[key] = storage, 0, self.time
        self.storages = {key: storage for key, storage in self.storages.items() if key not in own}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, out)):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                self.storages[id(storage)] = storage
                self.first.setdefault(id(storage), self.time)
                self.last[id(storage)] = self.time
        self.time += 1
        return out

    @property
    def peak(self) -> int:
        return max(
            sum(s.nbytes() for key, s in self.storages.items() if self.first[key] <= now <= self.last[key])
            for now in range(self.time + 1)
        )


class Eager(TorchDispatchMode):
    """Runs a model for real and watches what Python keeps alive after each operation."""

    def __init__(self, model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        super().__init__()
        self.alive: list[Any] = [weakref.ref(t.untyped_storage()) for t in inputs]
        self.own = {id(t.untyped_storage()) for t in (*model.parameters(), *model.buffers())}
        self.peak = 0
        with torch.no_grad(), self:
            model.eval()(*inputs)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        known = {id(ref()) for ref in self.alive}
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor) and id(leaf.untyped_storage()) not in known | self.own:
                self.alive.append(weakref.ref(leaf.untyped_storage()))
                known.add(id(leaf.untyped_storage()))
        self.alive = [ref for ref in self.alive if ref() is not None]
        self.peak = max(self.peak, sum(ref().nbytes() for ref in self.alive if ref() is not None))
        return out


class Residual(nn.Module):
    """A stem, two blocks that add, a pool, and a head whose code writes no size."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 24, 3, padding=1), nn.BatchNorm2d(24)
        self.up = nn.ModuleList(nn.Conv2d(24, 40, 3, padding=1) for _ in range(2))
        self.down = nn.ModuleList(nn.Conv2d(40, 24, 1) for _ in range(2))
        self.pool, self.head = nn.MaxPool2d(2), nn.Linear(24, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm(self.stem(x)), inplace=True)
        for up, down in zip(self.up, self.down, strict=True):
            x = self.pool(x + down(F.relu(up(x))))
        return self.head(x.mean((2, 3)))


class Dense(nn.Module):
    """Concatenations, which keep early results alive, and a depthwise convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 12, 3, padding=1)
        self.deep = nn.Conv2d(28, 28, 3, padding=1, groups=28)
        self.mix, self.last = nn.Conv2d(28, 20, 1), nn.Conv2d(36, 4, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        early = self.first(x).relu()
        both = torch.cat([early, self.second(early).sigmoid()], 1)
        mixed = self.mix(self.deep(both)).relu_()
        return self.last(torch.cat([mixed, early], 1)), x


class Attention(nn.Module):
    """Two query heads for each key head by expand, which takes no memory, and softmax over scores."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(24, 48), nn.Linear(24, 24), nn.Linear(24, 24)
        self.out, self.up, self.down = nn.Linear(48, 24), nn.Linear(24, 96), nn.Linear(96, 24)
        self.first, self.second = nn.LayerNorm(24), nn.LayerNorm(24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, _ = x.shape
        y = self.first(x)
        q = self.q(y).view(b, n, 3, 2, 8).permute(0, 2, 3, 1, 4)
        k = self.k(y).view(b, n, 3, 1, 8).permute(0, 2, 3, 1, 4).expand(b, 3, 2, n, 8)
        v = self.v(y).view(b, n, 3, 1, 8).permute(0, 2, 3, 1, 4).expand(b, 3, 2, n, 8)
        mixed = (q @ k.transpose(-1, -2) * 8**-0.5).softmax(-1) @ v
        x = x + self.out(mixed.permute(0, 3, 1, 2, 4).reshape(b, n, 48))
        return x + self.down(F.gelu(self.up(self.second(x))))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(6, 20), nn.Linear(20, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = x.new_zeros(x.shape[0], self.cell.hidden_size)
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.head(state)


class Chosen(nn.Module):
    """Control flow that reads values: traced on real tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 32), nn.Linear(32, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        return self.second(y.relu() if y.sum().item() < 1e9 else y)


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 16), nn.Linear(16, 4)), (3, 6)),
    "residual": (Residual, (2, 3, 16, 16)),
    "dense": (Dense, (2, 3, 12, 12)),
    "attention": (Attention, (2, 10, 24)),
    "recurrent": (Recurrent, (4, 5, 6)),
    "chosen": (Chosen, (4, 8)),
}


@pytest.mark.parametrize("name", NETS)
def test_the_peak_is_what_a_walk_over_real_storages_finds_before_and_after_a_cut(name: str) -> None:
    torch.manual_seed(0)
    make, shape = NETS[name]
    model, x = make().eval(), torch.randn(shape)
    graph = sp.trace(model, x)
    assert graph.price("peak_memory", graph.sizes()) == Walk(model, (x,)).peak
    assert sp.peak_activation_bytes(model, x) == Walk(model, (x,)).peak
    plan = sp.select(graph, sp.score(model, graph), sp.Budget(macs=0.5))
    small = sp.apply_plan(model, plan)
    counts = graph.counts(plan)
    assert (counts < graph.sizes()).any()
    assert graph.price("peak_memory", counts) == Walk(small, (x,)).peak
    assert graph.price("file_size", counts) == sp.weight_bytes(small)


@pytest.mark.parametrize("name", NETS)
def test_eager_mode_takes_at_least_as_much(name: str) -> None:
    make, shape = NETS[name]
    model, x = make().eval(), torch.randn(shape)
    assert sp.peak_activation_bytes(model, x) <= Eager(model, (x,)).peak
