"""A layer as it can be refitted: its weight, and what that meets in the original and in the cut network."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from structprune.gathering import put, take
from structprune.importance.batches import Batch
from structprune.observe import Place, Twin, Use

__all__ = ["Consumer", "pieces", "tapped", "targets"]

_PIECE_BYTES = 1 << 26  # of float64 rows that are laid out at once


@dataclass(eq=False)
class Consumer:
    """A weight, or the part of one that an operation uses, in the cut network.

    ``cut`` says whether the plan cuts its inputs: a consumer in the plain sense. Else what they hold may have changed.
    Those of one ``stage`` read the same input; -1 for several uses. ``uses`` are the numbers of its uses among those of
    the parameter. ``kept [g, o]`` says which of the original's outputs each of its own is. ``wide`` and ``small`` are
    where the original and the cut network read it. ``bias`` is the tensor that the operation adds, or, where it adds
    none and a batch norm follows, ``mean`` is that norm's running mean, which takes a constant as well: ``shift`` is
    what it took so far. ``intercept`` says whether one of them is there that no other layer shares.
    """

    name: str
    cut: bool
    stage: int
    weight: Tensor
    uses: tuple[int, ...]
    kept: Tensor
    wide: Place
    small: Place
    bias: Tensor | None
    mean: Tensor | None
    intercept: bool
    shift: Tensor

    @property
    def parameter(self) -> str:
        """The name of the tensor that holds the weight."""
        return self.small.parameter

    def matrix(self) -> Tensor:
        """The weight as ``[g, o, n]``, float64, in memory of its own."""
        return self.small.matrices(self.weight.detach()).double().clone()

    def constant(self) -> Tensor:
        """What is added to the product, ``[g, o]``, float64."""
        return self.shift if self.bias is None else self.bias.detach().double().reshape(self.kept.shape)

    def rounded(self, matrix: Tensor, constant: Tensor) -> tuple[Tensor, Tensor]:
        """Both as the network's dtypes hold them."""
        place = self.mean if self.bias is None else self.bias
        dtype = torch.float64 if place is None else place.dtype
        return matrix.to(self.weight.dtype).double(), constant.to(dtype).double()

    @torch.no_grad()
    def write(self, matrix: Tensor | None, constant: Tensor) -> None:
        """Put new numbers in place."""
        if matrix is not None:
            self.small.put(self.weight, matrix.to(self.weight.dtype))
        if self.intercept and self.bias is not None:
            self.bias.copy_(constant.reshape(self.bias.shape))
        elif self.mean is not None:
            self.mean -= (constant - self.shift).flatten()
            self.shift = constant

    def removed(self, weight: Tensor, index: Mapping[int, np.ndarray]) -> Tensor:
        """The original's matrix ``[G, O, N]`` with zeros wherever the plan keeps it, float64."""
        whole = weight.detach().clone()
        put(whole, index, torch.zeros_like(take(whole, index)))
        return self.wide.matrices(whole).double()

    def selected(self, y: Tensor) -> Tensor:
        """Of the original's outputs ``[G, r, O]`` those that are left, ``[g, r, o]``."""
        flat = y.permute(1, 0, 2).flatten(1)
        return flat[:, self.kept.flatten()].view(len(flat), *self.kept.shape).permute(1, 0, 2)


class _Enough(BaseException):
    """All that was wanted of a run has been seen."""


def tapped(
    twin: Twin, consumers: Iterable[Consumer], batch: Batch, handle: Callable[[Consumer, Use], None]
) -> None:
    """Run a network until the last use of the consumers, and hand each of their uses over."""
    wanted = {(one.parameter, number): one for one in consumers for number in one.uses}
    seen: Counter[str] = Counter()

    def each(use: Use) -> None:
        name = use.place.parameter
        consumer = wanted.pop((name, seen[name]), None)
        seen[name] += 1
        if consumer is not None:
            handle(consumer, use)
        if not wanted:
            raise _Enough

    with contextlib.suppress(_Enough):
        batch.through(twin, each)


def targets(use: Use) -> Tensor:
    """What an operation gave, ``[groups, rows, outputs]``, in the order of its rows."""
    return use.laid(use.output)


def pieces(use: Use, y: Tensor | None = None) -> Iterator[tuple[int, Tensor, Tensor | None]]:
    """Yield the rows of a use and their targets (``[g, r, o]``), some at a time, float64, with the number of the first.

    The patches of a convolution are laid out for a few samples at a time.
    """
    groups, _, width = use.matrices().shape
    if use.place.sliding is not None and use.input.ndim == use.weight.ndim:
        places = use.output.shape[2:].numel()
        step = max(1, _PIECE_BYTES // max(8 * groups * width * places, 1))
        for start in range(0, use.input.shape[0], step):
            rows, first = use.place.rows(use.input[start : start + step]).double(), start * places
            yield first, rows, None if y is None else y[:, first : first + rows.shape[1]].double()
        return
    whole = use.rows()
    step = max(1, _PIECE_BYTES // max(8 * groups * width, 1))
    for start in range(0, whole.shape[1], step):
        part = slice(start, start + step)
        yield start, whole[:, part].double(), None if y is None else y[:, part].double()
