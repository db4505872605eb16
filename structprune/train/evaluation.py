"""Accuracy of a classifier on a data set."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from structprune.errors import InputError

__all__ = ["evaluate"]


def evaluate(model: nn.Module, data: Dataset[Any], *, batch_size: int = 256) -> float:
    """The share of `data` whose class the model ranks first, in [0, 1].

    `data` yields `(input, class index)` pairs. The model runs in eval mode on its own device, and gets its
    train/eval flags back. Raises `InputError` for an empty data set.
    """
    flags = [(module, module.training) for module in model.modules()]
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    right = seen = 0
    model.eval()
    try:
        with torch.no_grad():
            for inputs, labels in DataLoader(data, batch_size):
                classes = model(inputs.to(device)).argmax(1)
                right += int((classes == labels.to(device)).sum())
                seen += len(labels)
    finally:
        for module, flag in flags:
            module.training = flag
    if seen == 0:
        raise InputError("the data set to evaluate on is empty")
    return right / seen
