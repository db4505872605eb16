"""Accuracy of a classifier on a data set, and what passes as a metric's value."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from structprune.arguments import typed
from structprune.errors import InputError
from structprune.importance.batches import told
from structprune.importance.calibration import IGNORED
from structprune.inputs import map_tensors
from structprune.train.batches import forward
from structprune.train.losses import expected_targets, pair_of, range_of

__all__ = ["Metric", "evaluate", "measured", "require_measurable"]

Metric: TypeAlias = Callable[[nn.Module, Dataset[Any]], float]
"""What a model is worth on a data set, higher for better: `evaluate` is one."""


@typed
def evaluate(model: nn.Module, data: Dataset[Any], *, batch_size: int = 256) -> float:
    """The share of the targets in `data` whose class the model ranks first, in [0, 1].

    `data` yields `(input, target)` pairs; a tuple of inputs is the model's positional arguments, a dict its keyword
    arguments. The model returns `[batch, classes, ...]`; targets are as cross-entropy takes them, integer classes
    `[batch, ...]`, of which -100 does not count, or probabilities of the same shape as the output, of which the highest
    says the class. The model runs in eval mode on its own device, and gets its train/eval flags back. Raises
    `InputError` for data without a target that counts, and for outputs and targets of other shapes.

    >>> scores = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.6, 0.4]])
    >>> evaluate(nn.Identity(), torch.utils.data.TensorDataset(scores, torch.tensor([0, 1, 1, -100])))
    0.6666666666666666
    """
    if batch_size < 1:
        raise InputError(f"{batch_size=}: must be at least 1")
    _require_samples(data, "the data set to evaluate on")
    right = counted = 0
    with _eval_mode(model):
        for number, item in enumerate(DataLoader(data, batch_size), start=1):
            found = _hits(model, item, f"batch {number} of the data to evaluate on")
            right, counted = right + int(found[0]), counted + int(found[1])
    if counted == 0:
        raise InputError(f"the data set to evaluate on is empty, or all its targets are {IGNORED}")
    return right / counted


def require_measurable(model: nn.Module, data: Dataset[Any], metric: Metric | None) -> None:
    """Raises `InputError` for data without a sample, and where the accuracy cannot be told (`metric` is None) of what
    the model makes of the first two: found before a training, not after its first epoch.
    """
    _require_samples(data, "validation")
    if metric is None and not isinstance(data, IterableDataset):  # which may be read only once
        few = Subset(data, range(min(2, len(data))))  # type: ignore[arg-type]
        with _eval_mode(model):
            for item in DataLoader(few, 2):
                _hits(model, item, "validation")


def measured(value: Any, what: str) -> float:
    """What a metric of the user's own returned, as a number; raises InputError where it is none."""
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:  # the last is a tensor's of several numbers
        raise InputError(f"{what} must be one number; got {told(value)}") from error


def _require_samples(data: Dataset[Any], what: str) -> None:
    if not isinstance(data, IterableDataset) and not hasattr(data, "__len__"):
        raise InputError(f"{what} must know its length: a {type(data).__name__} without __len__")
    if hasattr(data, "__len__") and len(data) == 0:
        raise InputError(f"{what} is empty")


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, flag in flags:
            module.training = flag


def _hits(model: nn.Module, item: Any, batch: str) -> tuple[Tensor, Tensor]:
    """How many targets of a batch are ranked first, and how many count."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    inputs, targets = pair_of(item, batch)
    scores = forward(model, map_tensors(inputs, lambda tensor: tensor.to(device)))
    if not isinstance(scores, Tensor):
        raise InputError(
            f"accuracy needs a tensor [batch, classes], the model returns {type(scores).__name__}; "
            "measure with a metric= of your own"
        )
    classes = _classes(scores, targets, batch)
    counts = classes != IGNORED
    return ((scores.argmax(1) == classes) & counts).sum(), counts.sum()


def _classes(scores: Tensor, targets: Any, batch: str) -> Tensor:
    """The targets as classes `[batch, ...]`; raises InputError where they are none of the scores' classes."""
    if scores.ndim > 1 and isinstance(targets, Tensor) and not targets.is_complex():
        found: Tensor = targets.to(scores.device)
        if found.is_floating_point() and found.shape == scores.shape:
            return found.argmax(1)
        if not found.is_floating_point() and found.shape == scores.shape[:1] + scores.shape[2:]:
            wrong = ((found < 0) | (found >= scores.shape[1])) & (found != IGNORED)
            if not wrong.any():
                return found
    raise InputError(
        f"{batch}: accuracy cannot be told where the model gives {told(scores)} and the targets are {told(targets)}"
        f"{range_of(targets)}. {expected_targets(scores)}; convert the targets in the data set, or measure with a "
        "metric= of your own"
    )
