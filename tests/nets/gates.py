"""Patterns 10, 11, 26 and 27: gates over channels and statistics over channels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.nets.case import Case, Net, conv, image, tokens

__all__ = ["CASES"]


class SpatialGate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(2, 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        pooled = torch.cat((x.mean(1, keepdim=True), x.amax(1, keepdim=True)), 1)
        return x * torch.sigmoid(self.conv(pooled))


class ChannelGate(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(conv(width, 4, 1), nn.ReLU(), conv(4, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        top, mean = F.adaptive_max_pool2d(x, 1), F.adaptive_avg_pool2d(x, 1)
        return x * torch.sigmoid(self.mlp(top) + self.mlp(mean))


class SELinear(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4), nn.Linear(4, width)

    def forward(self, x: Tensor) -> Tensor:
        b, c, _, _ = x.size()
        y = F.adaptive_avg_pool2d(x, 1).view(b, c)
        y = torch.sigmoid(self.fc2(F.relu(self.fc1(y)))).view(b, c, 1, 1)
        return x * y.expand_as(x)


class SEConv(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = conv(width, 4, 1), conv(4, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * F.hardsigmoid(self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True)))))


class ECA(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.adaptive_avg_pool2d(x, 1)
        y = self.conv(y.squeeze(-1).transpose(-1, -2)).transpose(-1, -2).unsqueeze(-1)
        return x * torch.sigmoid(y)


def one_gate(m: Any, x: Tensor) -> Tensor:
    wide = F.relu(m.wide(x))
    return m.head(wide * torch.sigmoid(m.gate(x)))


def one_gate_expanded(m: Any, x: Tensor) -> Tensor:
    wide = F.relu(m.wide(x))
    return m.head(wide * torch.sigmoid(m.gate(x)).expand(-1, wide.shape[1], -1, -1))


def one_gate_literal(m: Any, x: Tensor) -> Tensor:
    return m.head(F.relu(m.wide(x)) * torch.sigmoid(m.gate(x)).expand(-1, 8, -1, -1))


def gate_net(forward: Any) -> nn.Module:
    return Net(forward, wide=conv(3, 8), gate=conv(3, 1), head=conv(8, 5))


def between(middle: nn.Module, width: int = 16) -> nn.Module:
    return nn.Sequential(conv(3, width), nn.ReLU(), middle, conv(width, 5))


class RMS(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class LayerNorm2d(nn.Module):
    """Over the channels of an image, written out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        return (
            self.weight[:, None, None] * ((x - mean) / torch.sqrt(variance + 1e-6)) + self.bias[:, None, None]
        )


class LayerNormByCall(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias)
        return x.permute(0, 3, 1, 2)


