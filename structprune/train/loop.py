"""The training loop, run by accelerate: devices, precision and several processes are configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from structprune.errors import InputError
from structprune.train.evaluation import evaluate
from structprune.train.optimizers import build_optimizer, build_schedule
from structprune.train.options import Recipe

if TYPE_CHECKING:
    from accelerate import Accelerator  # type: ignore[import-untyped]

__all__ = ["finetune"]

Metrics = dict[str, float]
Examples = Dataset[tuple[Tensor, Tensor]]


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
) -> list[Metrics]:
    """One dict of metrics per epoch: `epoch`, `loss`, `lr`, and `accuracy` where `validation` is
    given.

    Trains `model` in place on `(input, class index)` pairs with cross-entropy; masks set by `sparsify` hold
    throughout. The train/eval flags, the device and torch's random state are left as they were found. The
    same seed on the same machine gives the same weights. `progress(step, steps)` is called after every step.
    `accelerator` takes an `accelerate.Accelerator` of your own (mixed precision, gradient clipping plugins);
    the default one reads accelerate's configuration, so `accelerate launch` trains in several processes.

    Raises `InputError` for a bad option, an empty data set, a loss that is not finite, or if accelerate is
    missing.
    """
    recipe = Recipe(
        epochs, lr, batch_size, optimizer, momentum, weight_decay, schedule, label_smoothing, seed
    )
    if not hasattr(train_data, "__len__") or len(train_data) == 0:
        raise InputError(
            f"train_data must hold at least one (input, class) pair and know its length: {train_data!r}"
        )
    with _as_found(model), torch.random.fork_rng():
        torch.manual_seed(seed)
        loop = _Loop(model, train_data, recipe, accelerator or _accelerator())
        try:
            return [
                loop.epoch(number, validation=validation, progress=progress)
                for number in range(1, epochs + 1)
            ]
        finally:
            loop.unwrap()


class _Loop:
    """The live state of one training run: what accelerate prepared, and the number of steps done."""

    def __init__(
        self, model: nn.Module, data: Dataset[Any], recipe: Recipe, accelerator: Accelerator
    ) -> None:
        self.recipe, self.accelerator, self.done = recipe, accelerator, 0
        shuffle = torch.Generator().manual_seed(recipe.seed)
        loader: DataLoader[Any] = DataLoader(data, recipe.batch_size, shuffle=True, generator=shuffle)
        optimizer = build_optimizer(model, recipe)
        self.plain = model
        self.model, self.optimizer, self.loader = accelerator.prepare(model, optimizer, loader)
        self.steps = len(self.loader) * recipe.epochs
        self.schedule = build_schedule(optimizer, recipe, self.steps)
        self.loss = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)

    def epoch(
        self, number: int, *, validation: Dataset[Any] | None, progress: Callable[[int, int], None] | None
    ) -> Metrics:
        self.model.train()
        total, lr = torch.zeros((), device=self.accelerator.device), float(self.schedule.get_last_lr()[0])
        for inputs, labels in self.loader:
            total += self.step(inputs, labels)
            self.done += 1
            if progress is not None:
                progress(self.done, self.steps)
        self.share_buffers()
        loss = float(self.accelerator.reduce(total, reduction="mean")) / len(self.loader)
        if loss != loss or loss == float("inf"):
            raise InputError(
                f"the loss is {loss} in epoch {number}; lower lr={self.recipe.lr}, or check the data"
            )
        metrics: Metrics = {"epoch": float(number), "loss": loss, "lr": lr}
        if validation is not None:
            metrics["accuracy"] = evaluate(self.plain, validation)
        return metrics

    def unwrap(self) -> None:
        """Takes the mixed-precision wrapper off the model's `forward`, which accelerate replaces in place."""
        self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)

    def share_buffers(self) -> None:
        """Gives every process the first one's buffers: each keeps batch norm statistics of its own batches."""
        if self.accelerator.num_processes > 1:
            for buffer in self.plain.buffers():
                torch.distributed.broadcast(buffer, 0)

    def step(self, inputs: Tensor, labels: Tensor) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(self.model(inputs), labels)
        self.accelerator.backward(loss)
        self.optimizer.step()
        self.schedule.step()
        return loss.detach()  # type: ignore[no-any-return]


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
