"""The training loop, run by accelerate: devices, precision and several processes are configuration."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from structprune.errors import InputError
from structprune.train.evaluation import evaluate
from structprune.train.hooks import Hook, Metrics, Run
from structprune.train.optimizers import build_optimizer, build_schedule
from structprune.train.options import TrainOptions

if TYPE_CHECKING:
    from accelerate import Accelerator  # type: ignore[import-untyped]

__all__ = ["finetune"]


def finetune(
    model: nn.Module,
    train_data: Dataset[Any],
    *,
    epochs: int,
    lr: float,
    batch_size: int = 64,
    optimizer: str = "sgd",
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    schedule: str = "cosine",
    label_smoothing: float = 0.0,
    seed: int = 0,
    validation: Dataset[Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
    accelerator: Accelerator | None = None,
    hooks: Sequence[Hook] = (),
) -> list[Metrics]:
    """One dict of metrics per epoch: `epoch`, `loss`, `lr`, and `accuracy` where `validation` is
    given.

    Trains `model` in place on `(input, class index)` pairs with cross-entropy; masks set by `sparsify` hold
    throughout. The train/eval flags, the device and torch's random state are left as they were found. The
    same seed on the same machine gives the same weights. `progress(step, steps)` is called after every step.
    `accelerator` takes an `accelerate.Accelerator` of your own (mixed precision, gradient clipping plugins);
    the default one reads accelerate's configuration, so `accelerate launch` trains in several processes.
    `hooks` run at the fixed points of `structprune.train.Hook`, in this order.

    Raises `InputError` for a bad option, an empty data set, a loss that is not finite, or if accelerate is
    missing.
    """
    options = TrainOptions(
        epochs, lr, batch_size, optimizer, momentum, weight_decay, schedule, label_smoothing, seed
    )
    if not hasattr(train_data, "__len__") or len(train_data) == 0:
        raise InputError(
            f"train_data must hold at least one (input, class) pair and know its length: {train_data!r}"
        )
    with _as_found(model), torch.random.fork_rng():
        torch.manual_seed(seed)
        loop = _Loop(model, train_data, options, accelerator or _accelerator(), hooks)
        try:
            return loop.train(validation, progress)
        finally:
            loop.unwrap()


class _Loop:
    """The live state of one training run: what accelerate prepared, and what the hooks see."""

    def __init__(
        self,
        model: nn.Module,
        data: Dataset[Any],
        options: TrainOptions,
        accelerator: Accelerator,
        hooks: Sequence[Hook],
    ) -> None:
        self.options, self.accelerator = options, accelerator
        order = torch.Generator().manual_seed(options.seed)
        loader: DataLoader[Any] = DataLoader(data, options.batch_size, shuffle=True, generator=order)
        optimizer = build_optimizer(model, options)
        self.model, self.optimizer, self.loader = accelerator.prepare(model, optimizer, loader)
        steps = len(self.loader) * options.epochs
        self.schedule = build_schedule(optimizer, options, steps)
        self.loss = nn.CrossEntropyLoss(label_smoothing=options.label_smoothing)
        self.run = Run(model, optimizer, steps, accelerator, self.schedule, order, tuple(hooks))

    def train(
        self, validation: Dataset[Any] | None, progress: Callable[[int, int], None] | None
    ) -> list[Metrics]:
        """The metrics of every epoch, after the last of them."""
        run = self.run
        for hook in run.hooks:
            hook.on_start(run)
        while run.epoch < self.options.epochs and not run.stopped:
            run.epoch += 1
            metrics = self.epoch(progress)
            if validation is not None:
                metrics["accuracy"] = evaluate(run.model, validation)
            run.history.append(metrics)
            for hook in run.hooks:
                hook.after_epoch(run, metrics)
        for hook in run.hooks:
            hook.on_end(run)
        return run.history

    def epoch(self, progress: Callable[[int, int], None] | None) -> Metrics:
        self.model.train()
        run, lr = self.run, self.run.lr
        total = torch.zeros((), device=self.accelerator.device)
        for inputs, labels in self.loader:
            total += self.step(inputs, labels)
            if progress is not None:
                progress(run.step, run.steps)
        self.share_buffers()
        loss = float(self.accelerator.reduce(total, reduction="mean")) / len(self.loader)
        if not math.isfinite(loss):
            raise InputError(
                f"the loss is {loss} in epoch {run.epoch}; lower lr={self.options.lr}, or check the data"
            )
        return {"epoch": float(run.epoch), "loss": loss, "lr": lr}

    def step(self, inputs: Tensor, labels: Tensor) -> Tensor:
        run = self.run
        for hook in run.hooks:
            hook.before_step(run, inputs, labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(self.model(inputs), labels)
        self.accelerator.backward(loss)
        for hook in run.hooks:
            hook.after_backward(run)
        self.optimizer.step()
        run.step += 1
        for hook in run.hooks:
            hook.after_step(run)
        self.schedule.step()
        return loss.detach()  # type: ignore[no-any-return]

    def unwrap(self) -> None:
        """Takes the mixed-precision wrapper off the model's `forward`, which accelerate replaces in place."""
        self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)

    def share_buffers(self) -> None:
        """Gives every process the first one's buffers: each keeps batch norm statistics of its own batches."""
        if self.accelerator.num_processes > 1:
            for buffer in self.run.model.buffers():
                torch.distributed.broadcast(buffer, 0)


def _accelerator() -> Accelerator:
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise InputError(
            "fine-tuning needs accelerate; install it with: pip install structprune[train]"
        ) from error
    return Accelerator()


@contextmanager
def _as_found(model: nn.Module) -> Iterator[None]:
    """Gives back the model's own `forward`, its train/eval flags, and its device if all parameters shared one."""
    forward = vars(model).get("forward")
    flags = [(module, module.training) for module in model.modules()]
    devices = {parameter.device for parameter in model.parameters()}
    try:
        yield
    finally:
        vars(model).pop("forward", None)
        if forward is not None:
            model.forward = forward
        for module, flag in flags:
            module.training = flag
        if len(devices) == 1:
            model.to(devices.pop())
