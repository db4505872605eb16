"""From classes of channels, as another engine found them, to a dependency graph.

Classes that reach into the same tensor dimensions, equally often, are the channels of one group. A traced run gives the
prices: its axes are told how many of their positions each group takes along.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import nn

from structprune import axes
from structprune.assembly import graph_of
from structprune.axes import KERNEL, Atom, Const, Expr, Frozen, Table, product, total
from structprune.constraints import Settlement
from structprune.graph import DependencyGraph
from structprune.nodes import Attribute
from structprune.trace import Run

__all__ = ["Findings", "Local", "graph_from"]

_UNREACHED = Frozen("torch-pruning sees no channels here")
_Place = tuple[str, int]


@dataclass(frozen=True)
class Local:
    """The classes that one layer sees (int64 ``[k]``), and at each of its indices the number of its class there."""

    classes: np.ndarray
    channels: np.ndarray

    def classes_at(self, channels: np.ndarray) -> np.ndarray:
        """Return the class at each position from the layer's own number for it; -1 stays -1."""
        return np.where(channels >= 0, np.append(self.classes, -1)[channels], -1)


@dataclass
class Findings:
    """What an engine found about ``count`` classes of channels.

    ``places`` gives for each tensor and dimension the class of every position (int64, -1: none), ``integers`` for each
    attribute the classes with which it falls and by how much, ``frozen`` the reason of every class that must stay.
    """

    count: int
    places: dict[_Place, np.ndarray] = field(default_factory=dict)
    integers: dict[Attribute, list[tuple[int, np.ndarray]]] = field(default_factory=dict)
    frozen: dict[int, Frozen] = field(default_factory=dict)

    def freeze(self, classes: Iterable[int], why: Frozen) -> None:
        """Keep these classes whole; one that is frozen already keeps its first reason."""
        for number in classes:
            self.frozen.setdefault(int(number), why)

    def local(self, indices: np.ndarray, classes: np.ndarray, width: int) -> Local | None:
        """Return the classes of a layer of ``width`` channels; None where one class is all there is."""
        known, numbers = np.unique(classes, return_inverse=True)
        channels = np.full(width, -1, dtype=np.int64)
        channels[indices] = numbers
        return None if len(known) == 1 and len(indices) == width else Local(known, channels)

    def add(self, tensor: str, dim: int, classes: np.ndarray) -> None:
        """Note the classes of a dimension; where two claim a position, both must stay."""
        known = self.places.setdefault((tensor, dim), classes)
        clash = (known >= 0) & (classes >= 0) & (known != classes)
        why = Frozen(f"torch-pruning cuts dimension {dim} of {tensor!r} with two groups at once")
        self.freeze(np.concatenate([known[clash], classes[clash]]), why)
        self.places[tensor, dim] = np.where(known >= 0, known, classes)

    def follow(
        self, module: str, path: tuple[str | int, ...], number: int, slope: int, classes: np.ndarray
    ) -> None:
        """Note that an integer falls by ``slope`` for each of the classes."""
        self.integers.setdefault(Attribute(module, path, number), []).append((slope, classes))


def graph_from(found: Findings, run: Run, model: nn.Module) -> DependencyGraph:
    """Return the dependency graph of what was found; ``run`` is a traced run of the model, not settled yet."""
    channels = _Channels(found, list(run.named))
    sizes = _known_sizes(run, found.places, channels)
    named: dict[str, tuple[Expr, ...]] = {}
    for name, dims in run.named.items():
        new = []
        for number, dim in enumerate(dims):
            classes = found.places.get((name, number))
            new.append(_unreached(dim, sizes) if classes is None else channels.table(classes))
            if id(dim) in run.context.roles:
                run.context.roles[id(new[-1])] = run.context.roles[id(dim)]
        named[name] = tuple(new)
    for leaf, size in sizes.items():
        leaf.definition = size
    settled = Settlement(
        {place: channels.integer(place.number, parts) for place, parts in found.integers.items()}
    )
    return graph_of(dataclasses.replace(run, named=named), settled, model)


def _unreached(dim: Expr, sizes: Mapping[Atom, Expr]) -> Expr:
    """Return a dimension that no group reaches into, frozen; an axis that is cut elsewhere cannot stand for it."""
    leaves = list(axes.leaves(dim))
    for leaf in leaves:
        if leaf.frozen is None and leaf not in sizes:
            leaf.frozen = _UNREACHED
    if not any(leaf in sizes for leaf in leaves):
        return dim
    return Atom(dim.size, next((leaf.frozen for leaf in leaves if leaf.frozen is not None), _UNREACHED))


