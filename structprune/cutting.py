"""From a choice of channels to positions: which old position each new position of a tensor holds.

An axis keeps the same indices everywhere (an array), or its own in every position of other axes (`Rows`). In the
second case, new positions are evaluated, not filtered: rank by rank through the expression of each dimension, so that
the product ``[i g]`` of a shuffle keeps its order, and a dimension may depend on another one, as the inputs ``i`` of a
grouped convolution's weight ``[g o], i`` do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from structprune import axes
from structprune.axes import Atom, Expr, Prod, Sum

__all__ = ["Choice", "Cut", "Place", "Rows", "count_of", "kept_positions", "partner", "places", "positions"]


@dataclass(frozen=True, eq=False, slots=True)
class Rows:
    """What an axis keeps in every position of the axes ``by``.

    ``table`` (int64 ``[*sizes of by, count]``) has a sorted row for each original position of ``by``; the row of one
    that is removed itself is never read.
    """

    by: tuple[Atom, ...]
    table: np.ndarray


Choice = np.ndarray | Rows
Cut = Mapping[Atom, Choice]
"""What each axis that is cut keeps; the others stay whole."""


def count_of(choice: Choice) -> int:
    """Return how many positions an axis keeps."""
    return choice.table.shape[-1] if isinstance(choice, Rows) else len(choice)


@dataclass(frozen=True, eq=False, slots=True)
class Place:
    """One leaf of a dimension of a tensor, in the order in which they are written.

    ``beside`` are the leaves (by number) that are factors of a product around this one: they have an index wherever it
    has one. ``top`` says that it has an index at every position of its dimension.
    """

    dim: int
    leaf: Expr
    beside: tuple[int, ...]
    top: bool


def places(dims: Sequence[Expr]) -> list[Place]:
    """Return the leaves of a tensor's dimensions."""
    found: list[Place] = []
    for number, dim in enumerate(dims):
        _collect(axes.normal(dim), number, (), True, found)
    return found


def _collect(expr: Expr, dim: int, beside: tuple[int, ...], top: bool, found: list[Place]) -> None:
    if isinstance(expr, Sum):
        for part in expr.parts:
            _collect(part, dim, beside, False, found)
    elif isinstance(expr, Prod):
        starts = _starts(expr, len(found))
        for start, item in zip(starts, expr.factors, strict=True):
            plain = (s for s, other in zip(starts, expr.factors, strict=True) if not isinstance(other, Sum))
            _collect(item, dim, (*beside, *(s for s in plain if s != start)), top, found)
    else:
        found.append(Place(dim, expr, beside, top))


def _starts(expr: Prod, start: int) -> list[int]:
    """Return the number of the first leaf of each factor."""
    starts = []
    for item in expr.factors:
        starts.append(start)
        start += _count(item)
    return starts


def _count(expr: Expr) -> int:
    if isinstance(expr, Sum):
        return sum(_count(part) for part in expr.parts)
    return sum(_count(item) for item in expr.factors) if isinstance(expr, Prod) else 1


def partner(found: Sequence[Place], number: int, outer: Atom) -> int | None:
    """Return the place of ``outer`` that belongs to the place ``number``: the factor beside it, else the only one of
    another dimension; None where that is not certain.
    """
    place = found[number]
    near = [other for other in place.beside if found[other].leaf is outer]
    if near:
        return near[0] if len(near) == 1 else None
    far = [n for n, other in enumerate(found) if other.leaf is outer]
    if len(far) == 1 and found[far[0]].top and found[far[0]].dim != place.dim:
        return far[0]
    return None


def kept_positions(dim: Expr, cut: Cut) -> np.ndarray | None:
    """Return the positions of ``dim`` that stay (int64), or None where all do; its axes are not cut row by row."""
    if not any(leaf in cut for leaf in axes.leaves(dim)):
        return None
    stays = np.ones(dim.size, dtype=bool)
    for leaf, index in axes.members(dim):
        choice = cut.get(leaf)
        if isinstance(choice, np.ndarray):
            alive = np.zeros(leaf.size + 1, dtype=bool)
            alive[choice] = True
            alive[-1] = True  # index -1: no say
            stays &= alive[index]
    return np.flatnonzero(stays)


