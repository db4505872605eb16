"""Criteria that compare the channels of a group with each other: the geometric median, and layer-adaptive magnitude."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from structprune.importance.groups import GroupTensors, MemberTensor
from structprune.importance.reductions import square_sum
from structprune.importance.registry import criterion

__all__ = ["fpgm", "lamp"]


@criterion()
def fpgm(group: GroupTensors) -> NDArray[np.float64]:
    """The sum of each channel's distances to all other channels of its group: float64 [size].

    He, Liu, Wang, Hu, Yang: Filter Pruning via Geometric Median for Deep Neural Networks Acceleration, CVPR 2019
    (arXiv:1811.00250), there between the filters of a layer; here a channel is the vector of all parameters that it
    takes along. A channel near the median of the others can be stood in for by them. Memory: channels x channels. Where
    each head (or group of a convolution) keeps its own channels, they are compared within it.
    """
    rows, size = max(group.rows, 1), group.size
    gram = torch.zeros(rows, size, size, dtype=torch.float64)
    for member in group.parameters:
        for vectors in _vectors(member, rows, size):
            gram = gram.to(vectors.device).baddbmm_(vectors, vectors.mT)
    lengths = gram.diagonal(dim1=1, dim2=2)
    squares = (lengths.unsqueeze(2) + lengths.unsqueeze(1)).sub_(gram, alpha=2)
    distances = squares.clamp_(min=0).sqrt_().sum(2)
    found: NDArray[np.float64] = distances.cpu().numpy().reshape(group.shape)
    return found


@criterion()
def lamp(group: GroupTensors) -> NDArray[np.float64]:
    """The share of each channel's squared norm in those of all channels that are no smaller: float64 [size], in [0, 1].

    Lee, Park, Mo, Ahn, Shin: Layer-adaptive Sparsity for the Magnitude-based Pruning, ICLR 2021 (arXiv:2010.07611),
    there for the weights of a layer; here for the channels of a group and all parameters that they take along. The
    largest channel has 1, in every group: so the scores of different groups compare, and none is emptied. It does not
    change with the scale of the weights. NaN where a weight is NaN or infinite, which `score` refuses.
    """
    squares = group.total(square_sum).ravel()
    values, place, counts = np.unique(squares, return_inverse=True, return_counts=True)
    larger = np.cumsum((values * counts)[::-1])[::-1]
    with np.errstate(invalid="ignore"):  # NaN stays NaN, and is reported with its tensor's name
        shares = np.divide(values, larger, out=np.zeros_like(values), where=larger != 0)
    found: NDArray[np.float64] = shares[place.ravel()].reshape(group.shape)
    return found


def _vectors(member: MemberTensor, rows: int, size: int) -> Iterator[Tensor]:
    """Yield the member's numbers as float64 ``[rows, size, numbers]``, channel by channel, zero where it has none.

    Where a channel has several positions, each yields by itself.
    """
    tensor = member.tensor.detach().movedim(member.dim, 0)
    tensor = (torch.view_as_real(tensor) if tensor.is_complex() else tensor).reshape(len(member.index), -1)
    if np.array_equal(member.index, np.arange(rows * size)):
        yield tensor.double().view(rows, size, -1)
        return
    order = np.argsort(member.index, kind="stable")
    order = order[member.index[order] >= 0]
    channels, starts, counts = np.unique(member.index[order], return_index=True, return_counts=True)
    for turn in range(int(counts.max(initial=0))):
        there = counts > turn
        at = torch.from_numpy(order[starts[there] + turn]).to(tensor.device)
        part = torch.zeros(rows * size, tensor.shape[1], dtype=torch.float64, device=tensor.device)
        part[torch.from_numpy(channels[there]).to(tensor.device)] = tensor[at].double()
        yield part.view(rows, size, -1)
