"""Patterns 1 to 7, 9 and 15: channels that are cut apart, joined, moved into space, padded."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.nets.case import Case, Frozen, Net, conv, image

__all__ = ["CASES"]


class Bottleneck(nn.Module):
    def __init__(self, width: int, shortcut: bool) -> None:
        super().__init__()
        self.cv1, self.cv2, self.shortcut = conv(width, width), conv(width, width), shortcut

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.cv2(F.silu(self.cv1(x)))
        return x + y if self.shortcut else y


class C2f(nn.Module):
    def __init__(self, c_in: int, c_out: int, depth: int, shortcut: bool) -> None:
        super().__init__()
        self.c = c_out // 2
        self.cv1 = conv(c_in, 2 * self.c, 1)
        self.cv2 = conv((2 + depth) * self.c, c_out, 1)
        self.m = nn.ModuleList(Bottleneck(self.c, shortcut) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        y = list(self.cv1(x).chunk(2, 1))
        y.extend(m(y[-1]) for m in self.m)
        out: Tensor = self.cv2(torch.cat(y, 1))
        return out


class C2fSplit(C2f):
    def forward(self, x: Tensor) -> Tensor:
        y = list(self.cv1(x).split((self.c, self.c), 1))
        y.extend(m(y[-1]) for m in self.m)
        out: Tensor = self.cv2(torch.cat(y, 1))
        return out


def c2f(kind: type[C2f] = C2f, shortcut: bool = True) -> nn.Module:
    return nn.Sequential(conv(3, 8), nn.ReLU(), kind(8, 16, 2, shortcut), nn.ReLU(), conv(16, 4))


def csp_forward(m: Any, x: Tensor) -> Tensor:
    x = m.stem(x)
    return m.head(F.silu(m.merge(torch.cat((m.block(m.left(x)), m.right(x)), 1))))


def csp() -> nn.Module:
    return Net(
        csp_forward,
        stem=conv(3, 8),
        left=conv(8, 4, 1),
        right=conv(8, 4, 1),
        block=Bottleneck(4, True),
        merge=conv(8, 8, 1),
        head=conv(8, 5),
    )


def halves(m: Any, x: Tensor) -> Tensor:
    a, b = m.stem(x).chunk(2, 1)
    return m.head(F.relu(m.left(a) + m.right(b)))


def chunk_to_two() -> nn.Module:
    return Net(halves, stem=conv(3, 32), left=conv(16, 8), right=conv(16, 8), head=conv(8, 3))


def gated(m: Any, x: Tensor) -> Tensor:
    a, b = m.stem(x).chunk(2, 1)
    return m.head(a * torch.sigmoid(b))


def partial_literal(m: Any, x: Tensor) -> Tensor:
    a, b = torch.split(F.relu(m.stem(x)), [8, 24], 1)
    return m.head(torch.cat((m.part(a), b), 1))


def partial_attribute(m: Any, x: Tensor) -> Tensor:
    a, b = torch.split(F.relu(m.stem(x)), m.sizes, 1)
    return m.head(torch.cat((m.part(a), b), 1))


def partial(forward: Any, **parts: Any) -> nn.Module:
    return Net(forward, stem=conv(3, 32), part=conv(8, 8), head=conv(32, 5), **parts)


def slice_literal(m: Any, x: Tensor) -> Tensor:
    x = F.relu(m.stem(x))
    return m.left(x[:, :8]) + m.right(x[:, 8:])


def slice_attribute(m: Any, x: Tensor) -> Tensor:
    x = F.relu(m.stem(x))
    return m.left(x[:, : m.width]) + m.right(x[:, m.width :])


def slice_write(m: Any, x: Tensor) -> Tensor:
    x = F.relu(m.stem(x))
    x[:, :8] = m.part(x[:, :8])
    return m.head(x)


def slice_half_of_shape(m: Any, x: Tensor) -> Tensor:
    x = F.relu(m.stem(x))
    half = x.shape[1] // 2
    return m.left(x[:, :half]) + m.right(x[:, half:])


def sliced(forward: Any, **parts: Any) -> nn.Module:
    return Net(forward, stem=conv(3, 24), left=conv(8, 5), right=conv(16, 5), **parts)


def res2net_forward(m: Any, x: Tensor) -> Tensor:
    parts = torch.chunk(F.relu(m.stem(x)), 4, 1)
    outs, y = [parts[0]], None
    for layer, part in zip(m.convs, parts[1:], strict=True):
        y = F.relu(layer(part if y is None else part + y))
        outs.append(y)
    return m.head(torch.cat(outs, 1))


def res2net() -> nn.Module:
    return Net(
        res2net_forward, stem=conv(3, 32), convs=nn.ModuleList(conv(8, 8) for _ in range(3)), head=conv(32, 5)
    )


def res2net_attribute_forward(m: Any, x: Tensor) -> Tensor:
    parts = torch.split(m.bn(m.stem(x)), m.width, 1)
    outs = [layer(part) for layer, part in zip(m.convs, parts[:3], strict=True)]
    return m.head(torch.cat([*outs, parts[3]], 1)) + m.shortcut(x)


def res2net_attribute() -> nn.Module:
    return Net(
        res2net_attribute_forward,
        stem=conv(3, 32),
        bn=nn.BatchNorm2d(32),
        width=8,
        shortcut=conv(3, 5),
        convs=nn.ModuleList(conv(8, 8) for _ in range(3)),
        head=conv(32, 5),
    )


def with_input(m: Any, x: Tensor) -> Tensor:
    return m.head(F.relu(torch.cat((x, m.stem(x)), 1)))


def with_input_last(m: Any, x: Tensor) -> Tensor:
    return m.head(F.relu(m.bn(torch.cat((m.stem(x), x), 1))))


def twice(m: Any, x: Tensor) -> Tensor:
    a, b = F.relu(m.stem(x)), m.other(x)
    return m.head(torch.cat((a, a, b), 1))


def nested(m: Any, x: Tensor) -> Tensor:
    a, b = F.relu(m.stem(x)), m.other(x)
    inner = torch.cat((a, b), 1)
    return m.head(torch.cat((inner, m.mid(inner), a), 1))


def ghost(m: Any, x: Tensor) -> Tensor:
    a = F.relu(m.stem(x))
    return m.head(torch.cat((a, F.relu(m.cheap(a))), 1))


def ghost_sliced(m: Any, x: Tensor) -> Tensor:
    a = F.relu(m.stem(x))
    return m.head(torch.cat((a, F.relu(m.cheap(a))), 1)[:, : m.width])


def focus(m: Any, x: Tensor) -> Tensor:
    x = m.stem(x)
    corners = (x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2])
    return m.head(F.silu(m.conv(torch.cat(corners, 1))))


def shuffle_by_view(m: Any, x: Tensor) -> Tensor:
    x = m.up(F.relu(m.stem(x)))
    b, c, h, w = x.shape
    x = x.view(b, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(b, c // 4, h * 2, w * 2)
    return m.head(x)


def padded(m: Any, x: Tensor) -> Tensor:
    x = F.relu(m.stem(x))
    shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))
    return m.head(F.relu(m.b(F.relu(m.a(x))) + shortcut))


def padded_attribute(m: Any, x: Tensor) -> Tensor:
    x = F.relu(m.stem(x))
    shortcut = F.pad(F.avg_pool2d(x, 2), (0, 0, 0, 0, 0, m.extra))
    return m.head(F.relu(m.b(F.relu(m.a(x))) + shortcut))


def padded_by_cat(m: Any, x: Tensor) -> Tensor:
    x = F.relu(m.stem(x))
    y = m.b(F.relu(m.a(x)))
    shortcut = F.avg_pool2d(x, 2)
    zeros = torch.zeros(y.shape[0], y.shape[1] - shortcut.shape[1], *y.shape[2:])
    return m.head(F.relu(y + torch.cat((shortcut, zeros.to(x.dtype)), 1)))


def option_a(forward: Any, **parts: Any) -> nn.Module:
    return Net(forward, stem=conv(3, 8), a=conv(8, 16, stride=2), b=conv(16, 16), head=conv(16, 5), **parts)


CASES = [
    Case(
        "c2f", 1, c2f, image(), ("0.weight", "2.cv1.weight", "2.m.0.cv1.weight", "2.cv2.weight", "4.weight")
    ),
    Case(
        "c2f without shortcut",
        1,
        lambda: c2f(shortcut=False),
        image(),
        ("2.m.0.cv1.weight", "2.m.1.cv2.weight"),
    ),
    Case(
        "c2f split by attribute", 1, lambda: c2f(C2fSplit), image(), ("2.m.0.cv1.weight", "2.m.1.cv2.weight")
    ),
    Case(
        "csp",
        1,
        csp,
        image(),
        ("stem.weight", "left.weight", "right.weight", "block.cv1.weight", "merge.weight"),
    ),
    Case(
        "chunk into two convs",
        2,
        chunk_to_two,
        image(),
        ("stem.weight", "left.weight", "right.weight", "head.weight"),
    ),
    Case(
        "chunk into a gate",
        2,
        lambda: Net(gated, stem=conv(3, 16), head=conv(8, 5)),
        image(),
        ("stem.weight", "head.weight"),
    ),
    Case(
        "split by literal sizes",
        3,
        lambda: partial(partial_literal),
        image(),
        ("part.weight",),
        whole=("stem.weight",),
        frozen=(Frozen("stem.weight", 0, "8"),),
    ),
    Case(
        "split by stored sizes",
        3,
        lambda: partial(partial_attribute, sizes=[8, 24]),
        image(),
        ("stem.weight", "part.weight", "head.weight"),
    ),
    Case(
        "slices by literal",
        4,
        lambda: sliced(slice_literal),
        image(),
        frozen=(Frozen("stem.weight", 0, "8"),),
    ),
    Case(
        "slices by attribute",
        4,
        lambda: sliced(slice_attribute, width=8),
        image(),
        ("stem.weight", "left.weight", "right.weight"),
    ),
    Case(
        "write into a slice",
        4,
        lambda: Net(slice_write, stem=conv(3, 24), part=conv(8, 8), head=conv(24, 5)),
        image(),
        frozen=(Frozen("stem.weight", 0, "8"),),
    ),
    Case(
        "slices by half the shape",
        4,
        lambda: Net(slice_half_of_shape, stem=conv(3, 16), left=conv(8, 5), right=conv(8, 5)),
        image(),
        ("stem.weight", "left.weight", "right.weight"),
    ),
    Case("res2net", 5, res2net, image(), ("stem.weight", "convs.0.weight", "convs.2.weight", "head.weight")),
    Case(
        "res2net split by attribute",
        5,
        res2net_attribute,
        image(),
        ("stem.weight", "convs.0.weight", "head.weight"),
    ),
    Case(
        "cat with the input",
        6,
        lambda: Net(with_input, stem=conv(3, 8), head=conv(11, 5)),
        image(),
        ("stem.weight", "head.weight"),
    ),
    Case(
        "cat with the input behind",
        6,
        lambda: Net(with_input_last, stem=conv(3, 8), bn=nn.BatchNorm2d(11), head=conv(11, 5)),
        image(),
        ("stem.weight", "bn.weight", "bn.running_mean", "head.weight"),
    ),
    Case(
        "cat of one tensor twice",
        7,
        lambda: Net(twice, stem=conv(3, 8), other=conv(3, 4), head=conv(20, 5)),
        image(),
        ("stem.weight", "other.weight", "head.weight"),
    ),
    Case(
        "nested cat",
        7,
        lambda: Net(nested, stem=conv(3, 8), other=conv(3, 4), mid=conv(12, 4), head=conv(24, 5)),
        image(),
        ("stem.weight", "other.weight", "mid.weight", "head.weight"),
    ),
    Case(
        "ghost",
        7,
        lambda: Net(ghost, stem=conv(3, 8), cheap=conv(8, 8, groups=8), head=conv(16, 5)),
        image(),
        ("stem.weight", "cheap.weight", "head.weight"),
    ),
    Case(
        "ghost cut to its width",
        7,
        lambda: Net(ghost_sliced, stem=conv(3, 8), cheap=conv(8, 8, groups=8), head=conv(12, 5), width=12),
        image(),
    ),
    Case(
        "pixel shuffle",
        9,
        lambda: nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 32), nn.PixelShuffle(2), conv(8, 5)),
        image(),
        ("0.weight", "2.weight", "4.weight"),
    ),
    Case(
        "pixel shuffle to the output",
        9,
        lambda: nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 12), nn.PixelShuffle(2)),
        image(),
        ("0.weight",),
        frozen=(Frozen("2.weight", 0, "output"),),
    ),
    Case(
        "pixel unshuffle",
        9,
        lambda: nn.Sequential(conv(3, 4), nn.ReLU(), nn.PixelUnshuffle(2), conv(16, 5)),
        image(),
        ("0.weight", "3.weight"),
    ),
    Case(
        "pixel shuffle by view",
        9,
        lambda: Net(shuffle_by_view, stem=conv(3, 8), up=conv(8, 32), head=conv(8, 5)),
        image(),
        ("stem.weight", "up.weight", "head.weight"),
    ),
    Case(
        "focus",
        9,
        lambda: Net(focus, stem=conv(3, 4), conv=conv(16, 8), head=conv(8, 5)),
        image(),
        ("stem.weight", "conv.weight", "head.weight"),
    ),
    Case(
        "shortcut padded by literal",
        15,
        lambda: option_a(padded),
        image(),
        ("a.weight", "b.weight"),
    ),
    Case(
        "shortcut padded by attribute",
        15,
        lambda: option_a(padded_attribute, extra=8),
        image(),
        ("a.weight", "b.weight"),
    ),
    Case("shortcut padded by cat", 15, lambda: option_a(padded_by_cat), image(), ("a.weight", "b.weight")),
]