def positions(dims: Sequence[Expr], cut: Cut) -> dict[int, np.ndarray]:
    """Return for each dimension that is cut the old position at every new one (int64).

    An array of one dimension holds for the whole tensor. One of as many dimensions as the tensor has the new sizes
    where it depends on a dimension, and ones elsewhere.
    """
    ragged = any(isinstance(cut.get(leaf), Rows) for dim in dims for leaf in axes.leaves(dim))
    if ragged:
        return _evaluated([axes.normal(dim) for dim in dims], cut)
    kept = ((number, kept_positions(dim, cut)) for number, dim in enumerate(dims))
    return {number: found for number, found in kept if found is not None}


def _evaluated(dims: Sequence[Expr], cut: Cut) -> dict[int, np.ndarray]:
    counts = {leaf: count_of(choice) for leaf, choice in cut.items()}
    found = places(dims)
    ranks: list[np.ndarray] = []
    for number, dim in enumerate(dims):
        own = [1] * len(dims)
        own[number] = -1
        ranks += [rank.reshape(own) for rank in _ranks(dim, counts)]
    old: dict[int, np.ndarray] = {}
    for number in range(len(found)):
        _old_index(found, number, ranks, cut, old)
    values = (old[number] for number in range(len(found)))
    result = {}
    for number, dim in enumerate(dims):
        where = _located(dim, values)
        if any(leaf in cut for leaf in axes.leaves(dim)):
            result[number] = where.reshape(-1) if where.size == where.shape[number] else where
    return result


def _old_index(
    found: Sequence[Place], number: int, ranks: Sequence[np.ndarray], cut: Cut, old: dict[int, np.ndarray]
) -> np.ndarray:
    """Return the old index of a leaf at every new position, -1 where it has no say."""
    if number not in old:
        leaf, rank = found[number].leaf, ranks[number]
        choice = cut.get(leaf) if isinstance(leaf, Atom) else None
        if choice is None:
            old[number] = rank
        elif isinstance(choice, Rows):
            beside = [partner(found, number, outer) for outer in choice.by]
            if None in beside:
                raise AssertionError("an axis is cut row by row where its rows are not known")
            at = [_old_index(found, other, ranks, cut, old) for other in beside if other is not None]
            old[number] = np.where(rank < 0, -1, choice.table[(*at, rank)])
        else:
            old[number] = np.where(rank < 0, -1, choice[rank])
    return old[number]


def _ranks(expr: Expr, counts: Mapping[Atom, int]) -> list[np.ndarray]:
    """Return for each leaf its rank at every new position (int64), -1 where it has no say."""
    if isinstance(expr, Sum):
        sizes = [axes.size_under(part, counts) for part in expr.parts]
        found, start = [], 0
        for part, size in zip(expr.parts, sizes, strict=True):
            for rank in _ranks(part, counts):
                wide = np.full(sum(sizes), -1, dtype=np.int64)
                wide[start : start + size] = rank
                found.append(wide)
            start += size
        return found
    if isinstance(expr, Prod):
        sizes = [axes.size_under(item, counts) for item in expr.factors]
        found = []
        for number, item in enumerate(expr.factors):
            before, after = int(np.prod(sizes[:number])), int(np.prod(sizes[number + 1 :]))
            found += [np.tile(np.repeat(rank, after), before) for rank in _ranks(item, counts)]
        return found
    return [np.arange(axes.size_under(expr, counts), dtype=np.int64)]


def _located(expr: Expr, values: Iterator[np.ndarray]) -> np.ndarray:
    """Return the position in ``expr`` that its leaves' old indices ``values`` say, -1 where they have no say."""
    if isinstance(expr, Sum):
        where: np.ndarray = np.int64(-1)  # type: ignore[assignment]
        start = 0
        for part in expr.parts:
            inside = _located(part, values)
            where = np.where(inside >= 0, inside + start, where)
            start += part.size
        return where
    if isinstance(expr, Prod):
        where = np.int64(0)  # type: ignore[assignment]
        for item in expr.factors:
            inside = _located(item, values)
            where = np.where((where < 0) | (inside < 0), -1, where * item.size + inside)
        return where
    return next(values)
