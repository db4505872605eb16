"""What a callback of Lightning's `Trainer` does with hooks; `lightning_callback` makes it one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from structprune.errors import InputError
from structprune.train.hooks import Hook, Run

__all__ = ["LightningEvents"]


class LightningEvents:
    """Runs hooks at the trainer's events, and after each step of the optimiser."""

    def __init__(self, hooks: Sequence[Hook]) -> None:
        self.hooks = tuple(hooks)
        changing = [type(hook).__name__ for hook in self.hooks if type(hook).on_loss is not Hook.on_loss]
        if changing:
            raise InputError(
                f"{changing[0]} changes the loss, which is made in the module's training_step: add it there"
            )
        self._run: Run | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if len(trainer.optimizers) != 1:
            raise InputError(f"hooks are for one optimiser, this module has {len(trainer.optimizers)}")
        optimizer, steps = trainer.optimizers[0], int(trainer.estimated_stepping_batches)
        self._run = run = Run(pl_module, optimizer, max(steps, 0), hooks=self.hooks)
        run.at_exit(optimizer.register_step_post_hook(self._stepped).remove)
        for hook in run.hooks:
            hook.on_start(run)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if self._run is not None:
            self._run.epoch += 1

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        assert self._run is not None
        for hook in self._run.hooks:
            hook.after_backward(self._run)

    def _stepped(self, *_: Any) -> None:
        assert self._run is not None
        self._run.step += 1
        for hook in self._run.hooks:
            hook.after_step(self._run)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        assert self._run is not None
        run = self._run
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        metrics = {**logged, "epoch": float(run.epoch), "lr": run.lr}
        run.history.append(metrics)
        for hook in run.hooks:
            hook.after_epoch(run, metrics)
        trainer.should_stop = trainer.should_stop or run.stopped

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        if self._run is not None:
            for hook in self._run.hooks:
                hook.on_end(self._run)
        self._close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self._run is not None:
            self._run.close()
        self._run = None
