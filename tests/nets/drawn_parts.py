"""The parts that drawn networks are made of: small modules, each written the way people write them.

A part is built for the shape of its input and keyword options, which it can draw itself. Channels lie in dimension 1 of
images and rows, in the last dimension of tokens. Where people differ in how they write a size (a literal, an attribute,
taken from the shape), the option `how` says which.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["PARTS", "Choose", "Part", "Shape"]

Shape = tuple[int, ...]
Choose = Callable[..., Any]  # returns one of its arguments
WIDTHS = (4, 6, 8, 12)


def divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


def axis_of(shape: Shape) -> int:
    return 2 if len(shape) == 3 else 1


def per_channel(values: Tensor, x: Tensor) -> Tensor:
    return values if x.dim() == 3 else values.view(1, -1, *[1] * (x.dim() - 2))


class Part(nn.Module):
    """A step of a drawn network; `ranks` of inputs it takes, and how many of them."""

    ranks: ClassVar[tuple[int, ...]] = (2, 3, 4)
    arity: ClassVar[int] = 1

    @staticmethod
    def fits(shape: Shape) -> bool:
        return True

    @staticmethod
    def options(choose: Choose, shape: Shape) -> dict[str, Any]:
        return {}


class Convolve(Part):
    ranks = (4,)

    @staticmethod
    def options(choose: Choose, shape: Shape) -> dict[str, Any]:
        out = choose(*WIDTHS)
        groups = choose(1, 1, *divisors(math.gcd(out, shape[1])))
        stride = choose(1, 1, 2) if shape[2] >= 4 else 1
        return {
            "out": out,
            "kernel": choose(1, 3),
            "groups": groups,
            "stride": stride,
            "bias": choose(True, False),
        }

    def __init__(self, shape: Shape, out: int, kernel: int, groups: int, stride: int, bias: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            shape[1], out, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=bias
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Depthwise(Part):
    ranks = (4,)

    @staticmethod
    def options(choose: Choose, shape: Shape) -> dict[str, Any]:
        return {"multiplier": choose(1, 1, 2), "how": choose("module", "shape", "literal")}

    def __init__(self, shape: Shape, multiplier: int, how: str) -> None:
        super().__init__()
        self.how, width = how, shape[1]
        self.conv = nn.Conv2d(width, width * multiplier, 3, padding=1, groups=width)
        self.literal = (str(width),)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "module":
            return self.conv(x)
        groups = x.shape[1] if self.how == "shape" else int(self.literal[0])
        return F.conv2d(x, self.conv.weight, self.conv.bias, padding=1, groups=groups)


class Transposed(Part):
    ranks = (4,)

    @staticmethod
    def fits(shape: Shape) -> bool:
        return shape[2] <= 4

    @staticmethod
    def options(choose: Choose, shape: Shape) -> dict[str, Any]:
        out = choose(*WIDTHS)
        return {"out": out, "groups": choose(1, *divisors(math.gcd(out, shape[1])))}

    def __init__(self, shape: Shape, out: int, groups: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(shape[1], out, 2, stride=2, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Linear(Part):
    ranks = (2, 3)

    @staticmethod
    def options(choose: Choose, shape: Shape) -> dict[str, Any]:
        return {
            "out": choose(*WIDTHS),
            "bias": choose(True, False),
            "how": choose("module", "matmul", "einsum"),
        }

    def __init__(self, shape: Shape, out: int, bias: bool, how: str) -> None:
        super().__init__()
        self.how = how
        self.linear = nn.Linear(shape[-1], out, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "module":
            return self.linear(x)
        weight, bias = self.linear.weight, self.linear.bias
        y = x @ weight.t() if self.how == "matmul" else torch.einsum("...i,oi->...o", x, weight)
        return y if bias is None else y + bias


class Norm(Part):
    @staticmethod
    def options(choose: Choose, shape: Shape) -> dict[str, Any]:
        kinds = {
            2: ("batch", "layer", "rms"),
            3: ("layer", "rms", "root"),
            4: ("batch", "group", "layer", "rms"),
        }
        kind = choose(*kinds[len(shape)])
        return {"kind": kind, "groups": choose(*divisors(shape[1])), "affine": choose(True, False)}

    def __init__(self, shape: Shape, kind: str, groups: int, affine: bool) -> None:
        super().__init__()
        self.kind, width = kind, shape[axis_of(shape)]
        if kind == "batch":
            self.norm: nn.Module = (nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d)(
                width, affine=affine
            )
        elif kind == "group":
            self.norm = nn.GroupNorm(groups, width, affine=affine)
        elif kind == "layer":
            self.norm = nn.LayerNorm(width, elementwise_affine=affine)
        elif kind == "root":
            self.norm = nn.RMSNorm(width, elementwise_affine=affine, eps=1e-6)
        else:
            self.weight = nn.Parameter(torch.ones(width)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "rms":
            axis = -1 if x.dim() == 3 else 1
            y = x * torch.rsqrt(x.pow(2).mean(axis, keepdim=True) + 1e-6)
            return y if self.weight is None else y * per_channel(self.weight, x)
        if self.kind == "layer" and x.dim() == 4:
            return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.norm(x)


class Activation(Part):
    @staticmethod
    def options(choose: Choose, shape: Shape) -> dict[str, Any]:
        return {
            "kind": choose("relu", "gelu", "sigmoid", "prelu", "hardswish", "softmax", "clamp", "inplace")
        }

    def __init__(self, shape: Shape, kind: str) -> None:
        super().__init__()
        self.kind, self.axis = kind, axis_of(shape)
        self.prelu = nn.PReLU(shape[1] if len(shape) != 3 else 1) if kind == "prelu" else None

    def forward(self, x: Tensor) -> Tensor:
        if self.prelu is not None:
            return self.prelu(x)
        if self.kind == "softmax":
            return torch.softmax(x, dim=self.axis)
        if self.kind == "clamp":
            return x.clamp(-2, 2) + 0.5
        if self.kind == "inplace":
            return F.relu(x.clone(), inplace=True)
        return getattr(F if hasattr(F, self.kind) else torch, self.kind)(x)


class Pool(Part):
    ranks = (4,)

    @staticmethod
    def options(choose: Choose, shape: Shape) -> dict[str, Any]:
        down, up = ("max", "avg", "adaptive"), ("nearest", "bilinear")
        return {"kind": choose(*(down if shape[2] >= 4 else up))}

    def __init__(self, shape: Shape, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "adaptive":
            return F.adaptive_avg_pool2d(x, (x.shape[2] // 2, 2))
        if self.kind in ("nearest", "bilinear"):
            return F.interpolate(x, scale_factor=2, mode=self.kind)
        return (F.max_pool2d if self.kind == "max" else F.avg_pool2d)(x, 2)


class Merge(Part):
    arity = 2

    @staticmethod
    def options(choose: Choose, shape: Shape) -> dict[str, Any]:
        return {"kind": choose("add", "add", "mul", "maximum", "inplace", "stack", "where", "lerp")}

    def __init__(self, shape: Shape, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if self.kind == "inplace":
            x = x.clone()
            x += y
            return x
        if self.kind == "stack":
            return torch.stack([x, y], dim=1).mean(dim=1)
        if self.kind == "where":
            return torch.where(x > y, x, 2 * y)
        if self.kind == "lerp":
            return torch.lerp(x, y, 0.3)
        return getattr(torch, self.kind)(x, y)


class Concatenate(Part):
    arity = 2

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.axis = axis_of(shape)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.cat([x, y], dim=self.axis)


class CutUp(Part):
    """Two halves, or stretches, of the channels."""

    @staticmethod
    def fits(shape: Shape) -> bool:
        return shape[axis_of(shape)] >= 4

    @staticmethod
    def options(choose: Choose, shape: Shape) -> dict[str, Any]:
        kinds = ("chunk", "literal", "shape", "slice", "attribute", "swap", "negative", "stride", "narrow")
        return {"kind": choose(*kinds), "at": choose(*range(1, shape[axis_of(shape)]))}

    def __init__(self, shape: Shape, kind: str, at: int) -> None:
        super().__init__()
        self.kind, self.axis, self.at = kind, axis_of(shape), at
        self.rest = shape[self.axis] - at

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        size = x.shape[self.axis]
        first = x.transpose(0, self.axis)  # slices are written over the first dimension
        if self.kind == "chunk":
            return x.chunk(2, dim=self.axis)
        if self.kind == "literal":
            at = int(str(self.at))
            return torch.split(x, [at, int(str(self.rest))], dim=self.axis)
        if self.kind == "attribute":
            return torch.split(x, [self.at, self.rest], dim=self.axis)
        if self.kind == "shape":
            return torch.split(x, [size // 2, size - size // 2], dim=self.axis)
        if self.kind == "narrow":
            return x.narrow(self.axis, 0, self.at), x.narrow(self.axis, self.at, size - self.at)
        if self.kind == "negative":
            return tuple(part.transpose(0, self.axis) for part in (first[: -self.at], first[-self.at :]))
        if self.kind == "stride":
            return tuple(part.transpose(0, self.axis) for part in (first[::2], first[1::2]))
        left, right = (part.transpose(0, self.axis) for part in (first[: size // 2], first[size // 2 :]))
        return (torch.cat([right, left], dim=self.axis),) if self.kind == "swap" else (left, right)


class Shuffle(Part):
    ranks = (4,)

    @staticmethod
    def options(choose: Choose, shape: Shape) -> dict[str, Any]:
        return {
            "groups": choose(*divisors(shape[1])),
            "how": choose("module", "literal", "attribute", "shape", "flatten"),
        }

    def __init__(self, shape: Shape, groups: int, how: str) -> None:
        super().__init__()
        self.how, self.groups, self.width = how, groups, shape[1]
        self.shuffle = nn.ChannelShuffle(groups)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        if self.how == "module":
            return self.shuffle(x)
        if self.how == "attribute":
            y = x.view(b, self.groups, self.width // self.groups, h, w)
        elif self.how == "literal":
            y = x.view(b, int(str(self.groups)), int(str(self.width // self.groups)), h, w)
        else:
            y = x.view(b, self.groups, c // self.groups, h, w)
        y = y.transpose(1, 2)
        return y.flatten(1, 2) if self.how == "flatten" else y.reshape(b, c, h, w)


class Gate(Part):
    """Squeeze and excitation: one factor for each channel."""

    @staticmethod
    def options(choose: Choose, shape: Shape) -> dict[str, Any]:
        return {"width": choose(2, 4), "how": choose("linear", "literal", "scalar", "expand")}

    def __init__(self, shape: Shape, width: int, how: str) -> None:
        super().__init__()
        self.how, self.channels = how, shape[axis_of(shape)]
        self.squeeze = nn.Linear(self.channels, width)
        self.excite = nn.Linear(width, 1 if how in ("scalar", "expand") else self.channels)

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean(dim=1) if x.dim() == 3 else x.flatten(2).mean(2) if x.dim() == 4 else x
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(pooled))))
        if self.how == "expand":
            gate = gate.expand(x.shape[0], x.shape[-1 if x.dim() == 3 else 1])
        width = self.channels if self.how == "literal" else -1
        if x.dim() == 4:
            return x * gate.view(x.shape[0], width, 1, 1)
        return x * gate.unsqueeze(1) if x.dim() == 3 else x * gate


class SpatialGate(Part):
    ranks = (4,)

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1)
        return x * torch.sigmoid(self.conv(pooled))


class PixelShuffle(Part):
    ranks = (4,)

    @staticmethod
    def fits(shape: Shape) -> bool:
        return shape[1] % 4 == 0 and shape[2] <= 4

    @staticmethod
    def options(choose: Choose, shape: Shape) -> dict[str, Any]:
        return {"how": choose("module", "function", "hand")}

    def __init__(self, shape: Shape, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        if self.how != "hand":
            return F.pixel_shuffle(x, 2)
        b, c, h, w = x.shape
        y = x.view(b, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3)
        return y.reshape(b, c // 4, h * 2, w * 2)


class PixelUnshuffle(Part):
    ranks = (4,)

    @staticmethod
    def fits(shape: Shape) -> bool:
        return shape[2] % 2 == 0 and shape[3] % 2 == 0 and shape[1] <= 8

    def __init__(self, shape: Shape) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_unshuffle(x, 2)


class Pad(Part):
    @staticmethod
    def options(choose: Choose, shape: Shape) -> dict[str, Any]:
        return {"before": choose(0, 1, 2), "after": choose(0, 1, 2), "where": choose("channels", "last")}

    def __init__(self, shape: Shape, before: int, after: int, where: str) -> None:
        super().__init__()
        lead = (0, 0) * (len(shape) - 2) if where == "channels" and len(shape) == 4 else ()
        self.pads = (*lead, before, after)

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, self.pads)


class Twice(Part):
    """One layer used twice, with a residual around it."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width = shape[axis_of(shape)]
        self.layer = nn.Conv2d(width, width, 3, padding=1) if len(shape) == 4 else nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer(F.relu(self.layer(x)))


