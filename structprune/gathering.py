"""Taking the kept positions out of a tensor, and putting them back among others.

An index says for some dims of a tensor the old position at each new one (int64), as `cutting.positions` and
`PruningPlan.index` give it: an array of one dim, or one that is broadcast along the other dims it depends on.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

__all__ = ["put", "removed", "take"]

Index = Mapping[int, np.ndarray]


def take(tensor: torch.Tensor, index: Index) -> torch.Tensor:
    """Return the kept positions of ``tensor`` in fresh memory, laid out like it; itself where all are kept."""
    if not index:
        return tensor
    order = list(range(tensor.ndim))
    if tensor.layout == torch.strided:
        strides = tensor.stride()
        order.sort(key=lambda dim: -strides[dim])
    data = tensor.permute(order)
    alone = [dim for dim in index if index[dim].ndim == 1]
    alone.sort(key=lambda dim: len(index[dim]) / tensor.shape[dim])  # the deepest cut leaves least
    for dim in alone:
        data = data.index_select(order.index(dim), _at(index[dim], tensor))
    back = [order.index(dim) for dim in range(tensor.ndim)]
    if len(alone) == len(index):
        return data.permute(back)
    taken = _joint(data.permute(back), {dim: at for dim, at in index.items() if at.ndim > 1})
    return taken.permute(order).contiguous().permute(back)


def put(wide: torch.Tensor, index: Index, values: torch.Tensor) -> torch.Tensor:
    """Return ``wide`` with ``values`` written at the kept positions; in place."""
    if len(index) == 1 and all(at.ndim == 1 for at in index.values()):
        ((dim, at),) = index.items()
        return wide.index_copy_(dim, _at(at, wide), values)
    dims, grid = _grid(index, wide)
    rest = [dim for dim in range(wide.ndim) if dim not in dims]
    wide.permute(*dims, *rest).index_put_(grid, values.permute(*dims, *rest))
    return wide


def removed(tensor: torch.Tensor, index: Index) -> torch.Tensor:
    """Return where ``tensor`` has positions that are not kept: bool, to be broadcast against it."""
    gone = torch.zeros([1] * tensor.ndim, dtype=torch.bool, device=tensor.device)
    for dim, at in index.items():
        if at.ndim == 1:
            own = torch.ones(tensor.shape[dim], dtype=torch.bool, device=tensor.device)
            gone = gone | own.index_fill_(0, _at(at, tensor), False).view(
                [-1 if other == dim else 1 for other in range(tensor.ndim)]
            )
    joint = {dim for dim, at in index.items() if at.ndim > 1}
    if not joint:
        return gone
    joint |= {other for dim in joint for other, size in enumerate(index[dim].shape) if size > 1}
    shape = [size if dim in joint else 1 for dim, size in enumerate(tensor.shape)]
    inside = {dim: at for dim, at in index.items() if dim in joint}
    own = torch.ones(shape, dtype=torch.bool, device=tensor.device)
    dims, grid = _grid(inside, own)
    own.permute(*dims, *(dim for dim in range(tensor.ndim) if dim not in dims))[grid] = False
    return gone | own


def _joint(data: torch.Tensor, index: Index) -> torch.Tensor:
    """Positions that depend on other dims, which are cut already: one look-up in all of these dims together."""
    dims, grid = _grid(index, data)
    order = [*dims, *(dim for dim in range(data.ndim) if dim not in dims)]
    return data.permute(order)[grid].permute([order.index(dim) for dim in range(data.ndim)])


def _grid(index: Index, tensor: torch.Tensor) -> tuple[list[int], tuple[torch.Tensor, ...]]:
    """Return the dims that an index concerns, and for each of them its positions over all of them together."""
    along = {dim for at in index.values() if at.ndim > 1 for dim, size in enumerate(at.shape) if size > 1}
    dims = sorted(index.keys() | along)
    grid = []
    for place, dim in enumerate(dims):
        at = index.get(dim)
        if at is not None and at.ndim > 1:
            grid.append(_at(at.transpose(*dims, *(d for d in range(at.ndim) if d not in dims)), tensor))
            grid[-1] = grid[-1].reshape(grid[-1].shape[: len(dims)])
        else:
            own = torch.arange(tensor.shape[dim], device=tensor.device) if at is None else _at(at, tensor)
            grid.append(own.view([-1 if other == place else 1 for other in range(len(dims))]))
    return dims, tuple(grid)


def _at(index: np.ndarray, like: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(np.ascontiguousarray(index), dtype=torch.int64, device=like.device)
