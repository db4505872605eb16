"""What is tried before the first step of a training: a batch of one sample, and the data to validate on."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Subset

from structprune.errors import InputError
from structprune.inputs import map_tensors
from structprune.randomness import seeded
from structprune.train.batches import taken
from structprune.train.evaluation import Metric, require_measurable
from structprune.train.hooks import Run
from structprune.train.losses import pair_of
from structprune.train.options import TrainOptions

__all__ = ["has_single", "try_out"]


def try_out(
    run: Run,
    data: Dataset[Any],
    options: TrainOptions,
    processes: int,
    validation: Dataset[Any] | None,
    metric: Metric | None,
) -> None:
    """Raises InputError where one sample will be left over that the model does not take, or where the validation data
    do not fit. Random state, buffers and flags are as they were afterwards.
    """
    with seeded(options.seed):
        if has_single(len(data), options.batch_size, processes):  # type: ignore[arg-type]
            _require_single(run, data)
        if validation is not None:
            require_measurable(run.model, validation, metric)


def has_single(samples: int, batch_size: int, processes: int) -> bool:
    """Whether any process gets a single sample, or none, of any batch.

    >>> has_single(33, 16, 1), has_single(34, 16, 1), has_single(34, 16, 2), has_single(8, 1, 1)
    (True, False, True, True)
    """
    sizes = min(samples, batch_size), samples % batch_size or batch_size
    return min(sizes) // processes <= 1


def _require_single(run: Run, data: Dataset[Any]) -> None:
    """Raises InputError where the model takes two samples in train mode and not one: batch norm has no variance then.

    What a model cannot take in any number, its first batch will tell.
    """
    kept = [(buffer, buffer.detach().clone()) for buffer in run.model.buffers()]
    flags = [(module, module.training) for module in run.model.modules()]
    run.model.train()
    try:
        with torch.no_grad(), run.precision():
            error = _refusal(run, data, 1)
            if error is None or _refusal(run, data, 2) is not None:
                return
    finally:
        for module, flag in flags:
            module.training = flag
        for buffer, value in kept:
            buffer.copy_(value)
    raise InputError(
        f"{error}. A batch of the training, or a process's share of one, holds a single sample: choose a batch_size "
        "that leaves no such rest, or leave samples out (torch.utils.data.Subset)"
    ) from error


def _refusal(run: Run, data: Dataset[Any], samples: int) -> InputError | None:
    """The error of a training forward over the first samples."""
    batch = f"{samples} sample{'s' * (samples > 1)}"
    few = Subset(data, range(min(samples, len(data))))  # type: ignore[arg-type]
    for item in DataLoader(few, samples):
        inputs, _ = pair_of(item, batch)
        try:
            taken(run.model, map_tensors(inputs, lambda tensor: tensor.to(run.device)), batch)
        except InputError as error:
            return error
    return None
