"""Sums and maxima of a tensor over all dims but one, in float64, without a float64 copy of the whole tensor.

A weight belongs to one group by its output dim and to another by its input dim. Reading it once, block by
block, for every dim that is asked for is what makes scoring a network cost about one pass over its
parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

__all__ = ["Reduction", "abs_max", "abs_sum", "plain_sum", "square_sum"]

Reduction = Callable[[torch.Tensor, Sequence[int]], Sequence[torch.Tensor]]
"""`reduction(tensor, dims)`: for each dim one vector [tensor.shape[dim]], the other dims reduced away."""

_BLOCK = (
    1 << 18
)  # elements read at a time: 2 MiB in float64 stays in cache, and is 2-3 times faster than larger blocks


def square_sum(tensor: torch.Tensor, dims: Sequence[int]) -> list[torch.Tensor]:
    """The sum of squares of each slice along each of `dims`: float64 vectors [tensor.shape[dim]].

    >>> square_sum(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), [0, 1])
    [tensor([ 5., 25.], dtype=torch.float64), tensor([10., 20.], dtype=torch.float64)]
    """
    return _sums(tensor, dims, torch.square)


def plain_sum(tensor: torch.Tensor, dims: Sequence[int]) -> list[torch.Tensor]:
    """The sum of each slice along each of `dims`, signs and all: float64 vectors [tensor.shape[dim]]."""
    return _sums(tensor, dims, torch.clone)


def abs_sum(tensor: torch.Tensor, dims: Sequence[int]) -> list[torch.Tensor]:
    """The sum of absolute values of each slice along each of `dims`: float64 vectors [tensor.shape[dim]]."""
    return _sums(tensor, dims, torch.abs)


def abs_max(tensor: torch.Tensor, dims: Sequence[int]) -> list[torch.Tensor]:
    """The largest absolute value of each slice along each of `dims`: float64 vectors [tensor.shape[dim]].

    A maximum rounds nothing, so it is taken in the tensor's own dtype.
    """
    values = tensor.detach().abs()
    if not values.numel():
        return [torch.zeros(values.shape[dim], dtype=torch.float64) for dim in dims]
    return [
        values.amax(_others(values.dim(), dim)).double() if values.dim() > 1 else values.double()
        for dim in dims
    ]


def _sums(
    tensor: torch.Tensor, dims: Sequence[int], term: Callable[[torch.Tensor], torch.Tensor]
) -> list[torch.Tensor]:
    """Split along one dim; each block adds to that dim's vector and to a running sum over all blocks."""
    values = tensor.detach()
    if values.is_complex():
        values = values.abs()
    if values.dim() == 1:
        return [term(values.double()) for _ in dims]
    split = _split_dim(values.shape)
    values = values.movedim(split, 0)
    rest = values.shape[1:]
    along = torch.zeros(len(values), dtype=torch.float64, device=values.device)
    across = torch.zeros(rest.numel(), dtype=torch.float64, device=values.device)
    for start, stop in _blocks(values.shape):
        block = term(values[start:stop].reshape(stop - start, -1).double())
        along[start:stop] = block.sum(1)
        across += block.sum(0)
    across = across.view(rest)
    return [along if dim == split else _keep_dim(across, dim + (dim < split) - 1) for dim in dims]


def _split_dim(shape: torch.Size) -> int:
    """Dim 0, whose blocks are contiguous; the longest dim where one slice of dim 0 is larger than a block."""
    if shape.numel() <= _BLOCK * max(shape[0], 1):
        return 0
    return max(range(len(shape)), key=lambda dim: shape[dim])


def _blocks(shape: torch.Size) -> Iterator[tuple[int, int]]:
    step = max(1, _BLOCK // max(1, shape[1:].numel()))
    for start in range(0, shape[0], step):
        yield start, min(start + step, shape[0])


def _keep_dim(values: torch.Tensor, dim: int) -> torch.Tensor:
    return values.sum(_others(values.dim(), dim)) if values.dim() > 1 else values


def _others(dims: int, dim: int) -> list[int]:
    return [other for other in range(dims) if other != dim]
