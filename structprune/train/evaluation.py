"""Accuracy of a classifier on a data set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from structprune.arguments import typed
from structprune.errors import InputError
from structprune.inputs import map_tensors
from structprune.train.batches import forward

__all__ = ["Metric", "evaluate"]

Metric: TypeAlias = Callable[[nn.Module, Dataset[Any]], float]
"""What a model is worth on a data set, higher for better: `evaluate` is one."""


@typed
def evaluate(model: nn.Module, data: Dataset[Any], *, batch_size: int = 256) -> float:
    """The share of `data` whose class the model ranks first, in [0, 1].

    `data` yields `(input, class index)` pairs; a tuple of inputs is the model's positional arguments, a dict its
    keyword arguments. The model runs in eval mode on its own device, and gets its train/eval flags back. Raises
    `InputError` for an empty data set, and where the model returns no tensor of classes.
    """
    flags = [(module, module.training) for module in model.modules()]
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    right = seen = 0
    model.eval()
    try:
        with torch.no_grad():
            for inputs, labels in DataLoader(data, batch_size):
                scores = forward(model, map_tensors(inputs, lambda tensor: tensor.to(device)))
                if not isinstance(scores, Tensor):
                    raise InputError(
                        f"accuracy needs a tensor [batch, classes], the model returns {type(scores).__name__}; "
                        "measure with a metric= of your own"
                    )
                right += int((scores.argmax(1) == labels.to(scores.device)).sum())
                seen += len(labels)
    finally:
        for module, flag in flags:
            module.training = flag
    if seen == 0:
        raise InputError("the data set to evaluate on is empty")
    return right / seen