class Bottleneck(Part):
    """A residual block with an inner width of its own."""

    @staticmethod
    def options(choose: Choose, shape: Shape) -> dict[str, Any]:
        return {"inner": choose(4, 8, 16), "kind": choose("plain", "glu", "chunk", "norm", "tied")}

    def __init__(self, shape: Shape, inner: int, kind: str) -> None:
        super().__init__()
        self.kind, self.axis, width = kind, axis_of(shape), shape[axis_of(shape)]
        image = len(shape) == 4
        double = 2 * inner if kind in ("glu", "chunk") else inner
        self.up = nn.Conv2d(width, double, 1) if image else nn.Linear(width, double)
        self.down = nn.Conv2d(inner, width, 1) if image else nn.Linear(inner, width)
        if kind == "tied":
            self.down.weight = nn.Parameter(self.down.weight.transpose(0, 1).clone())
            self.up.weight = self.down.weight
        if kind == "norm":
            self.norm: nn.Module = nn.BatchNorm2d(inner) if image else nn.LayerNorm(inner)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(x)
        if self.kind == "glu":
            y = F.glu(y, dim=self.axis)
        elif self.kind == "chunk":
            value, gate = y.chunk(2, dim=self.axis)
            y = value * F.silu(gate)
        elif self.kind == "norm":
            y = self.norm(y)
        y = F.relu(y)
        if self.kind == "tied":
            weight = self.down.weight.transpose(0, 1)
            return x + (F.conv2d(y, weight) if x.dim() == 4 else F.linear(y, weight))
        return x + self.down(y)


