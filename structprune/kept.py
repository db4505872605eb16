"""What stays of one dim of a tensor, as plain data: a list of positions, or one for each position of other dims."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from structprune.errors import PlanError

__all__ = ["ByRow", "Keep", "Kept", "checked_positions", "kept_from_index", "new_shape", "require_rows"]

Keep = Sequence[int] | Sequence[Sequence[int]] | np.ndarray
"""Channels for all, or one sequence of them for each channel of the groups that a group is chosen by."""


@dataclass(frozen=True)
class ByRow:
    """The kept positions of one dim of a tensor, where they differ along other dims, or are not in order.

    `rows` are the distinct lists of positions, each unique and all of one length, which is `len()` of this. `row` says
    which of them holds at each new position of the dims `by` together (row-major, ascending dims). Without `by` it is
    one list for all: that of a shuffled dim, whose order the cut has to follow.
    """

    by: tuple[int, ...]
    rows: tuple[tuple[int, ...], ...]
    row: tuple[int, ...]

    def __post_init__(self) -> None:
        for listed in ("by", "row"):
            object.__setattr__(self, listed, tuple(getattr(self, listed)))
        object.__setattr__(self, "rows", tuple(map(tuple, self.rows)))

    def __len__(self) -> int:
        return len(self.rows[0])

    def checked(self, size: int, what: str) -> ByRow:
        """This, for a dim of `size` positions; raises PlanError where it is not what it should be."""
        if (
            not self.rows
            or len({len(row) for row in self.rows}) != 1
            or list(self.by) != sorted(set(self.by))
        ):
            raise PlanError(f"{what}: expected rows of one length, by dims in order")
        for row in self.rows:
            checked_positions(sorted(row), size, what)
        if not set(self.row) <= set(range(len(self.rows))):
            raise PlanError(f"{what}: a row is named that is not there")
        return self

    def index(self, dim: int, new: Sequence[int]) -> np.ndarray:
        """The old position at each new one (int64), as `PruningPlan.index` has it, for a tensor of new sizes `new`."""
        rows = np.asarray(self.rows, dtype=np.int64)
        if not self.by:
            return np.asarray(self.rows[0], dtype=np.int64)
        index: np.ndarray = rows[list(self.row)].reshape(*(new[other] for other in self.by), len(self))
        order = np.argsort([*self.by, dim]).tolist()
        sizes = [new[other] if other in self.by or other == dim else 1 for other in range(len(new))]
        index = index.transpose(order).reshape(sizes)
        return index


Kept = tuple[int, ...] | ByRow
"""What stays of one dim of a tensor."""


def kept_from_index(index: np.ndarray, dim: int) -> Kept:
    """What stays of a dim, from the old position at each new one, as `PruningPlan.index` has it."""
    if index.ndim > 1:
        index = np.moveaxis(index, dim, -1)
        by = tuple(other + (other >= dim) for other, size in enumerate(index.shape[:-1]) if size > 1)
        rows, row = np.unique(index.reshape(-1, index.shape[-1]), axis=0, return_inverse=True)
        if len(rows) > 1:
            return ByRow(by, tuple(map(tuple, rows.tolist())), tuple(row.reshape(-1).tolist()))
        index = rows[0]
    if (np.diff(index) > 0).all():
        return tuple(index.tolist())
    return ByRow((), (tuple(index.tolist()),), (0,))


def new_shape(dims: Mapping[int, Kept], shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a tensor after the cut."""
    return tuple(len(dims[dim]) if dim in dims else size for dim, size in enumerate(shape))


def require_rows(name: str, dims: Mapping[int, Kept], shape: tuple[int, ...]) -> None:
    """Raises PlanError where a `ByRow` of a tensor has not one row for each new position of its `by`."""
    new = new_shape(dims, shape)
    for dim, keep in dims.items():
        if isinstance(keep, ByRow):
            if any(not 0 <= other < len(shape) or other == dim for other in keep.by):
                raise PlanError(f"tensor {name!r} dim {dim}: its rows go by dims {list(keep.by)}")
            if len(keep.row) != math.prod(new[other] for other in keep.by):
                raise PlanError(
                    f"tensor {name!r} dim {dim}: expected one row for each position, not {len(keep.row)}"
                )


def checked_positions(keep: Sequence[int], size: int, what: str) -> tuple[int, ...]:
    """The positions as a tuple of int; raises PlanError where they are not sorted, unique and below `size`."""
    positions = np.asarray(keep)
    if positions.ndim != 1 or positions.size == 0 or positions.dtype.kind not in "iu":
        raise PlanError(f"{what}: expected one or more integer positions to keep, got {str(keep)[:80]}")
    if positions[0] < 0 or positions[-1] >= size:
        raise PlanError(f"{what}: positions {positions[0]}..{positions[-1]} leave the {size} that there are")
    if (positions[1:] <= positions[:-1]).any():
        raise PlanError(f"{what}: positions must be sorted and unique, got {str(keep)[:80]}")
    if isinstance(keep, tuple) and set(map(type, keep)) == {int}:
        return keep
    return tuple(positions.tolist())
