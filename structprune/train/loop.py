"""The training loop, run by accelerate: devices, precision and several processes are configuration."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from structprune.arguments import typed
from structprune.errors import InputError
from structprune.importance import Loss
from structprune.randomness import seeded
from structprune.train.batches import taken
from structprune.train.distillation import Distillation
from structprune.train.evaluation import Metric, evaluate, measured
from structprune.train.hooks import Hook, Metrics, Run, listed
from structprune.train.losses import BatchLoss, not_finite, pair_of, require_descent
from structprune.train.optimizers import build_schedule
from structprune.train.options import MakeOptimizer, MakeSchedule, TrainOptions
from structprune.train.prepared import Whole
from structprune.train.shards import Sharded, shards
from structprune.train.surroundings import (
    as_found,
    checked_accelerator,
    default_accelerator,
    gradients,
    loader_of,
    refuse_engines,
    require_all_processes,
    undone_before_a_step,
)
from structprune.train.tryout import try_out

if TYPE_CHECKING:
    from accelerate import Accelerator  # type: ignore[import-untyped]
else:
    Accelerator = Any  # imported where it is used: accelerate is optional

__all__ = ["finetune"]


@typed
def finetune(
    model: nn.Module,
    train_data: Dataset[Any],
    *,
    epochs: int,
    lr: float,
    batch_size: int = 64,
    optimizer: str | MakeOptimizer = "sgd",
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    schedule: str | MakeSchedule = "cosine",
    label_smoothing: float = 0.0,
    seed: int = 0,
    loss: Loss | None = None,
    validation: Dataset[Any] | None = None,
    metric: Metric | None = None,
    distillation: Distillation | nn.Module | None = None,
    hooks: Hook | Sequence[Hook] = (),
    progress: Callable[[int, int], None] | None = None,
    accelerator: Accelerator | None = None,
) -> list[Metrics]:
    """One dict of metrics per epoch: `epoch`, `loss`, `lr`, and `accuracy` where `validation` is given (`metric`
    where a `metric` measures it).

    Trains `model` in place on `(input, target)` pairs: a tuple of inputs is the model's positional arguments, a dict
    its keyword arguments. `loss(output, target)` is minimised, cross-entropy with `label_smoothing` if left out;
    `distillation` is a `Distillation`, or the dense network for one with its defaults. Masks set by `sparsify` hold
    throughout. `hooks` run at the fixed points of `Hook`, in this order, and `progress(step, steps)` after every step.
    The train/eval flags, the device and the random state (torch's, numpy's, Python's) are left as they were found. The
    same seed on the same machine gives the same weights.

    `accelerator` takes an `accelerate.Accelerator` of your own: mixed precision, gradient accumulation. The default one
    reads accelerate's configuration. In several processes (`torchrun`) each takes its share of every batch, so
    `batch_size` is that of all together, and the weights are those of one process up to rounding (batch norm
    and dropout aside: each process has its own statistics and draws).

    Where accelerate is configured for FSDP (`fsdp_version=2`), a copy of the model is cut into shards and trained, and
    the model gets its weights at the end, in every process; after an error it is as it was. Meanwhile it keeps the old
    weights where it was found, so leave it on the CPU. Hooks see the copy; penalties need whole parameters and are
    refused. accelerate shards nothing on the CPU.

    Raises `InputError` for a bad option, an empty data set, a batch that is no pair or that model or loss do not take
    (before the first step with the model as it was), a loss that is not finite or has no gradient, a model that cannot
    be cut into shards, DeepSpeed, or if accelerate is missing; before the first step, for `validation` whose accuracy
    cannot be told, and where a batch of one sample is left over that the model (batch norm) does not take.

    >>> data = torch.utils.data.TensorDataset(torch.eye(4), torch.arange(4))
    >>> log = finetune(nn.Linear(4, 4), data, epochs=20, lr=1.0, validation=data)
    >>> log[-1]["accuracy"], log[-1]["loss"] < log[0]["loss"]
    (1.0, True)
    """
    options = TrainOptions(
        epochs, lr, batch_size, optimizer, momentum, weight_decay, schedule, label_smoothing, seed
    )
    if not hasattr(train_data, "__len__") or len(train_data) == 0:
        raise InputError(
            f"train_data must hold at least one (input, target) pair and know its length: {train_data!r}"
        )
    if loss is not None and label_smoothing:
        raise InputError(f"{label_smoothing=} belongs to the default loss; smooth the labels in your own")
    if metric is not None and validation is None:
        raise InputError("metric= needs validation=, the data to measure on")
    if isinstance(distillation, nn.Module):
        distillation = Distillation(distillation)
    hooks = listed(hooks) if distillation is None else (distillation, *listed(hooks))
    accelerator = default_accelerator() if accelerator is None else checked_accelerator(accelerator)
    refuse_engines(accelerator)
    require_all_processes(accelerator)
    with gradients(), as_found(model), seeded(seed + accelerator.process_index), ExitStack() as last:
        loop = _Loop(model, train_data, options, accelerator, hooks, loss, last)
        try:
            with undone_before_a_step(loop.run):
                return loop.train(validation, metric, progress)
        finally:
            loop.close()


class _Loop:
    """The live state of one training run: what accelerate prepared, and what the hooks see."""

    def __init__(
        self,
        model: nn.Module,
        data: Dataset[Any],
        options: TrainOptions,
        accelerator: Accelerator,
        hooks: Sequence[Hook],
        loss: Loss | None,
        last: ExitStack,
    ) -> None:
        self.options, self.accelerator = options, accelerator
        order = torch.Generator().manual_seed(options.seed)
        self.data = data
        self.loader, self.weights = loader_of(data, options.batch_size, order, accelerator)
        self.prepared = (Sharded if shards(accelerator) else Whole)(model, options, accelerator, last)
        self.model, self.optimizer = self.prepared.model, self.prepared.optimizer
        optimizer = self.prepared.inner
        steps = math.ceil(len(self.weights) / accelerator.gradient_accumulation_steps) * options.epochs
        self.schedule = build_schedule(optimizer, options, steps)
        self.loss, self.batch = BatchLoss(loss, options.label_smoothing), ""
        self.first = True  # whether the batch under way is the epoch's first
        self.run = Run(
            self.prepared.seen,
            optimizer,
            steps,
            accelerator,
            self.schedule,
            order,
            tuple(hooks),
            original=model,
        )

    def train(
        self,
        validation: Dataset[Any] | None,
        metric: Metric | None,
        progress: Callable[[int, int], None] | None,
    ) -> list[Metrics]:
        """The metrics of every epoch, after the last of them."""
        run, measure = self.run, "accuracy" if metric is None else "metric"
        run.measures = ("epoch", "loss", "lr", *([] if validation is None else [measure]))
        try_out(run, self.data, self.options, self.accelerator.num_processes, validation, metric)
        self.prepared.settle()
        for hook in run.hooks:
            hook.on_start(run)
        self.optimizer.zero_grad(set_to_none=True)
        while run.epoch < self.options.epochs and not self.stopped():
            run.epoch += 1
            metrics = self.epoch(progress)
            if validation is not None:
                worth = (metric or evaluate)(run.model, validation)
                metrics[measure] = measured(worth, "what metric= returns")
                self.prepared.settle()
            run.history.append(metrics)
            for hook in run.hooks:
                hook.after_epoch(run, metrics)
        for hook in run.hooks:
            hook.on_end(run)
        self.prepared.finish()
        return run.history

    def epoch(self, progress: Callable[[int, int], None] | None) -> Metrics:
        self.model.train()
        run, lr = self.run, self.run.lr
        losses = list[Tensor]()
        for number, (weight, item) in enumerate(zip(self.weights, self.loader, strict=True), start=1):
            self.batch, self.first = f"batch {number} of epoch {run.epoch}", number == 1
            inputs, targets = pair_of(item, self.batch)
            with self.accelerator.accumulate(self.model):
                losses.append(self.step(inputs, targets, weight))
            if progress is not None and self.accelerator.sync_gradients:
                progress(run.step, run.steps)
        self.share_buffers()
        all_losses = torch.stack(losses)
        loss = float(self.accelerator.reduce(all_losses.mean(), reduction="mean"))
        if not math.isfinite(loss):
            wrong = (~all_losses.isfinite()).nonzero().flatten().tolist()
            where = f"batch {wrong[0] + 1} of epoch {run.epoch}" if wrong else f"epoch {run.epoch}"
            raise not_finite(loss, where, self.options.lr)
        return {"epoch": float(run.epoch), "loss": loss, "lr": lr}

    def step(self, inputs: Any, targets: Any, weight: float) -> Tensor:
        """The loss of one batch, `weight` times; the optimiser moves once the gradients are complete."""
        run, self.run.weight = self.run, weight
        for hook in run.hooks:
            hook.before_step(run, inputs, targets)
        output = taken(self.model, inputs, self.batch)
        loss = self.loss(output, targets, self.batch, first=run.epoch == 1)
        for hook in run.hooks:
            loss = hook.on_loss(run, loss, inputs, output, targets)
        require_descent(loss, self.batch, self.options.lr, first=self.first)
        loss = loss if weight == 1 else loss * weight
        self.accelerator.backward(loss)
        if self.accelerator.sync_gradients:
            self.accelerator.unscale_gradients(self.optimizer)
            for hook in run.hooks:
                hook.after_backward(run)
            self.optimizer.step()
            run.step += 1
            for hook in run.hooks:
                hook.after_step(run)
            self.schedule.step()
            self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def stopped(self) -> bool:
        """Whether a hook has stopped the run, in whichever process."""
        said = torch.tensor(float(self.run.stopped), device=self.accelerator.device)
        return bool(self.accelerator.reduce(said, reduction="sum"))

    def close(self) -> None:
        """Ends the run."""
        self.run.close()
        self.optimizer.zero_grad(set_to_none=True)

    def share_buffers(self) -> None:
        """Gives every process the first one's buffers: each keeps batch norm statistics of its own batches."""
        if self.accelerator.num_processes > 1:
            for buffer in self.run.model.buffers():
                torch.distributed.broadcast(buffer, 0)
