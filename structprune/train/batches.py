"""Batches: how a data set's inputs reach a forward, and which rows of each batch a process trains on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import BatchSampler, Sampler

from structprune.errors import InputError, StructpruneError
from structprune.importance.batches import told
from structprune.inputs import tensors_in

__all__ = ["Shares", "forward", "taken"]


def forward(model: Callable[..., Any], inputs: Any) -> Any:
    """What the model makes of a batch: a mapping is its keyword arguments, a tuple or list its positional ones.

    >>> forward(lambda a, b: a + b, (1, 2)), forward(lambda a, b: a + b, {"a": 1, "b": 2}), forward(abs, -3)
    (3, 3, 3)
    """
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, tuple | list):
        return model(*inputs)
    return model(inputs)


def taken(model: Callable[..., Any], inputs: Any, batch: str) -> Any:
    """What the model makes of a batch; raises InputError, which names the batch, where its forward fails."""
    try:
        return forward(model, inputs)
    except (StructpruneError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # the public boundary around the user's forward: any error it can raise
        given = ", ".join(map(told, tensors_in((inputs,))))
        raise InputError(
            f"the model's forward failed on {batch} ({given}), in train mode: {type(error).__name__}: "
            f"{str(error).rstrip('.')}"
        ) from error


class Shares(Sampler[list[int]]):
    """The rows of each batch that are process `rank`'s, of `processes`; every process gets some of every batch.

    So the batches are those of one process, whatever their number, and `weights` makes the mean over the processes
    of their weighted mean losses the mean over the batch: a process that gets no row of a short last batch
    takes its first one, with the weight 0.

    >>> batches = Shares(BatchSampler(range(5), 3, False), 5, rank=1, processes=2)
    >>> list(batches), batches.weights()
    ([[1], [4]], [0.6666666666666666, 1.0])
    """

    def __init__(self, batches: BatchSampler, examples: int, rank: int, processes: int) -> None:
        self.batches, self.examples, self.rank, self.processes = batches, examples, rank, processes

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.batches:
            yield list(batch)[self.rank :: self.processes] or list(batch)[:1]

    def __len__(self) -> int:
        return len(self.batches)

    def weights(self) -> list[float]:
        """What each batch's mean loss counts in this process."""
        starts: Sequence[int] = range(0, self.examples, self.batches.batch_size)
        sizes = [min(self.batches.batch_size, self.examples - start) for start in starts]
        own = [len(range(self.rank, size, self.processes)) for size in sizes]
        return [count * self.processes / size for count, size in zip(own, sizes, strict=True)]