class Repeat(Part):
    @staticmethod
    def fits(shape: Shape) -> bool:
        return shape[axis_of(shape)] <= 12

    @staticmethod
    def options(choose: Choose, shape: Shape) -> dict[str, Any]:
        return {"how": choose("tile", "interleave", "roll", "flip", "cat")}

    def __init__(self, shape: Shape, how: str) -> None:
        super().__init__()
        self.how, self.axis = how, axis_of(shape)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "tile":
            return x.repeat([2 if i == self.axis else 1 for i in range(x.dim())])
        if self.how == "interleave":
            return x.repeat_interleave(2, dim=self.axis)
        if self.how == "cat":
            return torch.cat([x, -x], dim=self.axis)
        return torch.roll(x, 1, dims=self.axis) if self.how == "roll" else torch.flip(x, dims=[self.axis])


class Fold(Part):
    """Channels as [groups, inner], something done to one of the two, and back."""

    @staticmethod
    def options(choose: Choose, shape: Shape) -> dict[str, Any]:
        kinds = ("mean", "softmax", "scale", "mix", "max", "scale inner", "sum")
        return {
            "groups": choose(*divisors(shape[axis_of(shape)])),
            "kind": choose(*kinds),
            "how": choose("attribute", "shape", "literal"),
        }

    def __init__(self, shape: Shape, groups: int, kind: str, how: str) -> None:
        super().__init__()
        self.kind, self.how, self.groups = kind, how, groups
        self.inner = shape[axis_of(shape)] // groups
        self.scale = nn.Parameter(torch.ones(groups, 1))
        self.scale_inner = nn.Parameter(torch.ones(self.inner))
        self.mix = nn.Linear(self.inner, self.inner)

    def forward(self, x: Tensor) -> Tensor:
        y = x.permute(0, 2, 3, 1) if x.dim() == 4 else x
        width = y.shape[-1]
        if self.how == "attribute":
            y = y.reshape(*y.shape[:-1], self.groups, self.inner)
        elif self.how == "shape":
            y = y.reshape(*y.shape[:-1], self.groups, width // self.groups)
        else:
            y = y.unflatten(-1, (int(str(self.groups)), int(str(self.inner))))
        y = self.inside(y)
        if self.kind not in ("mean", "max", "sum"):
            y = y.flatten(-2)
        return y.permute(0, 3, 1, 2) if x.dim() == 4 else y

    def inside(self, y: Tensor) -> Tensor:
        if self.kind == "mean":
            return y.mean(-2)
        if self.kind == "sum":
            return y.sum(-1)
        if self.kind == "max":
            return y.max(-2).values
        if self.kind == "softmax":
            return y * torch.softmax(y, dim=-2)
        if self.kind == "mix":
            return self.mix(y)
        return y * (self.scale if self.kind == "scale" else self.scale_inner)


class Attention(Part):
    ranks = (3,)

    @staticmethod
    def options(choose: Choose, shape: Shape) -> dict[str, Any]:
        return {
            "heads": choose(*divisors(shape[2])),
            "head": choose(2, 4),
            "fused": choose(True, False),
            "how": choose("literal", "attribute", "shape", "minus"),
            "kernel": choose("function", "scaled", "hand"),
            "shared": choose(1, 1, 2),
        }

    def __init__(
        self, shape: Shape, heads: int, head: int, fused: bool, how: str, kernel: str, shared: int
    ) -> None:
        super().__init__()
        self.how, self.kernel, self.fused, width = how, kernel, fused, shape[2]
        self.heads, self.head, self.shared = heads * shared, head, shared
        inner = heads * shared * head
        narrow = heads * head
        if fused:
            self.qkv = nn.Linear(width, inner + 2 * narrow)
        else:
            self.q, self.k, self.v = (nn.Linear(width, n) for n in (inner, narrow, narrow))
        self.sizes = (inner, narrow, narrow)
        self.out = nn.Linear(inner, width)

    def split_heads(self, x: Tensor, heads: int) -> Tensor:
        b, n, c = x.shape
        if self.how == "literal":
            y = x.view(b, n, int(str(heads)), int(str(self.head)))
        elif self.how == "attribute":
            y = x.view(b, n, heads, self.head)
        elif self.how == "shape":
            y = x.view(b, n, heads, c // heads)
        else:
            y = x.view(b, n, -1, self.head)
        return y.transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(x).split(self.sizes, dim=-1) if self.fused else (self.q(x), self.k(x), self.v(x))
        counts = (self.heads, self.heads // self.shared, self.heads // self.shared)
        q, k, v = (self.split_heads(part, count) for part, count in zip(parts, counts, strict=True))
        if self.shared > 1:
            k, v = (t.repeat_interleave(self.shared, dim=1) for t in (k, v))
        if self.kernel == "hand":
            y = (q @ k.transpose(-2, -1) * 0.5).softmax(dim=-1) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v, scale=0.5 if self.kernel == "scaled" else None)
        y = y.transpose(1, 2)
        y = y.flatten(2) if self.how != "attribute" else y.reshape(*y.shape[:2], self.heads * self.head)
        return x + self.out(y)


class Mixer(Part):
    """A linear layer along the tokens."""

    ranks = (3,)

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(shape[1], 6), nn.Linear(6, shape[1])

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(x.transpose(1, 2)))).transpose(1, 2)


