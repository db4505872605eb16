"""The data that a criterion is worked out on: losses, and sums over all of them and all processes.

Every statistic is a sum over samples, so it is the same whatever the batches and however many processes share them;
what is kept is the sum alone.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from structprune.errors import InputError
from structprune.importance.batches import Batch, batches_of, told
from structprune.importance.groups import GroupTensors
from structprune.observe import Twin
from structprune.outputs import output_tensors

__all__ = [
    "IGNORED",
    "Calibration",
    "Loss",
    "Sums",
    "checked_loss",
    "cross_entropies",
    "cross_entropy",
    "mean_everywhere",
    "one_number",
    "processes",
    "weight_of",
]

Loss = Callable[[Any, Any], Tensor]
"""`loss(output, target)` -> one number, a tensor without dimensions: the mean over the batch."""

IGNORED = -100  # the class that torch's cross entropy passes over


@dataclass(frozen=True)
class Calibration:
    """A model, the groups that are scored, and the data, which are gone through once."""

    model: nn.Module
    groups: tuple[GroupTensors, ...]
    data: Iterable[Any]
    loss: Loss
    labels: bool  #: whether a target is asked for

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of the parameters that a channel of some group takes along."""
        return tuple(dict.fromkeys(m.name for group in self.groups for m in group.parameters))

    @property
    def consumers(self) -> tuple[str, ...]:
        """The names of the parameters in which some group's channels are contracted away."""
        return tuple(dict.fromkeys(m.name for group in self.groups for m in group.consumers))

    @property
    def readers(self) -> tuple[str, ...]:
        """The names of the parameters that read some group's channels, or make those that no parameter reads."""
        members = (m for group in self.groups for m in group.consumers or group.parameters)
        return tuple(dict.fromkeys(m.name for m in members))

    def __iter__(self) -> Iterator[Batch]:
        empty = True
        for batch in batches_of(self.model, self.data):
            if self.labels and batch.target is None and self.loss is cross_entropy:
                raise InputError(
                    f"batch {batch.number} of data has no target, and this criterion needs the loss: give pairs "
                    "(inputs, target), or loss=, a function of (output, None)"
                )
            empty = False
            yield batch
        if empty and processes() == 1:
            raise InputError("data gives no sample: it is empty, or an iterator that was read to its end")

    def loss_of(self, twin: Twin, batch: Batch) -> Tensor:
        """The loss of a batch, ready for differentiation; raises InputError where it is not one finite number."""
        with torch.inference_mode(False), torch.enable_grad():
            return self.value_of(batch.through(twin), twin.admitted(batch.target), batch)

    def weight_of(self, batch: Batch) -> int:
        """How much the loss of a batch, or of a sample of it, counts among others."""
        return weight_of(self.loss, batch)

    def value_of(self, output: Any, target: Any, batch: Batch) -> Tensor:
        """The loss of what a network made of a batch, or of a sample of it, ready for differentiation; raises as
        `loss_of`.
        """
        value = checked_loss(self.loss, output, target, batch)
        if not math.isfinite(value.item()):
            raise InputError(
                f"the loss on batch {batch.number} of data is {value.item()}{' (one sample)' * (batch.size == 1)}: "
                "check the data, the model's weights, and whether loss= has a value for a single sample and where no "
                f"target counts (all {IGNORED}, say)"
            )
        if not value.requires_grad:
            raise InputError("the loss does not depend on the model's parameters: check loss=")
        return value


class Sums:
    """Sums of tensors of the parameters' shapes, in float32 at least, and what their weights add up to.

    With `real` they are real numbers where parameters are complex.
    """

    def __init__(self, parameters: Mapping[str, Tensor], real: bool = False) -> None:
        self.count = 0
        self.totals = {}
        for name, parameter in parameters.items():
            dtype = torch.promote_types(parameter.dtype, torch.float32)
            self.totals[name] = torch.zeros_like(parameter, dtype=dtype.to_real() if real else dtype)

    def add(self, values: Mapping[str, Tensor | None], weight: int, count: bool = True) -> None:
        """Add means over what weighs so much (samples, or targets), counted unless it was before; None adds nothing."""
        self.count += weight if count else 0
        for name, value in values.items():
            if value is not None:
                self.totals[name].add_(value.detach(), alpha=weight)

    def means(self) -> dict[str, Tensor]:
        """The means over all samples of all processes; raises InputError where nothing counts."""
        count = _counted(self.count, next(iter(self.totals.values()), torch.zeros(1)).device)
        for total in self.totals.values():
            summed(total).div_(count)
        return self.totals


def processes() -> int:
    """How many processes share the data: those of torch.distributed's group, which accelerate makes as well.

    Raises InputError where several were started and have not met yet.
    """
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(
            f"{os.environ['WORLD_SIZE']} processes were started, and have no process group: make an "
            "accelerate.Accelerator() or call torch.distributed.init_process_group() before scoring from data"
        )
    return 1