def _is_kernel(dim: Expr) -> bool:
    return any(leaf.frozen is KERNEL for leaf in axes.leaves(dim))


class _Channels:
    """The groups' axes, and for each class its axis (a number, -1: none) and its index there."""

    def __init__(self, found: Findings, order: Sequence[str]) -> None:
        self.atoms: list[Atom] = []
        self.owner = np.full(found.count + 1, -1, dtype=np.int64)  # the last one is class -1: none
        self.index = np.full(found.count + 1, -1, dtype=np.int64)
        for (_, why), classes in _alike(found, order).items():
            if len(classes) > 1:  # one alone can never go
                self.owner[classes] = len(self.atoms)
                self.index[classes] = np.arange(len(classes))
                self.atoms.append(Atom(len(classes), why))

    def table(self, classes: np.ndarray) -> Expr:
        """Return the dimension whose positions belong to ``classes``."""
        owner, index = self.owner[classes], self.index[classes]
        present = np.unique(owner[owner >= 0]).tolist()
        parts = tuple((self.atoms[number], np.where(owner == number, index, -1)) for number in present)
        return Table(parts, self.extent(classes))

    def extent(self, classes: np.ndarray) -> Expr:
        """Return a dimension with as many positions as belong to kept classes, under every choice."""
        owners, counts = np.unique(self.owner[classes], return_counts=True)
        return self.sum(len(classes), dict(zip(owners.tolist(), counts.tolist(), strict=True)))

    def integer(self, number: int, parts: Iterable[tuple[int, np.ndarray]]) -> Expr:
        """Return an integer that falls from ``number`` by a slope with each of some classes, as a size."""
        falls: dict[int, int] = {}
        for slope, classes in parts:
            for owner, count in zip(*np.unique(self.owner[classes], return_counts=True), strict=True):
                falls[int(owner)] = falls.get(int(owner), 0) + slope * int(count)
        return self.sum(number, falls)

    def sum(self, whole: int, shares: Mapping[int, int]) -> Expr:
        """Return a size of ``whole``, of which each axis holds a share; what no axis divides stays."""
        terms: list[Expr] = []
        for number, share in sorted(shares.items()):
            if number >= 0 and share % self.atoms[number].size == 0:
                terms.append(product((Const(share // self.atoms[number].size), self.atoms[number])))
                whole -= share
        return total((*terms, Const(whole)))


def _alike(
    found: Findings, order: Sequence[str]
) -> dict[tuple[tuple[tuple[int, int], ...], Frozen | None], list[int]]:
    """Return the classes that reach into the same dimensions equally often, in the order of their first position."""
    rank = {name: number for number, name in enumerate(order)}
    reach: dict[int, list[tuple[int, int]]] = {}
    for number, place in enumerate(sorted(found.places, key=lambda place: (rank[place[0]], place[1]))):
        here, first, counts = np.unique(found.places[place], return_index=True, return_counts=True)
        for i in np.argsort(first):
            if here[i] >= 0:
                reach.setdefault(int(here[i]), []).append((number, int(counts[i])))
    alike: dict[tuple[tuple[tuple[int, int], ...], Frozen | None], list[int]] = {}
    for number, places in reach.items():
        alike.setdefault((tuple(places), found.frozen.get(number)), []).append(number)
    return alike


def _known_sizes(run: Run, places: Mapping[_Place, np.ndarray], channels: _Channels) -> dict[Atom, Expr]:
    """Return for the axes of a traced run how many of their positions go with the channels that were found."""
    known: dict[Atom, Expr] = {}
    for name, dims in run.named.items():
        for number, dim in enumerate(dims):
            classes = places.get((name, number))
            if classes is None:
                continue
            for leaf, index in axes.members(dim):
                if isinstance(known.get(leaf, Const(0)), Const):
                    known[leaf] = channels.extent(_classes_of(leaf, index, classes))
    return known


def _classes_of(leaf: Atom, index: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return the class of every index of an axis, -1 where its positions are of several."""
    spoken = index >= 0
    low = np.full(leaf.size, np.iinfo(np.int64).max)
    high = np.full(leaf.size, -2)
    np.minimum.at(low, index[spoken], classes[spoken])
    np.maximum.at(high, index[spoken], classes[spoken])
    return np.where(low == high, high, -1)
