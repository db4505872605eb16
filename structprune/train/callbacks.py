"""Hooks in other packages' trainers: transformers' `Trainer` and Lightning's."""

from __future__ import annotations

from typing import Any

from structprune.errors import InputError
from structprune.train.hooks import Hook
from structprune.train.lightning_events import LightningEvents
from structprune.train.transformers_events import TransformersEvents

__all__ = ["lightning_callback", "transformers_callback"]


def transformers_callback(*hooks: Hook) -> Any:
    """A `transformers.TrainerCallback` that runs the hooks: `Trainer(..., callbacks=[transformers_callback(hook)])`.

    `after_backward` comes after the trainer's gradient clipping. An epoch's metrics are `epoch`, `lr`, and the numbers
    that the trainer logged last in it: `loss`, `learning_rate`, `grad_norm`, those of an evaluation at its end
    (`eval_loss`, ...). Where it would log nothing in an epoch, as `logging_steps=500` in short ones, it is made to at
    the end, so that each has a loss (unless `logging_strategy="no"`). `run.stop()` ends the training. `on_loss` works
    on the `loss` that the model returns (so `Distillation(dense, outputs="logits")` does), not with a loss of the
    trainer's own. `before_step` is not called, and `run.state_dict` is the trainer's matter.

    Raises `InputError` where transformers is not installed.
    """
    try:
        import accelerate  # type: ignore[import-untyped]  # noqa: F401 - the trainer needs it
        from transformers import TrainerCallback
    except ImportError as error:
        raise InputError(
            f"hooks in transformers' Trainer need transformers and accelerate: {error}; install them with: "
            "pip install structprune[train] transformers"
        ) from error
    return type("HookCallback", (TransformersEvents, TrainerCallback), {})(hooks)


def lightning_callback(*hooks: Hook) -> Any:
    """A Lightning callback that runs the hooks: `Trainer(callbacks=[lightning_callback(hook)])`.

    For one optimiser. `after_backward` comes before the trainer's gradient clipping. An epoch's metrics are `epoch`,
    `lr` and what the module has logged by the end of it, validation included; `run.stop()` ends the training. `on_loss`
    and `before_step` are not called: the training step is the module's own (`Session.loss` shows what to add there).

    Raises `InputError` where Lightning is not installed.
    """
    try:
        from lightning.pytorch import Callback
    except ImportError as error:
        raise InputError(
            f"hooks in Lightning's Trainer need Lightning: {error}; install it with: pip install lightning"
        ) from error
    return type("HookCallback", (LightningEvents, Callback), {})(hooks)
