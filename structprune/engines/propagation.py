"""Which channels torch-pruning removes together: the closure of its dependencies, all channels at once.

torch-pruning answers for one root layer at a time, and where channels of one root depend on each other it says so only
when they are asked for one by one. Here each of its dependencies is followed once for every channel that reaches it;
what hangs together is a class.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from structprune.errors import TraceError

__all__ = ["Handle", "Reached", "propagate"]


class Handle(NamedTuple):
    """A node of torch-pruning's graph and one of the functions that cut it."""

    node: Any
    function: Any


class _Index(NamedTuple):
    """An index on its way through torch-pruning's mappings, with the one it began as."""

    idx: int
    root_idx: int


@dataclass(frozen=True)
class Reached:
    """What is reached: for each handle the indices (sorted, int64 ``[n]``) and the class of each; and all classes."""

    indices: Mapping[Handle, np.ndarray]
    classes: Mapping[Handle, np.ndarray]
    count: int


def propagate(roots: Iterable[tuple[Handle, int]], stretches: Mapping[Handle, tuple[int, int]]) -> Reached:
    """Return what is cut with the channels of the ``roots``, each a handle and its number of channels.

    ``stretches`` gives for a handle its number of channels and into how many stretches they fall: what is removed of
    one is removed of all.
    """
    seen: dict[Handle, set[int]] = {}
    links: list[tuple[Handle, Handle, list[tuple[int, int]]]] = []
    waiting: list[tuple[Handle, list[int]]] = []

    def arrive(handle: Handle, indices: Iterable[int]) -> None:
        known = seen.setdefault(handle, set())
        new = sorted(set(indices) - known)
        if new:
            known.update(new)
            waiting.append((handle, new))

    for root, channels in roots:
        arrive(root, range(channels))
    while waiting:
        handle, new = waiting.pop()
        for dependency in handle.node.dependencies:
            if dependency.is_triggered_by(handle.function):
                target = Handle(dependency.target, dependency.handler)
                pairs = _mapped(dependency, new)
                links.append((handle, target, pairs))
                arrive(target, (reached for _, reached in pairs))
    return _classes(seen, links, stretches)


def _mapped(dependency: Any, indices: list[int]) -> list[tuple[int, int]]:
    """Return the pairs of an index and one that it becomes on the other side of a dependency."""
    found: list[Any] = [_Index(index, index) for index in indices]
    for mapping in dependency.index_mapping:
        if mapping is not None:
            before = found
            try:
                found = mapping(found)
            except Exception as error:  # the boundary around torch-pruning
                raise TraceError(
                    f"torch-pruning fails between {dependency.source.name} and {dependency.target.name} with "
                    f"{type(error).__name__}: {error}"
                ) from error
            if any(
                item.root_idx is None for item in found
            ):  # one by one, in order, by a mapping that forgets
                found = [_Index(new.idx, old.root_idx) for new, old in zip(found, before, strict=True)]
    return [(item.root_idx, item.idx) for item in found]


def _classes(
    seen: Mapping[Handle, set[int]],
    links: Iterable[tuple[Handle, Handle, list[tuple[int, int]]]],
    stretches: Mapping[Handle, tuple[int, int]],
) -> Reached:
    indices = {handle: np.array(sorted(found), dtype=np.int64) for handle, found in seen.items()}
    start, total = {}, 0
    for handle, found in indices.items():
        start[handle] = total
        total += len(found)

    def slots(handle: Handle, wanted: np.ndarray) -> np.ndarray:
        return start[handle] + np.searchsorted(indices[handle], wanted)

    ends: list[tuple[np.ndarray, np.ndarray]] = []
    for source, target, pairs in links:
        if pairs:
            left, right = np.array(pairs, dtype=np.int64).T
            ends.append((slots(source, left), slots(target, right)))
    for handle, (channels, number) in stretches.items():
        if handle in indices and channels % number == 0:
            own = np.arange(len(indices[handle])) + start[handle]
            _, first, where = np.unique(
                indices[handle] % (channels // number), return_index=True, return_inverse=True
            )
            ends.append((own, own[first][where]))
    one, other = (np.concatenate([pair[side] for pair in ends] or [np.zeros(0, np.int64)]) for side in (0, 1))
    links_between = coo_array((np.ones(len(one)), (one, other)), shape=(total, total))
    count, labels = connected_components(links_between, directed=False)
    classes = {
        handle: labels[start[handle] : start[handle] + len(found)] for handle, found in indices.items()
    }
    return Reached(indices, classes, count)
