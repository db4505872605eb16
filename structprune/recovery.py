"""From a plan's tensors back to what it keeps of each axis: a plan may have been written by anybody."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from structprune import axes
from structprune.axes import Atom, Expr
from structprune.cutting import Choice, Rows, partner, places, positions
from structprune.errors import VerificationError
from structprune.plan import PruningPlan, kept_from_index
from structprune.ragged import outer_axes
from structprune.trace import Run

__all__ = ["cut_by"]


def cut_by(plan: PruningPlan, run: Run) -> dict[Atom, Choice]:
    """Return what the plan keeps of each axis that it cuts; raises VerificationError where its tensors disagree with
    each other.
    """
    outer = outer_axes(run) if plan.tensors else {}
    stays: dict[Atom, np.ndarray] = {}
    for name, dims in run.named.items():
        if index := plan.index(name):
            _spoken([axes.normal(dim) for dim in dims], index, outer, stays)
    chosen = {leaf: _choice(alive, outer.get(leaf, ())) for leaf, alive in stays.items() if not alive.all()}
    cut = {leaf: choice for leaf, choice in chosen.items() if choice is not None}
    for name, dims in run.named.items():
        wanted, given = positions(dims, cut), plan.index(name)
        for number in wanted.keys() | given.keys():
            if not _same(wanted.get(number), given.get(number), number):
                raise VerificationError(
                    f"the plan cuts dimension {number} of {name!r} otherwise than the tensors it belongs with"
                    f"{_example(run, plan, name, number)}"
                )
    return cut


def _example(run: Run, plan: PruningPlan, name: str, dim: int) -> str:
    """Return a position that the plan keeps there and removes in another tensor that has the same channel, or the
    other way round; nothing where the cut is not the same along the whole of the tensors.
    """
    expr, given = run.named[name][dim], _flat(plan, run, name, dim)
    for leaf, index in axes.members(expr):
        for other, dims in run.named.items():
            for number, facing in enumerate(dims):
                for same, where in axes.members(facing):
                    theirs = _flat(plan, run, other, number)
                    if same is not leaf or (other, number) == (name, dim) or given is None or theirs is None:
                        continue
                    odd = np.setxor1d(index[given], where[theirs])
                    odd = odd[odd >= 0]
                    if len(odd):
                        here, there = np.flatnonzero(index == odd[0])[0], np.flatnonzero(where == odd[0])[0]
                        verbs = ("keeps", "removes") if odd[0] in index[given] else ("removes", "keeps")
                        return (
                            f": it {verbs[0]} position {here} there and {verbs[1]} position {there} of dimension "
                            f"{number} of {other!r}, which is the same channel"
                        )
    return ""


def _flat(plan: PruningPlan, run: Run, name: str, dim: int) -> np.ndarray | None:
    """Return the positions that a plan keeps of a dimension, None where they differ along the tensor."""
    kept = plan.index(name).get(dim, np.arange(run.named[name][dim].size))
    return kept if kept.ndim == 1 else None


def _spoken(
    dims: Sequence[Expr],
    index: Mapping[int, np.ndarray],
    outer: Mapping[Atom, tuple[Atom, ...]],
    stays: dict[Atom, np.ndarray],
) -> None:
    """Take from ``stays`` (bool, ``[*sizes of the outer axes, size]``) what this tensor no longer has."""
    found = places(dims)
    own = {number: place.leaf for number, place in enumerate(found) if isinstance(place.leaf, Atom)}
    old: dict[int, np.ndarray] = {}
    speaking = (positions_of for dim in dims for _, positions_of in axes.members(dim))
    for number, says in zip(own, speaking, strict=True):
        dim = found[number].dim
        at = index.get(dim, np.arange(dims[dim].size))
        along = [-1 if other == dim else 1 for other in range(len(dims))]
        old[number] = says[at if at.ndim > 1 else at.reshape(along)]
    for number, leaf in own.items():
        by = outer.get(leaf, ())
        sizes = [other.size for other in by]
        alive = stays.setdefault(leaf, np.ones([*sizes, leaf.size], dtype=bool))
        rows = [partner(found, number, other) for other in by]
        spoken = np.zeros([*sizes, leaf.size + 1], dtype=bool)
        spoken[(*(old[n] for n in rows if n is not None), old[number])] = (
            True  # index -1 says nothing: the last
        )
        alive &= spoken[..., :-1]


def _choice(alive: np.ndarray, by: tuple[Atom, ...]) -> Choice | None:
    """Return what an axis keeps, in each position of ``by`` where that differs; None: all that is left of ``by`` has
    all of it.
    """
    rows = alive.reshape(-1, alive.shape[-1])
    some: np.ndarray = np.any(rows, axis=1)
    there = rows[some]
    together: np.ndarray = np.any(rows, axis=0)
    if (there == together).all():
        return None if together.all() else np.flatnonzero(together)
    if len(set(there.sum(1).tolist())) > 1:
        return np.flatnonzero(together)  # no choice of axes: the comparison with the tensors says so
    full = np.where(some[:, None], rows, there[0])
    return Rows(by, np.nonzero(full)[1].reshape(*alive.shape[:-1], -1))


def _same(wanted: np.ndarray | None, given: np.ndarray | None, dim: int) -> bool:
    if wanted is None or given is None:
        return wanted is given
    if wanted.ndim == given.ndim == 1:
        return np.array_equal(wanted, given)
    return kept_from_index(wanted, dim) == kept_from_index(given, dim)
