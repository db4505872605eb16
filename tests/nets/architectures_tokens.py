"""Networks over tokens, written by hand: mixers, vision transformers, language models, state spaces."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.decoder import Decoder
from benchmarks.diffusion_unet import UNet
from tests.nets.attention import (
    Block,
    ConvNeXtBlock,
    Divided,
    Grouped,
    Indexed,
    Merging,
    Rotary,
    Stored,
    Window,
)
from tests.nets.case import Case, Net, conv, image, row, tokens

__all__ = ["CASES"]


class Patches(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class MeanHead(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x).mean(1))


class ViT(nn.Module):
    def __init__(self, attention: type[nn.Module], width: int = 16) -> None:
        super().__init__()
        self.patches = Patches(width)
        self.cls, self.pos = nn.Parameter(torch.zeros(1, 1, width)), nn.Parameter(torch.zeros(1, 5, width))
        self.blocks = nn.Sequential(*(Block(attention(width)) for _ in range(2)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x)
        x = torch.cat((self.cls.expand(x.shape[0], -1, -1), x), 1) + self.pos
        return self.head(self.norm(self.blocks(x))[:, 0])


class MixerBlock(nn.Module):
    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.n1, self.n2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.tokens = nn.Sequential(nn.Linear(tokens, 8), nn.GELU(), nn.Linear(8, tokens))
        self.channels = nn.Sequential(nn.Linear(width, 32), nn.GELU(), nn.Linear(32, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.n1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.n2(x))


class SpatialGating(nn.Module):
    """gMLP: one half gates the other through a mix over tokens."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.n0, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 32), nn.Linear(16, width)
        self.norm, self.mix = nn.LayerNorm(16), nn.Conv1d(tokens, tokens, 1)

    def forward(self, x: Tensor) -> Tensor:
        u, v = F.gelu(self.up(self.n0(x))).chunk(2, -1)
        return x + self.down(u * self.mix(self.norm(v)))


class SwinBlock(nn.Module):
    def __init__(self, width: int, shift: int) -> None:
        super().__init__()
        self.n1, self.n2, self.shift, self.window = (
            nn.LayerNorm(width),
            nn.LayerNorm(width),
            shift,
            Window(width),
        )
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.roll(self.n1(x), (-self.shift, -self.shift), (1, 2))
        x = x + torch.roll(self.window(y), (self.shift, self.shift), (1, 2))
        return x + self.mlp(self.n2(x))


def swin(m: Any, x: Tensor) -> Tensor:
    x = m.stem(x).permute(0, 2, 3, 1)
    x = m.deep(m.merge(m.shallow(x)))
    return m.head(m.norm(x).mean((1, 2)))


def swin_net() -> nn.Module:
    shallow = nn.Sequential(SwinBlock(16, 0), SwinBlock(16, 2))
    return Net(
        swin,
        stem=conv(3, 16),
        shallow=shallow,
        merge=Merging(16),
        deep=SwinBlock(32, 0),
        norm=nn.LayerNorm(32),
        head=nn.Linear(32, 5),
    )


def convnext() -> nn.Module:
    norm = Net(lambda m, x: m.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), norm=nn.LayerNorm(8))
    layers = [nn.Conv2d(3, 8, 2, 2), ConvNeXtBlock(8), norm, nn.Conv2d(8, 16, 2, 2), ConvNeXtBlock(16)]
    return nn.Sequential(*layers, nn.Flatten(2), Net(lambda m, x: x.transpose(1, 2)), MeanHead(16))


def pool_former_block(width: int) -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.n1(x)
        x = x + m.s1[:, None, None] * (F.avg_pool2d(y, 3, 1, 1, count_include_pad=False) - y)
        return x + m.s2[:, None, None] * m.down(F.gelu(m.up(m.n2(x))))

    return Net(
        forward,
        n1=nn.GroupNorm(1, width),
        n2=nn.GroupNorm(1, width),
        up=conv(width, 32, 1),
        down=conv(32, width, 1),
        s1=nn.Parameter(torch.ones(width)),
        s2=nn.Parameter(torch.ones(width)),
    )


def conv_mixer_block(width: int) -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.b2(F.gelu(m.point(x + m.b1(F.gelu(m.depth(x))))))

    return Net(
        forward,
        depth=conv(width, width, 5, groups=width),
        b1=nn.BatchNorm2d(width),
        point=conv(width, width, 1),
        b2=nn.BatchNorm2d(width),
    )


