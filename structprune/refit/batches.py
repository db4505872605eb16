"""Calibration data: batches that are read once for each pass, the last quarter of them held back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from structprune.errors import InputError
from structprune.importance.batches import Batch, batches_of, iterable_of_batches
from structprune.inputs import tensors_in

__all__ = ["Batches", "readable_again"]

_CACHED_BYTES = (
    1 << 30
)  # what a one-pass iterator may hold: it has to be kept, since refitting takes several passes


class Batches:
    """The inputs of a calibration set for a model, the same ones in every pass.

    ``calibration`` is as for `refit`. Of four batches or more the last quarter is held back; of fewer, the last quarter
    of the rows that each layer sees. Raises InputError where it is empty, and where a pass gives other batches than the
    first.
    """

    def __init__(self, calibration: Iterable[Any], model: nn.Module) -> None:
        self._model = model
        self._source = readable_again(calibration)
        self._marks = [_mark(batch) for batch in self._read()]
        if not self._marks:
            raise InputError(
                "calibration gives no batch: it is empty, or an iterator that was read to its end"
            )

    def __len__(self) -> int:
        return len(self._marks)

    @property
    def held(self) -> int:
        """How many batches are held back, at the end."""
        return len(self) // 4

    def fitted(self, rows: int, held: bool) -> int:
        """How many of the rows that a layer sees of a batch are there to fit; those after them are held back."""
        return 0 if held else rows if self.held else rows - rows // 4

    def __iter__(self) -> Iterator[tuple[Batch, bool]]:
        """Yield each batch, and whether it is held back."""
        number = 0
        for batch in self._read():
            if number >= len(self) or _mark(batch) != self._marks[number]:
                raise InputError(_OTHER)
            yield batch, number >= len(self) - self.held
            number += 1
        if number < len(self):
            raise InputError(_OTHER)

    def __str__(self) -> str:
        if self.held:
            return f"{len(self)} batches, the last {self.held} of them held back"
        return f"{len(self)} batches, the last quarter of the rows of each held back"

    def _read(self) -> Iterator[Batch]:
        torch.default_generator.manual_seed(
            0
        )  # a DataLoader that shuffles shuffles alike; the caller forks the state
        yield from batches_of(self._model, self._source)


def readable_again(calibration: Iterable[Any], name: str = "calibration") -> Iterable[Any]:
    """The batches as something that can be read several times: itself, the parts of a lone tensor, or what a one-pass
    iterator gives, as a list.

    Raises InputError for what is no iterable of batches, and for an iterator that holds more than 1 GiB; ``name`` is
    what the caller knows it by.
    """
    batches = iterable_of_batches(calibration, name)
    return _cached(batches, name) if iter(batches) is batches else batches


_OTHER = (
    "calibration gave other batches in a second pass than in the first: refitting reads them several times, so give a "
    "list of batches, or switch shuffling and random augmentation off"
)


def _cached(iterator: Iterable[Any], name: str) -> list[Any]:
    kept, size = [], 0
    for batch in iterator:
        size += sum(tensor.numel() * tensor.element_size() for tensor in tensors_in(batch))
        if size > _CACHED_BYTES:
            raise InputError(
                f"{name} is an iterator that can be read only once, with more than {_CACHED_BYTES >> 30} GiB: "
                "give one that can be read again (a list, a DataLoader, a class with __iter__), or fewer batches"
            )
        kept.append(batch)
    return kept


def _mark(batch: Batch) -> tuple[object, ...]:
    """What tells a batch from another: the sizes and the sum of each tensor (as text, since NaN equals nothing)."""
    found = tensors_in((batch.args, batch.kwargs))
    return tuple((tuple(t.shape), t.dtype, str(t.detach().double().sum().item())) for t in found)
