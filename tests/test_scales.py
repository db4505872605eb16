"""What scales channels is told from the operations, whatever its class and its tensors are called."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import structprune as sp
from structprune.errors import InputError
from structprune.train import Slimming, finetune

WIDTH = 6


class Plain(nn.Module):
    """Two layers with something between them."""

    def __init__(self, between: nn.Module, first: nn.Module | None = None) -> None:
        super().__init__()
        self.one = first or nn.Conv2d(2, WIDTH, 3)
        self.between = between
        self.two = nn.Conv2d(WIDTH, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.relu(self.between(self.one(x))))


class Gauge(nn.Module):
    """A root mean square over the channels, computed in float32 as language models do; the scale is called `gain`."""

    def __init__(self, offset: float = 0.0) -> None:
        super().__init__()
        self.gain, self.offset = nn.Parameter(torch.ones(WIDTH)), offset

    def forward(self, x: Tensor) -> Tensor:
        root = x.float().square().mean(1, keepdim=True).add(1e-6).rsqrt()
        gain = self.gain + self.offset if self.offset else self.gain
        return gain.view(1, -1, 1, 1) * (x.float() * root).to(x.dtype)


class Frozen(nn.Module):
    """Batch norm with buffers alone, as detectors have it: the variance goes into the scale first."""

    def __init__(self, fused: bool = False) -> None:
        super().__init__()
        self.fused = fused
        for name in ("a", "b", "mean", "spread"):
            self.register_buffer(name, torch.rand(WIDTH) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        a, b, mean, spread = (t.reshape(1, -1, 1, 1) for t in (self.a, self.b, self.mean, self.spread))
        if self.fused:
            return torch.addcmul(b - mean * a / spread.sqrt(), x, a / spread.sqrt())
        scale = (spread + 1e-5).rsqrt() * a
        return x * scale + (b - mean * scale)


class Times(nn.Module):
    """A layer scale `[channels, 1, 1]`."""

    def __init__(self) -> None:
        super().__init__()
        self.by = nn.Parameter(torch.rand(WIDTH, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x.mul(self.by)


class Standardised(nn.Conv2d):
    """A convolution whose weights are normalised, with a gain: no scale of what it computes."""

    def __init__(self) -> None:
        super().__init__(2, WIDTH, 3)
        self.gain = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        weight = nn.functional.batch_norm(
            self.weight.reshape(1, WIDTH, -1), None, None, weight=self.gain, training=True
        )
        return nn.functional.conv2d(x, weight.reshape_as(self.weight), self.bias)


def scales_of(model: nn.Module) -> set[str]:
    graph = sp.trace(model, torch.randn(2, 2, 8, 8))
    return {member.tensor for group in graph.groups for member in group.members if member.role == "scale"}


@pytest.mark.parametrize(
    ("between", "scales"),
    [
        (nn.BatchNorm2d(WIDTH), {"weight"}),
        (nn.BatchNorm2d(WIDTH, affine=False), set()),
        (nn.InstanceNorm2d(WIDTH, affine=True), {"weight"}),
        (nn.GroupNorm(2, WIDTH), {"weight"}),
        (Gauge(), {"gain"}),
        (Gauge(offset=1.0), set()),  # zero is no channel that is gone
        (Frozen(), {"a"}),
        (Frozen(fused=True), {"a"}),
        (Times(), {"by"}),
        (nn.PReLU(WIDTH), set()),
        (nn.Identity(), set()),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_scales_are_told_from_what_a_layer_does(between: nn.Module, scales: set[str]) -> None:
    assert scales_of(Plain(between)) == {f"between.{name}" for name in scales}


def test_a_gain_of_weights_is_no_scale_of_channels() -> None:
    assert scales_of(Plain(nn.Identity(), Standardised())) == set()


class Tokens(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(10, WIDTH), norm
        self.up, self.down, self.head = nn.Linear(WIDTH, 8), nn.Linear(8, WIDTH), nn.Linear(WIDTH, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens)
        return self.head(x + self.down(torch.relu(self.up(self.norm(x)))))


@pytest.mark.parametrize("norm", [nn.LayerNorm(WIDTH), nn.RMSNorm(WIDTH)], ids=["layer", "root"])
def test_norms_of_a_residual_stream(norm: nn.Module) -> None:
    graph = sp.trace(Tokens(norm), torch.arange(5).view(1, 5))
    found = {m.tensor for group in graph.groups for m in group.members if m.role == "scale"}
    assert found == {"norm.weight"}


@pytest.mark.parametrize("name", ["LlamaRMSNorm", "Whatever"])
def test_the_name_of_a_class_says_nothing(name: str) -> None:
    """A copy of a norm under any name scores alike, and what is only called a norm has no scale."""
    renamed = type(name, (Gauge,), {})()
    with torch.no_grad():
        renamed.gain.copy_(torch.arange(WIDTH) - 2.5)
    model, x = Plain(renamed), torch.randn(2, 2, 8, 8)
    scores = sp.score(model, sp.trace(model, x), "bn_scale")["one"]
    np.testing.assert_allclose(scores, np.abs(np.arange(WIDTH) - 2.5))
    called = Plain(type(f"{name}Norm", (nn.PReLU,), {})(WIDTH))
    with pytest.raises(InputError, match="bn_scale"):
        sp.score(called, sp.trace(called, x), "bn_scale")


@pytest.mark.parametrize("between", [Gauge(), Times()], ids=["norm", "layer scale"])
def test_slimming_acts_on_them(between: Any) -> None:
    model, x = Plain(copy.deepcopy(between)), torch.randn(8, 2, 8, 8)
    model = nn.Sequential(model, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    (scale,) = model[0].between.parameters()
    with torch.no_grad():
        scale[:2] *= 1e-3
    data = torch.utils.data.TensorDataset(x, torch.arange(8) % 3)
    finetune(model, data, epochs=1, lr=0.1, momentum=0.0, hooks=Slimming(sp.trace(model, x), 0.1))
    assert (scale == 0).flatten().tolist() == [True] * 2 + [False] * 4


def test_slimming_without_a_scale_is_refused() -> None:
    model, x = Plain(Gauge(offset=1.0)), torch.randn(2, 2, 8, 8)
    with pytest.raises(InputError, match="use GroupLasso"):
        Slimming(sp.trace(model, x), 0.1).value(model)


def test_the_same_with_torch_prunings_graph() -> None:
    pytest.importorskip("torch_pruning")
    model, x = Plain(nn.BatchNorm2d(WIDTH)), torch.randn(2, 2, 8, 8)
    nn.init.normal_(model.between.weight)  # type: ignore[arg-type]
    own, other = (sp.trace(model, x, engine=engine) for engine in ("structprune", "torch-pruning"))
    (wanted,), (found,) = (sp.score(model, graph, "bn_scale").values() for graph in (own, other))
    np.testing.assert_allclose(found, wanted)
