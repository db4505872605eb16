"""Patterns 18 to 20: parameters of the user's own, reparametrised weights, functional calls."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

from tests.nets.case import Case, Frozen, Net, conv, image, row, tokens

__all__ = ["CASES"]


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape))


def layer_scale(m: Any, x: Tensor) -> Tensor:
    x = F.relu(m.stem(x))
    return m.head(x + m.gamma[:, None, None] * m.b(F.gelu(m.a(x))) + m.shift)


def static_shape(m: Any, x: Tensor) -> Tensor:
    x = F.relu(m.stem(x))
    return m.head(x * m.gamma.view(1, m.gamma.shape[0], 1, 1))


def shape_attribute(m: Any, x: Tensor) -> Tensor:
    return m.head(F.relu(m.stem(x)) * m.gamma.view(m.shape))


def fusion(m: Any, x: Tensor) -> Tensor:
    a = F.relu(m.a(x))
    b = F.relu(m.b(F.avg_pool2d(x, 2)))
    w = F.relu(m.w)
    w = w / (w.sum() + 1e-4)
    return m.head(w[0] * a + w[1] * F.interpolate(b, scale_factor=2.0))


def with_tokens(m: Any, x: Tensor) -> Tensor:
    x = m.patch(x).flatten(2).transpose(1, 2)
    x = torch.cat((m.cls.expand(x.shape[0], -1, -1), x), 1) + m.pos
    x = x + m.b(F.gelu(m.a(x)))
    return m.head(x[:, 0])


def tokens_net() -> nn.Module:
    return Net(
        with_tokens,
        patch=nn.Conv2d(3, 8, 4, 4),
        cls=parameter(1, 1, 8),
        pos=parameter(1, 5, 8),
        a=nn.Linear(8, 16),
        b=nn.Linear(16, 8),
        head=nn.Linear(8, 5),
    )


def projected(m: Any, x: Tensor) -> Tensor:
    bins = torch.softmax(m.stem(x).unflatten(1, (4, 8)), 2)
    return (bins * m.project.view(1, 1, 8, 1, 1)).sum(2)


def prelu() -> nn.Module:
    return nn.Sequential(conv(3, 8), nn.PReLU(8), conv(8, 8), nn.PReLU(), conv(8, 5))


def wrapped(wrap: Any) -> nn.Module:
    layers = [wrap(conv(3, 8)), nn.ReLU(), wrap(conv(8, 8)), nn.ReLU(), nn.Flatten(), wrap(nn.Linear(512, 5))]
    return nn.Sequential(*layers)


def masked() -> nn.Module:
    net = nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 8), nn.ReLU(), conv(8, 5))
    for layer in (net[0], net[2]):
        prune.l1_unstructured(layer, "weight", 0.5)
    return net


def own_calls(m: Any, x: Tensor) -> Tensor:
    x = F.relu(F.conv2d(x, m.kernel, m.bias, padding=1))
    return F.linear(x.mean((2, 3)), m.weight)


def own_transposed(m: Any, x: Tensor) -> Tensor:
    return (F.relu(x @ m.a) @ m.b) + m.c


def einsum_mlp(m: Any, x: Tensor) -> Tensor:
    x = F.gelu(torch.einsum("bnc,cd->bnd", x, m.a))
    return torch.einsum("bnd,ed->bne", x, m.b)


def einsum_heads(m: Any, x: Tensor) -> Tensor:
    q, k, v = (torch.einsum("bnc,chd->bnhd", x, w) for w in (m.q, m.k, m.v))
    a = torch.softmax(torch.einsum("bnhd,bmhd->bhnm", q, k) * 0.5, -1)
    return torch.einsum("bnhd,hde->bne", torch.einsum("bhnm,bmhd->bnhd", a, v), m.o)


class Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return grad * (s + x * s * (1 - s))


def custom_function(m: Any, x: Tensor) -> Tensor:
    return m.b(Swish.apply(m.a(x)))


def bilinear(m: Any, x: Tensor) -> Tensor:
    return m.head(m.mix(F.relu(m.a(x)), m.b(x)))


CASES = [
    Case(
        "layer scale",
        18,
        lambda: Net(
            layer_scale,
            stem=conv(3, 8),
            a=conv(8, 16, 1),
            b=conv(16, 8, 1),
            gamma=parameter(8),
            shift=parameter(8, 1, 1),
            head=conv(8, 5),
        ),
        image(),
        ("stem.weight", "a.weight", "gamma", "shift", "head.weight"),
    ),
    Case(
        "scale viewed by its own shape",
        18,
        lambda: Net(static_shape, stem=conv(3, 8), gamma=parameter(8), head=conv(8, 5)),
        image(),
        ("stem.weight", "gamma", "head.weight"),
    ),
    Case(
        "scale viewed by a stored shape",
        18,
        lambda: Net(
            shape_attribute, stem=conv(3, 8), gamma=parameter(8), shape=(1, 8, 1, 1), head=conv(8, 5)
        ),
        image(),
        ("stem.weight", "gamma", "head.weight"),
    ),
    Case(
        "fusion scalars",
        18,
        lambda: Net(fusion, a=conv(3, 8), b=conv(3, 8), w=nn.Parameter(torch.ones(2)), head=conv(8, 5)),
        image(),
        ("a.weight", "b.weight", "head.weight"),
        whole=("w",),
    ),
    Case(
        "class and position tokens",
        18,
        tokens_net,
        image(),
        ("patch.weight", "cls", "pos", "a.weight", "head.weight"),
    ),
    Case(
        "projection that must stay",
        18,
        lambda: Net(projected, stem=conv(3, 32), project=parameter(8)),
        image(),
        whole=("project", "stem.weight"),
        frozen=(Frozen("stem.weight", 0),),
    ),
    Case("prelu per channel", 18, prelu, image(), ("0.weight", "1.weight", "2.weight"), whole=("3.weight",)),
    Case(
        "weight norm by hooks",
        19,
        lambda: wrapped(nn.utils.weight_norm),
        image(),
        ("0.weight_v", "0.weight_g", "2.weight_v", "5.weight_v"),
    ),
    Case(
        "weight norm",
        19,
        lambda: wrapped(parametrizations.weight_norm),
        image(),
        tuple(f"{i}.parametrizations.weight.original1" for i in (0, 2, 5)),
    ),
    Case(
        "spectral norm by hooks",
        19,
        lambda: wrapped(nn.utils.spectral_norm),
        image(),
        ("0.weight_orig", "2.weight_orig", "5.weight_orig"),
    ),
    Case(
        "spectral norm",
        19,
        lambda: wrapped(parametrizations.spectral_norm),
        image(),
        tuple(f"{i}.parametrizations.weight.original" for i in (0, 2, 5)),
    ),
    Case(
        "pruning masks attached",
        19,
        masked,
        image(),
        ("0.weight_orig", "0.weight_mask", "2.weight_orig", "4.weight"),
    ),
    Case(
        "functional conv and linear",
        20,
        lambda: Net(own_calls, kernel=parameter(8, 3, 3, 3), bias=parameter(8), weight=parameter(5, 8)),
        image(),
        ("kernel", "bias", "weight"),
    ),
    Case(
        "matrix products",
        20,
        lambda: Net(own_transposed, a=parameter(6, 8), b=parameter(8, 5), c=parameter(5)),
        row(6),
        ("a", "b"),
        whole=("c",),
    ),
    Case(
        "einsum", 20, lambda: Net(einsum_mlp, a=parameter(6, 16), b=parameter(5, 16)), tokens(6), ("a", "b")
    ),
    Case(
        "einsum attention",
        20,
        lambda: Net(
            einsum_heads,
            q=parameter(6, 4, 8),
            k=parameter(6, 4, 8),
            v=parameter(6, 4, 8),
            o=parameter(4, 8, 5),
        ),
        tokens(6),
        ("q", "v", "o"),
    ),
    Case(
        "custom autograd function",
        20,
        lambda: Net(custom_function, a=nn.Linear(6, 16), b=nn.Linear(16, 5)),
        row(6),
        ("a.weight", "b.weight"),
    ),
    Case(
        "bilinear",
        20,
        lambda: Net(
            bilinear, a=nn.Linear(6, 8), b=nn.Linear(6, 8), mix=nn.Bilinear(8, 8, 12), head=nn.Linear(12, 5)
        ),
        row(6),
        ("mix.weight", "head.weight"),
    ),
]
