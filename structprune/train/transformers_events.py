"""What a callback of transformers' `Trainer` does with hooks; `transformers_callback` makes it one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from structprune.errors import InputError
from structprune.train.hooks import Hook, Metrics
from structprune.train.session import Session

__all__ = ["TransformersEvents"]


class TransformersEvents:
    """Drives a `Session` by the trainer's events; the optimiser's own hooks tell the steps."""

    def __init__(self, hooks: Sequence[Hook]) -> None:
        self.hooks = tuple(hooks)
        self._changing = [hook for hook in self.hooks if type(hook).on_loss is not Hook.on_loss]
        self._session: Session | None = None
        self._logged: Metrics = {}  # what the trainer has logged since the last epoch that is done
        self._steps_logged = 0
        self._pending: str | None = None  # the event with which the epoch under way is done

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        from accelerate.optimizer import AcceleratedOptimizer  # type: ignore[import-untyped]

        model, optimizer = kwargs["model"], kwargs["optimizer"]
        if isinstance(optimizer, AcceleratedOptimizer):
            optimizer = optimizer.optimizer
        self._close()
        self._session = Session(model, optimizer, hooks=self.hooks, steps=state.max_steps)
        self._logged, self._steps_logged, self._pending = {}, state.global_step, None
        if self._changing:
            if args.gradient_accumulation_steps > 1:
                raise InputError(
                    f"{type(self._changing[0]).__name__} changes the loss, which the trainer scales over "
                    f"gradient_accumulation_steps={args.gradient_accumulation_steps} in a way of its own: set it to 1"
                )
            self._session.run.at_exit(model.register_forward_hook(self._loss, with_kwargs=True).remove)
        self._session.__enter__()

    def _loss(self, model: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if not (model.training and torch.is_grad_enabled()):
            return
        assert self._session is not None
        if not isinstance(output, Mapping) or output.get("loss") is None:
            raise InputError(
                f"{type(self._changing[0]).__name__} changes the loss that a model returns; {type(model).__name__} "
                "returns none: give it labels, or change the loss in the trainer's compute_loss_func"
            )
        inputs = kwargs if not args else tuple(args) if not kwargs else None
        if inputs is None:
            raise InputError("the model is called with positional and keyword arguments; give it one kind")
        output["loss"] = self._session.loss(output["loss"], inputs, output, kwargs.get("labels"))  # type: ignore[index]

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._session is not None:
            self._epoch_done(self._pending, control)
            self._session.run.epoch += 1

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self._logged.update(_numbers(logs))
        if logs and "loss" in logs:
            self._steps_logged = state.global_step
            self._epoch_done("log", control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if "loss" not in self._logged and args.logging_strategy != "no":
            control.should_log = True  # so that every epoch has a loss
        logs = control.should_log and state.global_step > self._steps_logged  # the trainer's own condition
        self._pending = "evaluation" if control.should_evaluate else "log" if logs else "end"
        self._epoch_done("end", control)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        self._logged.update(_numbers(metrics))
        self._epoch_done("evaluation", control)

    def _epoch_done(self, event: str | None, control: Any) -> None:
        """Tells the hooks of the epoch, if this is the event with which it is done."""
        if self._session is None or self._pending is None or self._pending != event:
            return
        self._pending, run = None, self._session.run
        metrics = {"epoch": float(run.epoch), **self._logged, "lr": run.lr}
        self._logged = {}
        run.history.append(metrics)
        for hook in run.hooks:
            hook.after_epoch(run, metrics)
        control.should_training_stop = control.should_training_stop or run.stopped

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._epoch_done(self._pending, control)
        if self._session is not None:
            session, self._session = self._session, None
            session.__exit__(None, None, None)

    def _close(self) -> None:
        """Ends a training that an error broke off: the trainer has no event for that."""
        if self._session is not None:
            session, self._session = self._session, None
            session.run.close()


def _numbers(logged: Mapping[str, Any] | None) -> Metrics:
    """The numbers that the trainer logs, but for its own count of epochs, which has fractions."""
    found = {name: value for name, value in (logged or {}).items() if name != "epoch"}
    return {name: float(value) for name, value in found.items() if isinstance(value, int | float)}