class Position(Part):
    ranks = (3,)

    @staticmethod
    def options(choose: Choose, shape: Shape) -> dict[str, Any]:
        return {"how": choose("add", "buffer", "token", "sine")}

    def __init__(self, shape: Shape, how: str) -> None:
        super().__init__()
        self.how = how
        self.table = nn.Parameter(torch.randn(1, 1 if how == "token" else shape[1], shape[2]))
        self.register_buffer("fixed", torch.randn(shape[1], shape[2]))

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "token":
            return torch.cat([self.table.expand(x.shape[0], -1, -1), x], dim=1)
        if self.how == "sine":
            return x + torch.sin(torch.arange(x.shape[1], dtype=x.dtype).unsqueeze(1) * 0.1)
        return x + (self.fixed if self.how == "buffer" else self.table)


class Recurrent(Part):
    ranks = (3,)

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.cell = nn.GRU(shape[2], 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.cell(x)[0]


class Reform(Part):
    """From images to tokens, from tokens to rows or images, from images to rows."""

    @staticmethod
    def fits(shape: Shape) -> bool:
        return len(shape) > 2

    @staticmethod
    def options(choose: Choose, shape: Shape) -> dict[str, Any]:
        if len(shape) == 3:
            return {"how": choose("mean", "first", "max", "flatten")}
        return {"how": choose("tokens", "literal tokens", "pool", "flatten", "channels last flatten", "sum")}

    def __init__(self, shape: Shape, how: str) -> None:
        super().__init__()
        self.how, self.shape = how, tuple(str(size) for size in shape)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "tokens":
            return x.flatten(2).transpose(1, 2)
        if self.how == "literal tokens":
            return x.reshape(-1, int(self.shape[1]), x.shape[2] * x.shape[3]).permute(0, 2, 1)
        if self.how == "first":
            return x[:, 0]
        if self.how in ("mean", "max"):
            return x.mean(1) if self.how == "mean" else x.max(dim=1)[0]
        if self.how == "pool":
            return F.adaptive_avg_pool2d(x, 1)[:, :, 0, 0]
        if self.how == "sum":
            return x.sum((2, 3))
        if self.how == "channels last flatten":
            x = x.permute(0, 2, 3, 1)
        return torch.flatten(x, 1)


PARTS: dict[str, type[Part]] = {part.__name__: part for part in Part.__subclasses__()}
