"""The optimiser and the learning-rate schedule that `TrainOptions` describe."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

from structprune.errors import InputError
from structprune.importance.batches import told
from structprune.train.options import TrainOptions

__all__ = ["build_optimizer", "build_schedule", "require_optimizer_of"]


def build_optimizer(model: nn.Module, options: TrainOptions) -> Optimizer:
    """The optimiser of the name or class over the trainable parameters, or what the user's function makes; of the
    former, biases and norms (1-D) are not decayed. Raises InputError where that is no optimiser of the model's.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    if not trainable:
        raise InputError(
            "no parameter of the model requires a gradient; set requires_grad on what is to be trained"
        )
    if any(tensor.is_inference() for tensor in (*trainable, *model.buffers())):
        raise InputError(
            "the model was made under torch.inference_mode(), so autograd refuses its tensors: make it outside"
        )
    if callable(options.optimizer) and not isinstance(options.optimizer, type):
        made = options.optimizer(model)
        require_optimizer_of(model, made, "what optimizer= returns")
        return made
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": options.weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if isinstance(options.optimizer, type):
        return _of_class(options.optimizer, groups, options.lr)
    if options.optimizer == "adamw":
        return AdamW(groups, lr=options.lr)
    return SGD(groups, lr=options.lr, momentum=options.momentum, nesterov=options.momentum > 0)


def build_schedule(optimizer: Optimizer, options: TrainOptions, steps: int) -> LRScheduler:
    """The learning rate over `steps` optimiser steps; `lr` is the highest value it takes."""
    if callable(options.schedule):
        made = options.schedule(optimizer, steps)
        if not callable(getattr(made, "step", None)) or isinstance(made, ReduceLROnPlateau):
            raise InputError(
                f"schedule= returns {told(made)}; expected a scheduler of torch.optim.lr_scheduler whose step(), after "
                "every step of the optimizer, takes no metric"
            )
        return made
    if options.schedule == "cosine":
        return CosineAnnealingLR(optimizer, steps)
    if options.schedule == "onecycle":
        return OneCycleLR(optimizer, options.lr, total_steps=max(steps, 2), cycle_momentum=False)
    return LambdaLR(optimizer, lambda step: 1.0)


def require_optimizer_of(model: nn.Module, optimizer: object, what: str) -> None:
    """Raises InputError for what is no optimiser, or one of another model's parameters."""
    if not isinstance(optimizer, Optimizer):
        raise InputError(f"{what} is {told(optimizer)}; expected a torch.optim.Optimizer")
    own = {id(parameter) for parameter in model.parameters()}
    if not any(id(parameter) in own for group in optimizer.param_groups for parameter in group["params"]):
        raise InputError(f"{what} holds no parameter of the model: make it of the parameters of this one")


def _of_class(kind: type[Optimizer], groups: list[dict[str, Any]], lr: float) -> Optimizer:
    """An optimiser of one of torch.optim's classes, with its defaults but for the learning rate and weight decay."""
    make: Callable[..., Optimizer] = kind
    try:
        return make(groups, lr=lr)
    except (
        TypeError,
        ValueError,
    ) as error:  # an optimiser with arguments of its own, or that takes no groups
        raise InputError(
            f"optimizer={kind.__name__} cannot be made of groups of parameters and lr= ({error}): give a function, as "
            f"lambda model: {kind.__name__}(model.parameters(), ...)"
        ) from error
