"""Networks with unusual wiring: weights made or written to in the forward, packed sequences, routing by value."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from tests.nets.case import Case, Net, conv, image, row, tokens

__all__ = ["CASES"]


class MaskedConv(nn.Conv2d):
    """A causal convolution of PixelCNN: its weight is multiplied by a mask, in place, in every forward."""

    def __init__(self, c_in: int, c_out: int, kernel: int, centre: bool) -> None:
        super().__init__(c_in, c_out, kernel, padding=kernel // 2)
        self.register_buffer("mask", torch.ones_like(self.weight))
        self.mask[:, :, kernel // 2, kernel // 2 + centre :] = 0
        self.mask[:, :, kernel // 2 + 1 :] = 0

    def forward(self, x: Tensor) -> Tensor:
        self.weight.data *= self.mask
        return super().forward(x)


class HeadsInBatch(nn.Module):
    """Attention whose heads are split off by their width and stacked along the batch."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.width, self.heads = width, heads

    def forward(self, x: Tensor) -> Tensor:
        size = self.width // self.heads
        q, k, v = (torch.cat(layer(x).split(size, 2)) for layer in (self.q, self.k, self.v))
        mixed = q + torch.softmax(q @ k.transpose(1, 2) * 0.3, 2) @ v
        return torch.cat(mixed.split(x.size(0)), 2)


class Modulated(nn.Module):
    """A convolution of StyleGAN: each example has its own weight, run as one group of a grouped convolution."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.weight, self.style = nn.Parameter(torch.randn(1, c_out, c_in, 3, 3)), nn.Linear(8, c_in)
        self.c_out = c_out

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        b, c, high, wide = x.shape
        weight = self.weight * self.style(w).view(b, 1, c, 1, 1)
        weight = weight * torch.rsqrt(weight.pow(2).sum([2, 3, 4]) + 1e-8).view(b, self.c_out, 1, 1, 1)
        weight = weight.view(b * self.c_out, c, 3, 3)
        out = F.conv2d(x.reshape(1, b * c, high, wide), weight, padding=1, groups=b)
        return F.leaky_relu(out.view(b, self.c_out, high, wide), 0.2)


class Spectral(nn.Module):
    """A layer of a Fourier neural operator: complex weights on a few frequencies, written into zeros."""

    def __init__(self, width: int, modes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width, width, modes, 2))
        self.width, self.modes = width, modes

    def forward(self, x: Tensor) -> Tensor:
        found = torch.fft.rfft(x)
        kept = torch.einsum("bix,iox->box", found[..., : self.modes], torch.view_as_complex(self.weight))
        out = found.new_zeros(x.shape[0], self.width, found.shape[-1])
        out[..., : self.modes] = kept
        return torch.fft.irfft(out, n=x.shape[-1])


class CachedBias(nn.Module):
    """Attention with a bias by relative position that is looked up once for each device and kept."""

    def __init__(self, width: int, heads: int, length: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.bias = nn.Parameter(torch.randn(heads, length))
        at = torch.arange(length)
        self.register_buffer("apart", (at[:, None] - at[None]).abs(), persistent=False)
        self.heads, self.known = heads, {}

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        if str(x.device) not in self.known:
            self.known[str(x.device)] = self.bias[:, self.apart].detach()
        mixed = (q @ k.transpose(-2, -1) + self.known[str(x.device)]).softmax(-1) @ v
        return self.out(mixed.transpose(1, 2).flatten(2))


@functools.lru_cache
def split_shape(shape: tuple[int, ...], parts: int) -> tuple[int, ...]:
    """A shape whose last dimension is split in equal parts, remembered for each shape."""
    assert shape[-1] % parts == 0
    return (*shape[:-1], parts, shape[-1] // parts)


class Remembered(nn.Module):
    """Attention whose shapes come out of a cache of sizes that was filled by an earlier run."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.qkv, self.out, self.heads = nn.Linear(width, 3 * width), nn.Linear(width, width), heads

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(x).chunk(3, -1)
        q, k, v = (part.view(split_shape(tuple(part.shape), self.heads)).transpose(1, 2) for part in parts)
        mixed = (q @ k.transpose(-2, -1) * 0.3).softmax(-1) @ v
        return self.out(mixed.transpose(1, 2).flatten(2))