def summed(tensor: Tensor) -> Tensor:
    """The tensor, in place the sum of those of all processes."""
    if processes() > 1:
        dist.all_reduce(tensor)
    return tensor


def everywhere(count: int, device: torch.device) -> int:
    """The sum of a number over all processes."""
    return int(summed(torch.tensor(count, device=device))) if processes() > 1 else count


def mean_everywhere(sums: Mapping[str, NDArray[np.float64]], count: int) -> dict[str, NDArray[np.float64]]:
    """Sums over this process's samples, of weight `count`, as means over those of all processes.

    Raises InputError where nothing counts.
    """
    device = torch.device("cpu")
    if processes() > 1 and dist.get_backend() == "nccl":
        device = torch.device("cuda", torch.cuda.current_device())
    everything = _counted(count, device)
    return {
        name: summed(torch.from_numpy(total).to(device)).cpu().numpy() / everything
        for name, total in sums.items()
    }


def _counted(count: int, device: torch.device) -> int:
    if everything := everywhere(count, device):
        return everything
    raise InputError(
        f"data gives nothing that counts: all targets are {IGNORED}, which the cross entropy passes over, or no "
        "process has a sample"
    )


def checked_loss(loss: Loss, output: Any, target: Any, batch: Batch) -> Tensor:
    """What a loss says of what a network made of a batch, or of a sample of it: one number, finite or not.

    Raises InputError, which names the batch, where the loss fails or returns anything else.
    """
    where = f"batch {batch.number} of data"
    try:
        value = loss(output, target)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    except Exception as error:  # the public boundary around the user's loss: any error it can raise
        raise InputError(
            f"the loss failed on {where}, given {told(output)} and {told(target)}: {type(error).__name__}: "
            f"{error}. loss= is a function of (output, target) that returns the mean over the batch"
        ) from error
    return one_number(value, f"{where}: what loss= returns")


def one_number(value: Any, what: str) -> Tensor:
    """The value of a loss; raises InputError where it is not one number as a tensor without dimensions."""
    if not isinstance(value, Tensor) or value.ndim:
        raise InputError(
            f"{what} must be one number, the mean over the batch, as a tensor without dimensions; got {told(value)}"
        )
    return value


def cross_entropy(output: Any, target: Any) -> Tensor:
    """The mean cross entropy of logits `[n, classes, ...]` (or `[..., classes]`) and integer classes `[n, ...]`.

    Raises InputError for any other output or target, for which there has to be a loss of its own.
    """
    return F.cross_entropy(*_logits_and_classes(output, target))


def cross_entropies(output: Any, target: Any, size: int) -> Tensor:
    """For each of a batch's samples, which lie along dim 0, the sum of its targets' cross entropies: `[size]`.

    Over the number of targets that count in it, what `cross_entropy` gives for it alone; 0 where nothing counts. Raises
    InputError as that does.
    """
    logits, classes = _logits_and_classes(output, target)
    return F.cross_entropy(logits, classes, reduction="none").reshape(size, -1).sum(1)


def weight_of(loss: object, batch: Batch) -> int:
    """What a loss of a batch is a mean over: its samples, or for `cross_entropy` the targets that count."""
    if loss is not cross_entropy or not isinstance(batch.target, Tensor):
        return batch.size
    return int((batch.target != IGNORED).sum())


def _logits_and_classes(output: Any, target: Any) -> tuple[Tensor, Tensor]:
    """The logits as `[n, classes, ...]`, or as rows `[rows, classes]`, and the classes `[n, ...]` or `[rows]`."""
    logits = [tensor for tensor in output_tensors(output) if tensor.is_floating_point()]
    fits = len(logits) == 1 and logits[0].ndim > 1 and isinstance(target, Tensor)
    fits = fits and not target.is_floating_point()
    if fits and target.shape == logits[0].shape[:1] + logits[0].shape[2:]:
        return logits[0], _classes(target, logits[0].shape[1])
    if fits and target.shape == logits[0].shape[:-1]:
        return logits[0].flatten(0, -2), _classes(target, logits[0].shape[-1]).flatten()
    raise InputError(
        f"without loss= the model must return one tensor of logits and the target be integer classes; got "
        f"{told(output)} and {told(target)}: give loss=, a function of (output, target)"
    )


def _classes(target: Tensor, count: int) -> Tensor:
    """The target as torch's cross entropy takes it, checked: on a GPU a class out of range would end the process."""
    classes = target.long()
    wrong = classes[((classes < 0) | (classes >= count)) & (classes != IGNORED)]
    if wrong.numel():
        raise InputError(
            f"the model gives logits of {count} classes, and a target is {wrong[0].item()}: targets are classes from 0 "
            f"to {count - 1}, or {IGNORED} for what does not count"
        )
    return classes
