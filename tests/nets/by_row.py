"""Networks in which an axis always comes with another one, and networks in which it only seems so."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["FREE", "TOGETHER"]

Made = tuple[nn.Module, Tensor]


def shuffled(x: Tensor, groups: int) -> Tensor:
    b, c, h, w = x.shape
    return x.view(b, groups, c // groups, h, w).transpose(1, 2).reshape(b, c, h, w)


class ShuffleUnit(nn.Module):
    """A unit of ShuffleNet: grouped 1x1, shuffle, depthwise, grouped 1x1.

    With the residual, the groups of both grouped convolutions are the same ones, and the channels between them have
    two: which of them an index belongs to is no longer told.
    """

    def __init__(self, residual: bool, width: int = 16, groups: int = 2) -> None:
        super().__init__()
        self.groups, self.residual = groups, residual
        self.stem = nn.Conv2d(3, width, 1)
        self.a, self.b = (nn.Conv2d(width, width, 1, groups=groups) for _ in range(2))
        self.deep, self.norm = nn.Conv2d(width, width, 3, padding=1, groups=width), nn.BatchNorm2d(width)
        self.head = nn.Conv2d(width, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        y = self.deep(shuffled(self.norm(self.a(x)).relu(), self.groups))
        y = self.b(y)
        return self.head((x + y if self.residual else y).relu()).flatten(1)


class Attention(nn.Module):
    """Attention written out, with a scale of its own; `heads` may share keys and values."""

    def __init__(self, heads: int = 4, shared: int = 1, width: int = 6) -> None:
        super().__init__()
        self.heads, self.shared, self.scale = heads, shared, 0.4
        self.q = nn.Linear(8, heads * width)
        self.k, self.v = (nn.Linear(8, heads // shared * width) for _ in range(2))
        self.out, self.head = nn.Linear(heads * width, 8), nn.Linear(8, 3)

    def rotated(self, q: Tensor) -> Tensor:
        return q

    def mixed(self, y: Tensor) -> Tensor:
        return y

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = (f(x).unflatten(-1, (self.heads // self.shared, -1)).transpose(1, 2) for f in (self.k, self.v))
        q, k = self.rotated(q), self.rotated(k)
        k, v = (t.repeat_interleave(self.shared, 1) if self.shared > 1 else t for t in (k, v))
        y = ((q @ k.transpose(-1, -2)) * self.scale).softmax(-1) @ v
        return self.head(self.out(self.mixed(y).transpose(1, 2).flatten(2)))


class Rotary(Attention):
    """Halves are turned by a table over the head width."""

    def rotated(self, q: Tensor) -> Tensor:
        a, b = q.chunk(2, -1)
        at = torch.arange(q.shape[2], dtype=q.dtype)[:, None] * self.speed
        return torch.cat((a * at.cos() - b * at.sin(), a * at.sin() + b * at.cos()), -1)

    def __init__(self) -> None:
        super().__init__(width=8)
        self.register_buffer("speed", torch.rand(4))


class NormedQueries(Attention):
    """A norm over the head width, with one weight for all heads."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(6, eps=1e-6)

    def rotated(self, q: Tensor) -> Tensor:
        return self.norm(q)


class PlainlyNormedQueries(Attention):
    """A norm over the head width without weights."""

    def rotated(self, q: Tensor) -> Tensor:
        return q * torch.rsqrt(q.pow(2).mean(-1, keepdim=True) + 1e-6)


class MeanOfHeads(Attention):
    """What all heads have in common is taken off each."""

    def mixed(self, y: Tensor) -> Tensor:
        return y - y.mean(1, keepdim=True)


class SoftmaxOverHeads(Attention):
    def mixed(self, y: Tensor) -> Tensor:
        return y * y.softmax(1)


class OrderedHeads(Attention):
    """Every head adds to the one before it."""

    def mixed(self, y: Tensor) -> Tensor:
        return y.cumsum(1)