class LinearAttention(nn.Module):
    """Kernel attention without a softmax; the head size is kept, the scale is none."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = 2
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        q, k = F.elu(q) + 1, F.elu(k) + 1
        z = 1 / (q @ k.sum(-2).unsqueeze(-1) + 1e-6)
        return self.out(((q @ (k.transpose(-2, -1) @ v)) * z).transpose(1, 2).flatten(2))


class Cross(nn.Module):
    """Perceiver: learned queries read the tokens."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.latent = nn.Parameter(torch.randn(3, width))
        self.q, self.kv, self.out = (
            nn.Linear(width, width),
            nn.Linear(width, 2 * width),
            nn.Linear(width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        k, v = self.kv(x).chunk(2, -1)
        q = self.q(self.latent).expand(x.shape[0], -1, -1)
        return self.out(torch.softmax(q @ k.transpose(1, 2) * 0.25, -1) @ v)


class GPT(nn.Module):
    """Learned positions, a causal mask as a buffer, the output tied to the embedding."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.embed, self.pos = nn.Embedding(23, width), nn.Embedding(12, width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.n1, self.n2, self.norm = (nn.LayerNorm(width) for _ in range(3))
        self.up, self.down, self.heads, self.width = nn.Linear(width, 32), nn.Linear(32, width), 2, width
        self.register_buffer("mask", torch.tril(torch.ones(12, 12)).bool(), persistent=False)
        self.head = nn.Linear(width, 23, bias=False)
        self.head.weight = self.embed.weight

    def attend(self, x: Tensor) -> Tensor:
        b, t, c = x.size()
        q, k, v = (
            y.view(b, t, self.heads, c // self.heads).transpose(1, 2)
            for y in self.qkv(x).split(self.width, 2)
        )
        a = (q @ k.transpose(-2, -1) * 0.35).masked_fill(~self.mask[:t, :t], float("-inf"))
        return self.proj((torch.softmax(a, -1) @ v).transpose(1, 2).contiguous().view(b, t, c))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) + self.pos(torch.arange(ids.shape[1]))
        x = x + self.attend(self.n1(x))
        x = x + self.down(F.gelu(self.up(self.n2(x)), approximate="tanh"))
        return self.head(self.norm(x))


class StateSpace(nn.Module):
    """A selective scan as state-space models write it, step by step."""

    def __init__(self, width: int = 8, inner: int = 16, state: int = 4) -> None:
        super().__init__()
        self.inner, self.state = inner, state
        self.inp, self.out = nn.Linear(width, 2 * inner), nn.Linear(inner, width)
        self.conv = nn.Conv1d(inner, inner, 3, padding=2, groups=inner)
        self.bc, self.dt = nn.Linear(inner, 2 * state), nn.Linear(inner, inner)
        self.a, self.d = nn.Parameter(torch.randn(inner, state)), nn.Parameter(torch.ones(inner))

    def forward(self, x: Tensor) -> Tensor:
        u, gate = self.inp(x).chunk(2, -1)
        u = F.silu(self.conv(u.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2))
        b, c = self.bc(u).split([self.state, self.state], -1)
        dt = F.softplus(self.dt(u))
        h, ys = torch.zeros(x.shape[0], u.shape[-1], self.state, dtype=x.dtype), []
        for t in range(x.shape[1]):
            h = (
                torch.exp(-dt[:, t, :, None] * self.a.exp()) * h
                + (dt[:, t] * u[:, t])[..., None] * b[:, t, None]
            )
            ys.append((h * c[:, t, None]).sum(-1))
        y = torch.stack(ys, 1) + u * self.d
        return x + self.out(y * F.silu(gate))


def graph_net(m: Any, x: Tensor, edges: Tensor) -> Tensor:
    for layer in (m.a, m.b):
        message = layer(x)[edges[0]]
        x = F.relu(torch.zeros(x.shape[0], message.shape[1], dtype=x.dtype).index_add_(0, edges[1], message))
    return m.head(x)


def recommender(m: Any, ids: Tensor, dense: Tensor) -> Tensor:
    x = torch.stack([e(ids[:, i]) for i, e in enumerate(m.tables)] + [m.bottom(dense)], 1)
    pairs = (x @ x.transpose(1, 2))[:, [0, 0, 1], [1, 2, 2]]
    return m.top(torch.cat((x.flatten(1), pairs), 1))


def seq2seq(m: Any, source: Tensor, target: Tensor) -> Tensor:
    memory, state = m.encoder(m.embed(source))
    y, _ = m.decoder(m.embed(target), state)
    weight = torch.softmax(y @ m.score(memory).transpose(1, 2), -1)
    return m.out(torch.tanh(m.merge(torch.cat((y, weight @ memory), -1))))


def seq2seq_net() -> nn.Module:
    return Net(
        seq2seq,
        embed=nn.Embedding(15, 8),
        encoder=nn.GRU(8, 12, batch_first=True),
        decoder=nn.GRU(8, 12, batch_first=True),
        score=nn.Linear(12, 12),
        merge=nn.Linear(24, 10),
        out=nn.Linear(10, 15),
    )


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(192, 32),
        nn.ReLU(),
        nn.BatchNorm1d(32),
        nn.Linear(32, 16),
        nn.ReLU(),
        nn.Linear(16, 5),
    )


def over_tokens(*blocks: nn.Module) -> nn.Module:
    return nn.Sequential(Patches(16), *blocks, MeanHead(16))


def ids() -> Tensor:
    return torch.arange(12).reshape(2, 6)


MLP = ("1.mlp.0.weight", "1.mlp.2.weight")


def latents() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    shapes = ((2, 4, 8, 8), (2,), (2, 3, 6))
    x, steps, text = (torch.rand(shape, generator=generator) for shape in shapes)
    return x, 100 * steps, text


CASES = [
    Case(
        "diffusion u-net",
        0,
        lambda: UNet((12, 24), heads=(2, 0), context=6, groups=4, depth=1),
        latents,
        (
            "time.0.weight",
            "down.0.attend.into.weight",
            "down.0.attend.gated.weight",
            "down.1.block.conv1.weight",
            "head.weight",
        ),
    ),
    Case("mlp", 0, mlp, image(), ("1.weight", "3.weight", "4.weight", "6.weight")),
    Case(
        "mixer",
        0,
        lambda: over_tokens(MixerBlock(4, 16), MixerBlock(4, 16)),
        image(),
        ("0.proj.weight", "1.tokens.0.weight", "2.channels.0.weight", "3.head.weight"),
    ),
    Case(
        "gmlp",
        0,
        lambda: over_tokens(SpatialGating(4, 16)),
        image(),
        ("0.proj.weight", "1.up.weight", "1.norm.weight", "1.down.weight"),
    ),
    Case(
        "vit, indexed qkv",
        0,
        lambda: ViT(Indexed),
        image(),
        ("cls", "pos", "blocks.0.mlp.0.weight", "head.weight"),
    ),
    Case(
        "vit, divided heads",
        0,
        lambda: ViT(Divided),
        image(),
        ("cls", "pos", "blocks.1.mlp.2.weight", "head.weight"),
    ),
    Case(
        "vit, stored heads",
        0,
        lambda: ViT(Stored),
        image(),
        ("cls", "pos", "blocks.1.mlp.2.weight", "head.weight"),
    ),
    Case(
        "swin",
        0,
        swin_net,
        image(),
        ("stem.weight", "shallow.0.mlp.0.weight", "merge.reduction.weight", "head.weight"),
    ),
    Case(
        "convnext",
        0,
        convnext,
        image(),
        ("0.weight", "1.up.weight", "2.norm.weight", "3.weight", "4.dw.weight"),
    ),
    Case(
        "poolformer",
        0,
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1),
            pool_former_block(8),
            pool_former_block(8),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 5),
        ),
        image(),
        ("0.weight", "1.up.weight", "1.s1", "5.weight"),
    ),
    Case(
        "convmixer",
        0,
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 2, 2),
            nn.GELU(),
            conv_mixer_block(8),
            conv_mixer_block(8),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 5),
        ),
        image(),
        ("0.weight", "2.depth.weight", "2.point.weight", "6.weight"),
    ),
    Case("linear attention", 0, lambda: over_tokens(Block(LinearAttention(16))), image(), MLP),
    Case(
        "perceiver",
        0,
        lambda: nn.Sequential(Patches(16), Cross(), nn.Flatten(), nn.Linear(48, 5)),
        image(),
        ("0.proj.weight", "1.kv.weight", "3.weight"),
    ),
    Case("gpt", 0, GPT, ids, ("embed.weight", "pos.weight", "up.weight", "down.weight")),
    Case(
        "llama",
        0,
        lambda: Decoder(vocabulary=23, width=16, depth=2, heads=4, kv_heads=2, inner=32),
        ids,
        ("embed.weight", "layers.0.up.weight", "layers.1.down.weight", "head.weight"),
    ),
    Case(
        "rotary decoder",
        0,
        lambda: nn.Sequential(
            nn.Embedding(23, 16), Block(Rotary()), Block(Grouped(2, "expand")), nn.Linear(16, 23)
        ),
        ids,
        ("0.weight", *MLP),
    ),
    Case(
        "state space",
        0,
        lambda: nn.Sequential(nn.Linear(6, 8), StateSpace(), nn.Linear(8, 5)),
        tokens(6),
        ("0.weight", "1.inp.weight", "1.conv.weight", "1.out.weight"),
    ),
    Case(
        "graph convolution",
        0,
        lambda: Net(graph_net, a=nn.Linear(6, 8), b=nn.Linear(8, 12), head=nn.Linear(12, 3)),
        lambda: (row(6, 5)(), torch.tensor([[0, 1, 2, 3], [1, 2, 3, 4]])),
        ("a.weight", "b.weight", "head.weight"),
    ),
    Case(
        "recommender",
        0,
        lambda: Net(
            recommender,
            tables=nn.ModuleList([nn.Embedding(9, 8), nn.Embedding(7, 8)]),
            bottom=nn.Linear(4, 8),
            top=nn.Sequential(nn.Linear(27, 16), nn.ReLU(), nn.Linear(16, 1)),
        ),
        lambda: (torch.tensor([[0, 1], [2, 3], [4, 5]]), row(4, 3)()),
        ("tables.0.weight", "bottom.weight", "top.0.weight", "top.2.weight"),
    ),
    Case(
        "sequence to sequence",
        0,
        seq2seq_net,
        lambda: (ids(), ids()[:, :4]),
        ("embed.weight", "merge.weight", "out.weight"),
    ),
]