class Split(nn.Module):
    """Splits the last dimension in heads of one width; copies of it are built anew from what it was given."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.given = {"width": width}
        self.compiled = (("...", -1), tuple(self.given.items()))

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.compiled[1][0][1])).transpose(1, 2)

    def __getstate__(self) -> dict[str, Any]:
        return dict(self.given)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)


def split_net(net: Net, x: Tensor) -> Tensor:
    q, k, v = (split(layer(x)) for layer, split in zip((net.q, net.k, net.v), net.split, strict=True))
    return net.head(((q @ k.transpose(-2, -1) * 0.3).softmax(-1) @ v).transpose(1, 2).flatten(2))


class Scales(nn.Module):
    """Res2Net's hierarchy of as many pieces as each of them has channels."""

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(conv(scale, scale) for _ in range(scale - 1))
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        first, *others = torch.chunk(x, self.scale, dim=1)
        done = [first]
        for layer, piece in zip(self.convs, others, strict=True):
            done.append(layer(piece + done[-1]))
        return torch.cat(done, 1)


def used_before(net: nn.Module, x: Tensor) -> nn.Module:
    with torch.no_grad():
        net.eval()(x)
    return net


def packed_net(net: Net, x: Tensor, lengths: Tensor) -> Tensor:
    packed = pack_padded_sequence(net.proj(x), lengths, batch_first=True)
    found, (hidden, _) = net.lstm(packed)
    steps, _ = pad_packed_sequence(found, batch_first=True)
    return net.head(steps.amax(1)) + net.last(torch.cat([hidden[-2], hidden[-1]], -1))


def expert_choice_net(net: Net, x: Tensor) -> Tensor:
    rows = x.flatten(0, 1)
    scores, places = net.gate(rows).softmax(-1).t().topk(3, -1)
    sent = F.one_hot(places, rows.size(0)).to(x.dtype)
    taken = torch.einsum("ekn,nd->ekd", sent, rows)
    given = torch.bmm(F.gelu(torch.bmm(taken, net.first)), net.second)
    return net.head(torch.einsum("ekn,ek,ekd->nd", sent, scores, given).view(x.shape) + x)


def codebook_net(net: Net, x: Tensor) -> Tensor:
    code = net.encode(x)
    nearest = net.book(torch.cdist(code, net.book.weight).argmin(-1))
    return net.decode(code + (nearest - code).detach())


def hypernetwork(net: Net, x: Tensor, z: Tensor) -> Tensor:
    hidden = net.hidden(z).relu()
    weight = net.weight(hidden).view(x.size(0), -1, x.size(1))
    return net.head((torch.bmm(weight, x.unsqueeze(-1)).squeeze(-1) + net.bias(hidden)).relu())


def style_net(net: Net, z: Tensor) -> Tensor:
    w = net.map(z)
    x = net.const.repeat(z.size(0), 1, 1, 1)
    return net.image(net.second(F.interpolate(net.first(x, w), scale_factor=2), w))


def coupling_net(net: Net, x: Tensor) -> tuple[Tensor, Tensor]:
    total = x.new_zeros(x.size(0))
    for number, inner in enumerate(net.inner):
        mask = net.mask if number % 2 else 1 - net.mask
        scale, shift = inner(x * mask).chunk(2, -1)
        scale = torch.tanh(scale) * (1 - mask)
        x = x * mask + (1 - mask) * (x * scale.exp() + shift)
        total = total + scale.sum(-1)
    return x, total


def tied_net(net: Net, x: Tensor) -> tuple[Tensor, Tensor]:
    code = net.inner(net.outer(x).relu()).relu()
    back = F.linear(code, net.inner.weight.t(), net.offset).relu()
    return F.linear(back, net.outer.weight.t()), code


def operator_net(net: Net, x: Tensor) -> Tensor:
    x = net.lift(x).transpose(1, 2)
    x = F.gelu(net.spectral(x) + net.skip(x))
    return net.head(F.gelu(net.project(x.transpose(1, 2))))