class GRN(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        g = torch.norm(x, p=2, dim=(1, 2), keepdim=True)
        x = self.gamma * (x * (g / (g.mean(-1, keepdim=True) + 1e-6))) + self.beta + x
        return x.permute(0, 3, 1, 2)


class WSConv(nn.Conv2d):
    """Weight standardisation: mean and deviation over each filter."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        weight = weight - weight.mean((1, 2, 3), keepdim=True)
        weight = weight / (weight.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


def norm_on_tokens(norm: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), norm, nn.GELU(), nn.Linear(16, 5))


def gram(m: Any, x: Tensor) -> Tensor:
    x = F.relu(m.stem(x))
    flat = x.flatten(2)
    attention = torch.softmax(flat @ flat.transpose(1, 2), -1)
    return m.head((attention @ flat).reshape(x.shape))


def softmax_over_channels(m: Any, x: Tensor) -> Tensor:
    return m.head(torch.softmax(m.stem(x), 1))


def normalised(m: Any, x: Tensor) -> Tensor:
    return m.head(F.normalize(m.stem(x), dim=1))


EDGE = ("0.weight", "3.weight")

CASES = [
    Case(
        "one-channel gate",
        10,
        lambda: gate_net(one_gate),
        image(),
        ("wide.weight", "head.weight"),
        whole=("gate.weight",),
    ),
    Case(
        "one-channel gate expanded",
        10,
        lambda: gate_net(one_gate_expanded),
        image(),
        ("wide.weight", "head.weight"),
        whole=("gate.weight",),
    ),
    Case(
        "one-channel gate expanded by literal",
        10,
        lambda: gate_net(one_gate_literal),
        image(),
        whole=("gate.weight", "wide.weight"),
    ),
    Case("spatial gate", 10, lambda: between(SpatialGate()), image(), EDGE),
    Case(
        "cbam",
        10,
        lambda: between(nn.Sequential(ChannelGate(16), SpatialGate())),
        image(),
        (*EDGE, "2.0.mlp.0.weight", "2.0.mlp.2.weight"),
    ),
    Case(
        "squeeze and excite by convs",
        11,
        lambda: between(SEConv(16)),
        image(),
        (*EDGE, "2.fc1.weight", "2.fc2.weight"),
    ),
    Case(
        "squeeze and excite by linears",
        11,
        lambda: between(SELinear(16)),
        image(),
        (*EDGE, "2.fc1.weight", "2.fc2.weight"),
    ),
    Case(
        "eca",
        11,
        lambda: nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 8), ECA(), conv(8, 5)),
        image(),
        ("0.weight",),
        whole=("4.weight", "3.conv.weight"),
    ),
    Case("group norm", 26, lambda: between(nn.GroupNorm(4, 16)), image(), (*EDGE, "2.weight")),
    Case("group norm of one group", 26, lambda: between(nn.GroupNorm(1, 16)), image(), (*EDGE, "2.weight")),
    Case(
        "group norm between group convs",
        26,
        lambda: nn.Sequential(
            conv(3, 16), nn.GroupNorm(8, 16), conv(16, 16, groups=4), nn.GroupNorm(2, 16), conv(16, 5)
        ),
        image(),
        ("0.weight", "1.weight", "2.weight", "3.weight"),
    ),
    Case(
        "instance norm", 26, lambda: between(nn.InstanceNorm2d(16, affine=True)), image(), (*EDGE, "2.weight")
    ),
    Case(
        "instance norm with statistics",
        26,
        lambda: between(nn.InstanceNorm2d(16, track_running_stats=True)),
        image(),
        (*EDGE, "2.running_mean"),
    ),
    Case("layer norm", 26, lambda: norm_on_tokens(nn.LayerNorm(16)), tokens(6), (*EDGE, "1.weight")),
    Case("rms norm", 26, lambda: norm_on_tokens(nn.RMSNorm(16)), tokens(6), (*EDGE, "1.weight")),
    Case("rms norm by hand", 26, lambda: norm_on_tokens(RMS(16)), tokens(6), (*EDGE, "1.weight")),
    Case(
        "layer norm over channels by hand", 26, lambda: between(LayerNorm2d(16)), image(), (*EDGE, "2.weight")
    ),
    Case("layer norm by call", 26, lambda: between(LayerNormByCall(16)), image(), (*EDGE, "2.weight")),
    Case("grn", 26, lambda: between(GRN(16)), image(), (*EDGE, "2.gamma")),
    Case(
        "weight standardisation",
        26,
        lambda: nn.Sequential(conv(3, 8), nn.ReLU(), WSConv(8, 8, 3, padding=1), nn.ReLU(), conv(8, 5)),
        image(),
        ("0.weight", "2.weight", "4.weight"),
    ),
    Case(
        "local response norm",
        26,
        lambda: nn.Sequential(conv(3, 8), conv(8, 8), nn.LocalResponseNorm(3), conv(8, 5)),
        image(),
        ("0.weight",),
        whole=("3.weight",),
    ),
    Case("channel gram attention", 27, lambda: Net(gram, stem=conv(3, 8), head=conv(8, 5)), image()),
    Case(
        "softmax over channels",
        27,
        lambda: Net(softmax_over_channels, stem=conv(3, 8), head=conv(8, 5)),
        image(),
    ),
    Case(
        "unit length over channels",
        27,
        lambda: Net(normalised, stem=conv(3, 8), head=conv(8, 5)),
        image(),
        ("stem.weight", "head.weight"),
    ),
]
