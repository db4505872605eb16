"""The U-Net of Stable Diffusion 1.x in plain torch: residual blocks, cross attention, skips joined by concatenation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["UNet", "stable_diffusion_unet"]


class ResidualBlock(nn.Module):
    """`[b, c, h, w]` to `[b, d, h, w]`, shifted by an embedding of the time step."""

    def __init__(self, channels: int, out: int, embedding: int, groups: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(groups, channels), nn.Conv2d(channels, out, 3, padding=1)
        self.shift = nn.Linear(embedding, out)
        self.norm2, self.conv2 = nn.GroupNorm(groups, out), nn.Conv2d(out, out, 3, padding=1)
        self.shortcut = nn.Conv2d(channels, out, 1) if channels != out else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x))) + self.shift(F.silu(time))[:, :, None, None]
        out: Tensor = self.shortcut(x) + self.conv2(F.silu(self.norm2(y)))
        return out


class Attention(nn.Module):
    """Tokens `[b, n, c]` attend to a context `[b, m, d]`, or to themselves."""

    def __init__(self, channels: int, context: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (channels // heads) ** -0.5
        self.q = nn.Linear(channels, channels, bias=False)
        self.k, self.v = (nn.Linear(context, channels, bias=False) for _ in range(2))
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        q, k, v = (
            t.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for t in (self.q(x), self.k(context), self.v(context))
        )
        y = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        out: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return out


class TransformerBlock(nn.Module):
    """Self attention, cross attention and a gated MLP over the pixels of `[b, c, h, w]`."""

    def __init__(self, channels: int, context: int, heads: int, groups: int) -> None:
        super().__init__()
        self.norm, self.into = nn.GroupNorm(groups, channels, eps=1e-6), nn.Conv2d(channels, channels, 1)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(channels) for _ in range(3))
        self.itself = Attention(channels, channels, heads)
        self.cross = Attention(channels, context, heads)
        self.gated, self.down = nn.Linear(channels, 8 * channels), nn.Linear(4 * channels, channels)
        self.back = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        y = self.into(self.norm(x))
        size = y.shape[2:]
        y = y.flatten(2).transpose(1, 2)
        z = self.norm1(y)
        y = y + self.itself(z, z)
        y = y + self.cross(self.norm2(y), context)
        value, gate = self.gated(self.norm3(y)).chunk(2, -1)
        y = y + self.down(value * F.gelu(gate))
        out: Tensor = x + self.back(y.transpose(1, 2).unflatten(2, size))
        return out


class Stage(nn.Module):
    """A residual block, and attention where the stage has heads for it."""

    def __init__(
        self, channels: int, out: int, embedding: int, context: int, heads: int, groups: int
    ) -> None:
        super().__init__()
        self.block = ResidualBlock(channels, out, embedding, groups)
        self.attend = TransformerBlock(out, context, heads, groups) if heads else None

    def forward(self, x: Tensor, time: Tensor, context: Tensor) -> Tensor:
        x = self.block(x, time)
        return x if self.attend is None else self.attend(x, context)


class UNet(nn.Module):
    """Latents `[b, 4, h, w]`, time steps `[b]` and a text `[b, m, context]` to the noise `[b, 4, h, w]`."""

    frequencies: Tensor

    def __init__(
        self, widths: Sequence[int], heads: Sequence[int], context: int, groups: int = 32, depth: int = 2
    ) -> None:
        super().__init__()
        first, last, embedding = widths[0], widths[-1], 4 * widths[0]
        half = first // 2
        frequencies = torch.exp(-math.log(10_000) * torch.arange(half) / half)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.time = nn.Sequential(nn.Linear(first, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.stem = nn.Conv2d(4, first, 3, padding=1)
        self.down, self.up, self.shrink, self.grow = (nn.ModuleList() for _ in range(4))
        levels, skips, channels = list(zip(widths, heads, strict=True)), [first], first
        for level, (width, count) in enumerate(levels):
            for _ in range(depth):
                self.down.append(Stage(channels, width, embedding, context, count, groups))
                channels = width
                skips.append(channels)
            if level + 1 < len(levels):
                self.shrink.append(nn.Conv2d(channels, channels, 3, stride=2, padding=1))
                skips.append(channels)
        self.middle = Stage(last, last, embedding, context, max(heads), groups)
        self.after = ResidualBlock(last, last, embedding, groups)
        for level, (width, count) in reversed(list(enumerate(levels))):
            for _ in range(depth + 1):
                self.up.append(Stage(channels + skips.pop(), width, embedding, context, count, groups))
                channels = width
            if level:
                self.grow.append(nn.Conv2d(channels, channels, 3, padding=1))
        self.depth = depth
        self.norm, self.head = nn.GroupNorm(groups, first), nn.Conv2d(first, 4, 3, padding=1)

    def forward(self, x: Tensor, steps: Tensor, context: Tensor) -> Tensor:
        angles = steps[:, None].to(self.frequencies.dtype) * self.frequencies
        time = self.time(torch.cat((angles.cos(), angles.sin()), -1))
        x = self.stem(x)
        skips = [x]
        for number, stage in enumerate(self.down, 1):
            x = stage(x, time, context)
            skips.append(x)
            if number % self.depth == 0 and number < len(self.down):
                x = self.shrink[number // self.depth - 1](x)
                skips.append(x)
        x = self.after(self.middle(x, time, context), time)
        for number, stage in enumerate(self.up, 1):
            x = stage(torch.cat((x, skips.pop()), 1), time, context)
            if number % (self.depth + 1) == 0 and number < len(self.up):
                x = self.grow[number // (self.depth + 1) - 1](F.interpolate(x, scale_factor=2.0))
        out: Tensor = self.head(F.silu(self.norm(x)))
        return out


def stable_diffusion_unet() -> UNet:
    """The shapes of Stable Diffusion 1.x: 859,520,964 parameters. Build it where they take no memory."""
    return UNet((320, 640, 1280, 1280), heads=(8, 8, 8, 0), context=768)
