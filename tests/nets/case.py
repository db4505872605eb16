"""What a test network is: how to build it, what goes in, and what pruning must make of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Case", "Net", "conv", "image", "row", "tokens"]


@dataclass(frozen=True)
class Frozen:
    """In this dimension of this tensor positions stay, and the reason given has these words."""

    tensor: str
    dim: int
    reason: str = ""


@dataclass(frozen=True)
class Case:
    """One network. At half the channels the tensors in `smaller` lose numbers, those in `whole` do not."""

    id: str
    row: int  # of the table of patterns; 0 for whole architectures
    build: Callable[[], nn.Module]
    inputs: Callable[[], Any]
    smaller: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()
    frozen: tuple[Frozen, ...] = ()


class Net(nn.Module):
    """A network written as one function `forward(net, *inputs)` over named layers and plain values."""

    def __init__(self, forward: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.run = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(self, *args, **kwargs)


def conv(c_in: int, c_out: int, kernel: int = 3, **options: Any) -> nn.Conv2d:
    """A convolution that keeps the image's size at stride 1."""
    return nn.Conv2d(c_in, c_out, kernel, padding=options.pop("padding", kernel // 2), **options)


def image(channels: int = 3, size: int = 8, batch: int = 2) -> Callable[[], Tensor]:
    return lambda: torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(1))


def row(width: int, batch: int = 4) -> Callable[[], Tensor]:
    return lambda: torch.randn(batch, width, generator=torch.Generator().manual_seed(2))


def tokens(width: int, length: int = 6, batch: int = 2) -> Callable[[], Tensor]:
    return lambda: torch.randn(batch, length, width, generator=torch.Generator().manual_seed(3))
