"""From the channels that a caller names to what a plan says: checked, cut, and written down per tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from structprune import axes
from structprune.axes import Atom, Expr
from structprune.cutting import Choice, Cut, Rows, positions
from structprune.errors import PlanError
from structprune.plan import GroupPlan, Keep, Kept, kept_from_index

if TYPE_CHECKING:
    from structprune.graph import ChannelGroup

__all__ = ["checked", "cut_of", "group_plan", "kept_count", "kept_of"]


def checked(known: Mapping[str, ChannelGroup], name: str, indices: Keep) -> np.ndarray:
    """Return the channels sorted (int64), ``[count]`` or ``[rows, count]``."""
    if name not in known:
        raise PlanError(f"no group is named {name!r}; print(graph) lists the names")
    group = known[name]
    try:
        raw = np.asarray(indices)
    except ValueError:
        raise PlanError(
            f"group {name!r}: expected channels, equal in number wherever they are chosen"
        ) from None
    if raw.ndim == 0 or (raw.size and raw.dtype.kind not in "iu"):
        raise PlanError(
            f"group {name!r}: expected the channels to keep as a list of integers, got {str(indices)[:80]}"
        )
    given = raw.astype(np.int64)
    if not given.size:
        raise PlanError(f"group {name!r}: expected distinct channels in [0, {group.size}), at least one")
    chosen = np.sort(given.reshape(-1, given.shape[-1]) if given.ndim > 1 else given.reshape(-1))
    if chosen.min() < 0 or chosen.max() >= group.size or (np.diff(chosen) == 0).any():
        raise PlanError(f"group {name!r}: expected distinct channels in [0, {group.size}), at least one")
    if group.frozen is not None and chosen.shape[-1] < group.size:
        raise PlanError(f"group {name!r} must stay whole: {group.frozen}")
    if chosen.ndim > 1 and (not group.by or len(chosen) != group.rows):
        can = (
            f"{group.rows} rows, one for each channel of {', '.join(group.by)}" if group.by else "one for all"
        )
        raise PlanError(f"group {name!r}: expected channels for {can}, got {len(chosen)} rows")
    return chosen[0] if chosen.ndim > 1 and (chosen == chosen[0]).all() else chosen


def kept_count(kept: np.ndarray | None, size: int) -> int:
    """Return how many of ``size`` channels stay; None: all."""
    return size if kept is None else kept.shape[-1]


def cut_of(known: Mapping[str, ChannelGroup], kept: Mapping[str, np.ndarray]) -> dict[Atom, Choice]:
    """Return what each axis keeps that is not left whole."""
    return {
        known[name].atom: _choice(known, known[name], channels)
        for name, channels in kept.items()
        if channels.shape[-1] < known[name].size
    }


def _choice(known: Mapping[str, ChannelGroup], group: ChannelGroup, kept: np.ndarray) -> Choice:
    if kept.ndim == 1:
        return kept
    by = [known[name] for name in group.by]
    return Rows(tuple(one.atom for one in by), kept.reshape(*(one.size for one in by), -1))


def group_plan(group: ChannelGroup, kept: np.ndarray | None) -> GroupPlan:
    """Return what stays of a group as plain data; None: all."""
    if kept is None:
        return GroupPlan(group.name, group.size, tuple(range(group.size)))
    if kept.ndim == 1:
        return GroupPlan(group.name, group.size, tuple(kept.tolist()))
    return GroupPlan(group.name, group.size, tuple(map(tuple, kept.tolist())), group.by)


def kept_of(tensors: Mapping[str, Sequence[Expr]], cut: Cut) -> dict[str, dict[int, Kept]]:
    """Return what stays of each tensor that is cut; what is cut alike everywhere is worked out once."""
    by_rows = {leaf for leaf, choice in cut.items() if isinstance(choice, Rows)}
    known: dict[int, tuple[Expr, Kept | None]] = {}
    found: dict[str, dict[int, Kept]] = {}
    for name, dims in tensors.items():
        read = [axes.normal(dim) for dim in dims]
        if by_rows and any(leaf in by_rows for dim in read for leaf in axes.leaves(dim)):
            kept = {number: kept_from_index(index, number) for number, index in positions(read, cut).items()}
        else:
            kept = _each_alone(read, cut, known)
        if kept:
            found[name] = kept
    return found


def _each_alone(
    dims: Sequence[Expr], cut: Cut, known: dict[int, tuple[Expr, Kept | None]]
) -> dict[int, Kept]:
    found: dict[int, Kept] = {}
    for number, dim in enumerate(dims):
        if id(dim) not in known:
            index = positions([dim], cut).get(0)
            known[id(dim)] = (dim, None if index is None else tuple(index.tolist()))
        kept = known[id(dim)][1]
        if kept is not None:
            found[number] = kept
    return found
