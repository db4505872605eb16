"""Patterns 21 to 24: attention in the ways people write it, and the blocks around it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.nets.case import Case, Net, conv, image, tokens

__all__ = ["CASES"]


class Fused(nn.Module):
    """Attention from one fused projection; `split` says how q, k and v come out of it."""

    def __init__(self, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.num_heads, self.scale = heads, (width // heads) ** -0.5
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.softmax((q * self.scale) @ k.transpose(-2, -1), -1) @ v


class Indexed(Fused):
    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4)
        y = self.attend(qkv[0], qkv[1], qkv[2])
        return self.proj(y.transpose(1, 2).reshape(b, n, c))


class Chunked(Fused):
    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (t.reshape(b, n, self.num_heads, -1).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        return self.proj(self.attend(q, k, v).transpose(1, 2).reshape(b, n, -1))


class Unbound(Fused):
    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(b, n, c))


class Divided(nn.Module):
    """Separate projections, the head size computed in forward, the scale a literal function of it."""

    def __init__(self, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        d = c // self.heads
        q, k, v = (f(x).view(b, n, self.heads, d).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(d), -1) @ v
        return self.o(y.transpose(1, 2).contiguous().view(b, n, c))


class Stored(nn.Module):
    """As many language models write it: head count and size stored, checked, multiplied."""

    def __init__(self, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.embed_dim = heads, width // heads, width
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.size()
        if c != self.embed_dim:
            raise ValueError(f"width {c}, {self.embed_dim} expected")
        q, k, v = (
            f(x).view(b, n, self.num_heads, self.head_dim).transpose(1, 2) for f in (self.q, self.k, self.v)
        )
        y = F.scaled_dot_product_attention(q, k, v, scale=0.25)
        return self.o(y.transpose(1, 2).reshape(b, n, self.num_heads * self.head_dim))


class Grouped(nn.Module):
    """Four query heads on two (or one) key heads."""

    def __init__(self, kv: int, repeat: str) -> None:
        super().__init__()
        self.kv, self.repeat = kv, repeat
        self.q, self.o = nn.Linear(16, 32), nn.Linear(32, 16)
        self.k, self.v = nn.Linear(16, 8 * kv), nn.Linear(16, 8 * kv)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q = self.q(x).view(b, n, 4, 8).transpose(1, 2)
        k, v = (f(x).view(b, n, -1, 8).transpose(1, 2) for f in (self.k, self.v))
        rep = 4 // self.kv
        if self.repeat == "interleave":
            k, v = (t.repeat_interleave(rep, 1) for t in (k, v))
        elif self.repeat == "expand":
            k, v = (t[:, :, None].expand(b, self.kv, rep, n, 8).reshape(b, 4, n, 8) for t in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, scale=0.3, enable_gqa=self.repeat == "kernel")
        return self.o(y.transpose(1, 2).reshape(b, n, -1))


class Rotary(nn.Module):
    """Keys and queries turned by position, halves swapped."""

    def __init__(self, heads: int = 2, size: int = 8) -> None:
        super().__init__()
        width = heads * size
        self.size = size
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.register_buffer("freq", 1.0 / 100 ** (torch.arange(0, size, 2).float() / size))

    def turn(self, x: Tensor) -> Tensor:
        angle = torch.outer(torch.arange(x.shape[-2]).to(x.dtype), self.freq)
        cos, sin = (torch.cat((f(angle), f(angle)), -1) for f in (torch.cos, torch.sin))
        a, b = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
        return x * cos + torch.cat((-b, a), -1) * sin

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (-1, self.size)).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = torch.softmax(self.turn(q) @ self.turn(k).transpose(-2, -1) * 0.3, -1) @ v
        return self.o(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Pre-norm residual block around an attention, then its MLP."""

    def __init__(self, attention: nn.Module, width: int = 16) -> None:
        super().__init__()
        self.n1, self.n2, self.attention = nn.LayerNorm(width), nn.LayerNorm(width), attention
        self.mlp = nn.Sequential(nn.Linear(width, 32), nn.GELU(), nn.Linear(32, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.n1(x))
        return x + self.mlp(self.n2(x))


class Multihead(nn.Module):
    def __init__(self, batch_first: bool = True) -> None:
        super().__init__()
        self.mha = nn.MultiheadAttention(16, 4, batch_first=batch_first)

    def forward(self, x: Tensor) -> Tensor:
        return self.mha(x, x, x, need_weights=False)[0]


def block(attention: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), Block(attention), nn.LayerNorm(16), nn.Linear(16, 5))


class ConvNeXtBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.dw, self.norm = conv(width, width, 7, groups=width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.down(F.gelu(self.up(self.norm(self.dw(x).permute(0, 2, 3, 1)))))
        return x + (self.gamma * y).permute(0, 3, 1, 2)


class Merging(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.reduction = nn.LayerNorm(4 * width), nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        corners = [x[:, i::2, j::2, :] for j in (0, 1) for i in (0, 1)]
        return self.reduction(self.norm(torch.cat(corners, -1)))


def merging(m: Any, x: Tensor) -> Tensor:
    return m.head(m.merge(m.stem(x).permute(0, 2, 3, 1))).mean((1, 2))


class Window(nn.Module):
    """Window attention with a table of relative position biases."""

    def __init__(self, width: int = 16, heads: int = 2, window: int = 4) -> None:
        super().__init__()
        self.window, self.heads = window, heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        at = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
        offset = (at[:, :, None] - at[:, None, :]) + window - 1
        self.register_buffer("index", offset[0] * (2 * window - 1) + offset[1])

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        s = self.window
        x = x.view(b, h // s, s, w // s, s, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, s * s, c)
        n = x.shape[0]
        qkv = self.qkv(x).reshape(n, s * s, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0] * 0.3, qkv[1], qkv[2]
        bias = self.table[self.index.view(-1)].view(s * s, s * s, -1).permute(2, 0, 1)
        y = torch.softmax(q @ k.transpose(-2, -1) + bias.unsqueeze(0), -1) @ v
        y = self.proj(y.transpose(1, 2).reshape(n, s * s, c))
        return y.view(b, h // s, w // s, s, s, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)


def windowed(m: Any, x: Tensor) -> Tensor:
    x = m.stem(x).permute(0, 2, 3, 1)
    x = x + m.window(torch.roll(m.norm(x), (-2, -2), (1, 2)))
    return m.head(x.mean((1, 2)))


def swiglu(m: Any, x: Tensor) -> Tensor:
    return m.down(F.silu(m.gate(x)) * m.up(x))


def swiglu_fused(m: Any, x: Tensor) -> Tensor:
    gate, up = m.both(x).chunk(2, -1)
    return m.down(F.silu(gate) * up)


QKV = ("0.weight", "1.mlp.0.weight", "1.attention.qkv.weight", "1.attention.proj.weight")
SEPARATE = (
    "0.weight",
    "1.mlp.0.weight",
    "1.attention.q.weight",
    "1.attention.v.weight",
    "1.attention.o.weight",
)


def encoder_layer(**options: Any) -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, **options)
    return nn.Sequential(nn.Linear(6, 16), layer, nn.Linear(16, 5))


CASES = [
    Case("fused qkv, indexed", 21, lambda: block(Indexed()), tokens(6), QKV),
    Case("fused qkv, chunk", 21, lambda: block(Chunked()), tokens(6), QKV),
    Case("fused qkv, unbind, sdpa", 21, lambda: block(Unbound()), tokens(6), QKV),
    Case("head size divided in forward", 21, lambda: block(Divided()), tokens(6), SEPARATE),
    Case("head size stored", 21, lambda: block(Stored()), tokens(6), SEPARATE),
    Case("rotary", 21, lambda: block(Rotary()), tokens(6), SEPARATE),
    Case(
        "gqa by repeat_interleave",
        22,
        lambda: block(Grouped(2, "interleave")),
        tokens(6),
        ("0.weight", "1.mlp.0.weight"),
    ),
    Case("gqa by expand", 22, lambda: block(Grouped(2, "expand")), tokens(6), ("0.weight", "1.mlp.0.weight")),
    Case(
        "gqa in the kernel",
        22,
        lambda: block(Grouped(2, "kernel")),
        tokens(6),
        ("0.weight", "1.mlp.0.weight"),
    ),
    Case("mqa by expand", 22, lambda: block(Grouped(1, "expand")), tokens(6), ("0.weight", "1.mlp.0.weight")),
    Case(
        "mqa by broadcast",
        22,
        lambda: block(Grouped(1, "broadcast")),
        tokens(6),
        ("0.weight", "1.mlp.0.weight"),
    ),
    Case("multi-head attention module", 23, lambda: block(Multihead()), tokens(6), ("1.mlp.0.weight",)),
    Case(
        "multi-head attention, sequence first",
        23,
        lambda: block(Multihead(False)),
        tokens(6),
        ("1.mlp.0.weight",),
    ),
    Case("encoder layer", 23, encoder_layer, tokens(6), ("1.linear1.weight", "1.linear2.weight")),
    Case(
        "encoder layer, norm first",
        23,
        lambda: encoder_layer(norm_first=True, activation="gelu"),
        tokens(6),
        ("1.linear1.weight", "1.linear2.weight"),
    ),
    Case(
        "convnext block",
        24,
        lambda: nn.Sequential(conv(3, 8), ConvNeXtBlock(8), ConvNeXtBlock(8), conv(8, 5)),
        image(),
        ("0.weight", "1.dw.weight", "1.up.weight", "1.gamma", "2.down.weight", "3.weight"),
    ),
    Case(
        "patch merging",
        24,
        lambda: Net(merging, stem=conv(3, 4), merge=Merging(4), head=nn.Linear(8, 5)),
        image(),
        ("stem.weight", "merge.norm.weight", "merge.reduction.weight", "head.weight"),
    ),
    Case(
        "window attention",
        24,
        lambda: Net(
            windowed, stem=conv(3, 16), norm=nn.LayerNorm(16), window=Window(), head=nn.Linear(16, 5)
        ),
        image(),
        ("stem.weight", "window.qkv.weight", "window.proj.weight", "head.weight"),
    ),
    Case(
        "swiglu",
        24,
        lambda: Net(swiglu, gate=nn.Linear(6, 16), up=nn.Linear(6, 16), down=nn.Linear(16, 5)),
        tokens(6),
        ("gate.weight", "up.weight", "down.weight"),
    ),
    Case(
        "swiglu, fused",
        24,
        lambda: Net(swiglu_fused, both=nn.Linear(6, 32), down=nn.Linear(16, 5)),
        tokens(6),
        ("both.weight", "down.weight"),
    ),
]
