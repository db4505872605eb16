"""The optimiser and the learning-rate schedule that `TrainOptions` describe."""

from __future__ import annotations

from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler, OneCycleLR

from structprune.errors import InputError
from structprune.train.options import TrainOptions

__all__ = ["build_optimizer", "build_schedule"]


def build_optimizer(model: nn.Module, options: TrainOptions) -> Optimizer:
    """The named optimiser over the trainable parameters; biases and norms (1-D) are not decayed."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    if not trainable:
        raise InputError(
            "no parameter of the model requires a gradient; set requires_grad on what is to be trained"
        )
    if callable(options.optimizer):
        return options.optimizer(model)
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": options.weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if options.optimizer == "adamw":
        return AdamW(groups, lr=options.lr)
    return SGD(groups, lr=options.lr, momentum=options.momentum, nesterov=options.momentum > 0)


def build_schedule(optimizer: Optimizer, options: TrainOptions, steps: int) -> LRScheduler:
    """The learning rate over `steps` optimiser steps; `lr` is the highest value it takes."""
    if callable(options.schedule):
        return options.schedule(optimizer, steps)
    if options.schedule == "cosine":
        return CosineAnnealingLR(optimizer, steps)
    if options.schedule == "onecycle":
        return OneCycleLR(optimizer, options.lr, total_steps=max(steps, 2), cycle_momentum=False)
    return LambdaLR(optimizer, lambda step: 1.0)
