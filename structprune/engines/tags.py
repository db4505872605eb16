"""Tensors whose numbers say where they stood, and what is left of them after someone has cut them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

__all__ = ["read_tags", "tagged"]


def tagged(tensor: torch.Tensor, dims: Sequence[int], narrow: bool) -> torch.Tensor:
    """Return a tensor of ``tensor``'s kind whose numbers are their own positions in ``dims``, counted row by row.

    The other dimensions have one position with ``narrow``, else their own size.

    >>> tagged(torch.zeros(2, 5, 3), (0, 2), narrow=True).tolist()
    [[[0.0, 1.0, 2.0]], [[3.0, 4.0, 5.0]]]
    """
    sizes = [tensor.shape[dim] for dim in dims]
    values = torch.arange(math.prod(sizes), dtype=torch.float64)
    values = values.view([size if dim in dims else 1 for dim, size in enumerate(tensor.shape)])
    values = values if narrow else values.expand(tensor.shape)
    return nn.Parameter(values, requires_grad=False) if isinstance(tensor, nn.Parameter) else values


def read_tags(cut: torch.Tensor, shape: tuple[int, ...], dims: Sequence[int]) -> list[np.ndarray] | None:
    """Return the positions that are left in each of ``dims``; None where the numbers are no cut of a tagged tensor.

    >>> left = tagged(torch.zeros(4, 2), (0,), narrow=False)[[0, 2, 3]]
    >>> [kept.tolist() for kept in read_tags(left, (4, 2), (0,))]
    [[0, 2, 3]]
    """
    if cut.ndim != len(shape):
        return None
    values = cut.detach().double()
    for dim in range(cut.ndim):
        if dim not in dims:
            first = values.narrow(dim, 0, 1)
            if not torch.equal(first.expand_as(values), values):
                return None
            values = first
    values = values.squeeze(tuple(dim for dim in range(cut.ndim) if dim not in dims))
    sizes = tuple(shape[dim] for dim in dims)
    if not values.numel() or not _are_positions(values, math.prod(sizes)):
        return None
    kept = []
    for dim in range(len(sizes)):
        line = values.movedim(dim, 0).reshape(values.shape[dim], -1)[:, 0].long().numpy()
        kept.append(np.unravel_index(line, sizes)[dim])
    if any((stays[1:] <= stays[:-1]).any() for stays in kept):
        return None
    expected = np.ravel_multi_index(np.ix_(*kept), sizes)
    return kept if np.array_equal(expected, values.numpy()) else None


def _are_positions(values: torch.Tensor, count: int) -> bool:
    return bool(((values >= 0) & (values < count) & (values == values.floor())).all())