class HeadsToHeads(nn.Module):
    """Each head's queries meet each head's keys."""

    def __init__(self, heads: int = 4, width: int = 6) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k = (nn.Linear(8, heads * width) for _ in range(2))
        self.out = nn.Linear(heads * heads, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k = (f(x).unflatten(-1, (self.heads, -1)) for f in (self.q, self.k))
        return self.out((q @ k.transpose(-1, -2)).flatten(2))


class Fused(nn.Module):
    """q, k and v out of one projection: one head width for the three, its own in each head."""

    def __init__(self, heads: int = 3, width: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out, self.head = (
            nn.Linear(8, 3 * heads * width),
            nn.Linear(heads * width, 8),
            nn.Linear(8, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, scale=0.5)
        return self.head(self.out(y.transpose(1, 2).flatten(2)))


class Experts(nn.Module):
    """Four experts in one tensor, all of them asked; each may keep its own neurons."""

    def __init__(self, experts: int = 4, hidden: int = 6) -> None:
        super().__init__()
        self.up, self.down = (
            nn.Parameter(torch.randn(experts, 8, hidden)),
            nn.Parameter(torch.randn(experts, hidden, 8)),
        )
        self.weigh = nn.Parameter(torch.randn(experts))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.einsum("bnc,ech->ebnh", x, self.up).relu()
        y = torch.einsum("ebnh,ehc->ebnc", hidden, self.down)
        return self.head((y * self.weigh.view(-1, 1, 1, 1)).sum(0))


class Pairs(nn.Module):
    """Two pieces of `[g i]` meet as an outer product, and the view puts the wrong `g` beside an `i`."""

    def __init__(self) -> None:
        super().__init__()
        self.groups = 3
        self.a, self.b = nn.Linear(8, 12), nn.Linear(8, 12)
        self.out = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        a, b = (f(x).unflatten(-1, (self.groups, -1)) for f in (self.a, self.b))
        pairs = (a + b).flatten(2)[..., :, None] * (a * b).flatten(2)[..., None, :]
        return self.out(pairs.view(*x.shape[:2], self.groups, -1, a.shape[-1]).sum((-1, -2)))


def tokens(model: nn.Module) -> Callable[[], Made]:
    return lambda: (model, torch.randn(2, 5, 8))


def image(*layers: nn.Module) -> Callable[[], Made]:
    return lambda: (nn.Sequential(*layers), torch.randn(2, 3, 8, 8))


def conv(a: int, b: int, kernel: int = 3, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(a, b, kernel, padding=kernel // 2, groups=groups)


FREE: dict[str, tuple[Callable[[], Made], dict[str, int]]] = {
    "grouped convolution": (
        image(conv(3, 16), nn.ReLU(), conv(16, 16, groups=4), nn.ReLU(), conv(16, 5)),
        {"0[1]": 4, "2": 4},
    ),
    "in is not out": (
        image(conv(3, 16), nn.ReLU(), conv(16, 24, groups=4), nn.BatchNorm2d(24), nn.ReLU(), conv(24, 5)),
        {"0[1]": 4, "2": 4},
    ),
    "depthwise with a multiplier": (
        image(conv(3, 6), nn.ReLU(), conv(6, 18, groups=6), nn.ReLU(), conv(18, 5)),
        {"2.weight": 6},
    ),
    "two groups, then four": (
        image(conv(3, 16), nn.ReLU(), conv(16, 16, groups=2), nn.ReLU(), conv(16, 8, groups=4), conv(8, 5)),
        {"0[1]": 2, "2[1]": 4, "4": 4},
    ),
    "transposed": (
        image(conv(3, 8), nn.ConvTranspose2d(8, 16, 4, 2, 1, groups=4), nn.ReLU(), conv(16, 5)),
        {"0[1]": 4, "1": 4},
    ),
    "group norm between convolutions": (
        image(conv(3, 12), nn.GroupNorm(3, 12), nn.ReLU(), conv(12, 12), nn.GroupNorm(3, 12), conv(12, 5)),
        {"0[1]": 3, "3[1]": 3},
    ),
    "shuffle": (lambda: (ShuffleUnit(residual=False), torch.randn(2, 3, 4, 4)), {"a[1]": 4, "stem[1]": 2}),
    "attention": (tokens(Attention()), {"q[1]": 4, "v": 4}),
    "shared keys and values": (tokens(Attention(shared=2)), {"q[2]": 2, "v": 2}),
    "a norm without weights": (tokens(PlainlyNormedQueries()), {"q[1]": 4, "v": 4}),
    "one projection": (tokens(Fused()), {"qkv[2]": 3}),
    "experts": (tokens(Experts()), {"up[1]": 4}),
}
"""Networks with an axis that may differ by row: group -> number of rows, where the names are worth saying."""

TOGETHER: dict[str, tuple[Callable[[], Made], tuple[str, ...]]] = {
    "rotary": (tokens(Rotary()), ("q.weight", "k.weight")),
    "a norm with one weight for all heads": (tokens(NormedQueries()), ("q.weight", "k.weight")),
    "the mean of the heads": (tokens(MeanOfHeads()), ("v.weight",)),
    "softmax over heads": (tokens(SoftmaxOverHeads()), ("v.weight",)),
    "heads in order": (tokens(OrderedHeads()), ("v.weight",)),
    "heads to heads": (tokens(HeadsToHeads()), ("q.weight", "k.weight")),
    "shuffle in a residual": (
        lambda: (ShuffleUnit(residual=True), torch.randn(2, 3, 4, 4)),
        ("stem.weight", "a.weight", "b.weight"),
    ),
    "pairs": (tokens(Pairs()), ("a.weight", "b.weight")),
}
"""Networks with tensors no axis of which may differ by row."""