CASES = [
    Case(
        "weights written in the forward",
        0,
        lambda: nn.Sequential(
            MaskedConv(1, 8, 5, False), nn.BatchNorm2d(8), nn.ReLU(), MaskedConv(8, 8, 3, True), conv(8, 4, 1)
        ),
        image(1),
        ("0.weight", "0.mask", "3.weight", "3.mask", "4.weight"),
    ),
    Case(
        "packed sequences",
        0,
        lambda: Net(
            packed_net,
            proj=nn.Linear(6, 8),
            lstm=nn.LSTM(8, 10, 2, batch_first=True, bidirectional=True),
            head=nn.Linear(20, 3),
            last=nn.Linear(20, 3),
        ),
        lambda: (tokens(6, 5, 3)(), torch.tensor([5, 3, 1])),
        ("proj.weight", "lstm.weight_ih_l0", "lstm.weight_hh_l1_reverse", "head.weight", "last.weight"),
    ),
    Case(
        "experts choose tokens",
        0,
        lambda: Net(
            expert_choice_net,
            gate=nn.Linear(8, 4, bias=False),
            first=nn.Parameter(torch.randn(4, 8, 12)),
            second=nn.Parameter(torch.randn(4, 12, 8)),
            head=nn.Linear(8, 3),
        ),
        tokens(8),
        ("gate.weight", "first", "second"),
    ),
    Case(
        "heads in the batch",
        0,
        lambda: nn.Sequential(nn.Linear(6, 16), HeadsInBatch(16, 4), nn.Linear(16, 3)),
        tokens(6),
        ("0.weight", "1.q.weight", "1.v.weight", "2.weight"),
    ),
    Case(
        "bias looked up before",
        0,
        lambda: used_before(
            nn.Sequential(nn.Linear(6, 16), CachedBias(16, 4, 6), nn.Linear(16, 3)), tokens(6)()
        ),
        tokens(6),
        ("0.weight", "1.qkv.weight", "1.out.weight"),
    ),
    Case(
        "sizes from a cache",
        0,
        lambda: used_before(
            nn.Sequential(nn.Linear(6, 16), Remembered(16, 4), nn.Linear(16, 3)), tokens(6)()
        ),
        tokens(6),
        ("0.weight", "1.qkv.weight", "1.out.weight"),
    ),
    Case(
        "layers built anew from their state",
        0,
        lambda: Net(
            split_net,
            **{name: nn.Linear(6, 16) for name in "qkv"},
            split=nn.ModuleList(Split(8) for _ in "qkv"),
            head=nn.Linear(16, 3),
        ),
        tokens(6),
        ("q.weight", "k.weight", "v.weight", "head.weight"),
    ),
    Case(
        "nearest code of a book",
        0,
        lambda: Net(codebook_net, encode=nn.Linear(6, 8), book=nn.Embedding(9, 8), decode=nn.Linear(8, 3)),
        row(6, 8),
        ("encode.weight", "book.weight", "decode.weight"),
    ),
    Case(
        "as many pieces as channels in each",
        0,
        lambda: nn.Sequential(conv(3, 16), Scales(4), conv(16, 3, 1)),
        image(3),
        ("0.weight", "1.convs.0.weight", "1.convs.2.weight", "2.weight"),
    ),
    Case(
        "weights from another network",
        0,
        lambda: Net(
            hypernetwork,
            hidden=nn.Linear(5, 12),
            weight=nn.Linear(12, 8 * 6),
            bias=nn.Linear(12, 8),
            head=nn.Linear(8, 3),
        ),
        lambda: (row(6)(), row(5)()),
        ("hidden.weight", "weight.weight", "bias.weight", "head.weight"),
    ),
    Case(
        "modulated convolutions",
        0,
        lambda: Net(
            style_net,
            map=nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 8)),
            const=nn.Parameter(torch.randn(1, 8, 4, 4)),
            first=Modulated(8, 12),
            second=Modulated(12, 8),
            image=conv(8, 3, 1),
        ),
        row(6, 2),
        ("map.2.weight", "const", "first.weight", "second.weight", "second.style.weight", "image.weight"),
    ),
    Case(
        "masked coupling",
        0,
        lambda: Net(
            coupling_net,
            mask=nn.Parameter((torch.arange(6) % 2).float(), requires_grad=False),
            inner=nn.ModuleList(
                nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12)) for _ in range(2)
            ),
        ),
        row(6),
        ("inner.0.0.weight", "inner.1.2.weight"),
        ("mask",),
    ),
    Case(
        "tied autoencoder",
        0,
        lambda: Net(
            tied_net, outer=nn.Linear(6, 16), inner=nn.Linear(16, 4), offset=nn.Parameter(torch.zeros(16))
        ),
        row(6),
        ("outer.weight", "inner.weight", "offset"),
    ),
    Case(
        "fourier neural operator",
        0,
        lambda: Net(
            operator_net,
            lift=nn.Linear(3, 8),
            spectral=Spectral(8, 3),
            skip=nn.Conv1d(8, 8, 1),
            project=nn.Linear(8, 12),
            head=nn.Linear(12, 1),
        ),
        tokens(3, 10),
        ("lift.weight", "spectral.weight", "skip.weight", "project.weight", "head.weight"),
    ),
]
