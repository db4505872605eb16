"""What fine-tuning is asked for: one frozen dataclass, checked when it is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TypeAlias

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from structprune.errors import InputError

__all__ = ["OPTIMIZERS", "SCHEDULES", "MakeOptimizer", "MakeSchedule", "TrainOptions"]

OPTIMIZERS = ("sgd", "adamw")
SCHEDULES = ("cosine", "onecycle", "constant")

MakeOptimizer: TypeAlias = Callable[[nn.Module], Optimizer] | type[Optimizer]
MakeSchedule: TypeAlias = Callable[[Optimizer, int], LRScheduler]


@dataclass(frozen=True)
class TrainOptions:
    """How a network is trained; a value out of range raises `InputError`.

    `optimizer` may be a class of `torch.optim` (which gets `lr` and `weight_decay`), or a function that makes one for a
    model, and `schedule` a function that makes it for an optimiser and the number of its steps.
    """

    epochs: int
    lr: float
    batch_size: int = 64
    optimizer: str | MakeOptimizer = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str | MakeSchedule = "cosine"
    label_smoothing: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "seed"):
            _need(_is_a(Integral, getattr(self, name)), name, getattr(self, name), "an integer")
        for name in ("lr", "momentum", "weight_decay", "label_smoothing"):
            _need(_is_a(Real, getattr(self, name)), name, getattr(self, name), "a number")
        if not callable(self.optimizer) and self.optimizer not in OPTIMIZERS:
            raise InputError(
                f"optimizer={self.optimizer!r} is unknown; choose one of {', '.join(OPTIMIZERS)}"
            )
        if not callable(self.schedule) and self.schedule not in SCHEDULES:
            raise InputError(f"schedule={self.schedule!r} is unknown; choose one of {', '.join(SCHEDULES)}")
        if isinstance(self.optimizer, type):
            _need(
                issubclass(self.optimizer, Optimizer), "optimizer", self.optimizer, "a class of torch.optim"
            )
        _need(-(2**63) <= self.seed < 2**63, "seed", self.seed, "a number of 64 bits")
        _need(self.epochs >= 1, "epochs", self.epochs, "at least 1")
        _need(self.batch_size >= 1, "batch_size", self.batch_size, "at least 1")
        _need(0 < self.lr < float("inf"), "lr", self.lr, "greater than 0")
        _need(0 <= self.momentum < 1, "momentum", self.momentum, "in [0, 1)")
        _need(self.weight_decay >= 0, "weight_decay", self.weight_decay, "0 or more")
        _need(0 <= self.label_smoothing < 1, "label_smoothing", self.label_smoothing, "in [0, 1)")


def _is_a(kind: type, value: object) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _need(holds: bool, name: str, value: object, allowed: str) -> None:
    if not holds:
        raise InputError(f"{name}={value!r}: must be {allowed}")
