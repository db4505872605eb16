"""What the demo does, in numbers; the defaults are what `structprune demo` runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from structprune.demo.network import resnet20

__all__ = ["Settings"]


@dataclass(frozen=True)
class Settings:
    """Sizes, training lengths and rates; all networks are fine-tuned alike."""

    build_model: Callable[[], nn.Module] = resnet20
    image_size: int = 12
    epochs: int = 6
    lr: float = 0.05
    finetune_epochs: int = 4
    finetune_lr: float = 0.02
    train_batch: int = 32
    macs: float = 0.5
    criterion: str = "l2"
    multiple_of: int = 16
    """CPU kernels compute 16 channels at a time (8 without AVX-512), so widths between save nothing."""
    batch: int = 32
    repeats: int = 50
    min_time_s: float = 1.0
