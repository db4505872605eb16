"""What a traced run leaves behind of each operation: its layer, and the storages and dimensions that it met."""

from __future__ import annotations

import hashlib
import itertools
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from structprune.rules.context import Context, Dims, constants

__all__ = ["LAYOUT", "Held", "Places", "Record", "Step", "operations_digest"]

LAYOUT = frozenset(("view", "_unsafe_view", "_reshape_alias", "clone", "contiguous", "detach", "alias"))
"""Operations that only settle how a tensor lies in memory: what is cut or masked lies otherwise."""


class Held(NamedTuple):
    """A tensor as it lies in memory: the number of its storage, its dimensions, and the bytes of one element."""

    place: int
    dims: Dims
    itemsize: int


@dataclass(frozen=True, slots=True)
class Record:
    """One operation as it ran: its layer, the dimensions it was given, the storages it read, and what it returned."""

    layer: str
    operation: str
    given: tuple[Dims, ...]
    reads: tuple[int, ...]
    writes: tuple[Held, ...]


@dataclass(slots=True)
class Step:
    """One call of torch's Python interface, with the numbers in it that are no sizes.

    Which operations it is made of is torch's own choice, by memory layout too. ``layer`` is the one in which it works
    on what follows from the model's inputs (None: it does not), and ``settings`` are how.
    """

    function: str
    numbers: list[object]
    where: str = ""
    layer: str | None = None
    settings: set[str] = field(default_factory=set)


def operations_digest(steps: Iterable[Step]) -> str:
    """The sha256 (hex) of what is done to the model's inputs, in order: the layer, the function and its settings.

    Left out is how tensors lie in memory, and what is worked out from constants alone, which code may remember.
    """
    digest = hashlib.sha256()
    for step in steps:
        if step.layer is not None and step.function.strip("_") not in LAYOUT:
            said = (step.layer, step.function.strip("_"), *sorted(step.settings))
            digest.update(repr(said).encode())
    return digest.hexdigest()


class Places:
    """The storages of a run, numbered: each number is one storage's, though objects come and go at its address."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._numbers = itertools.count()
        self._known: dict[int, tuple[weakref.ref[Any], int]] = {}

    def held(self, tensor: torch.Tensor) -> Held:
        """Return a tensor as it lies in memory."""
        dims = self._context.dims.get(tensor) or constants(tensor)
        return Held(self.of(tensor), dims, tensor.element_size())

    def of(self, tensor: torch.Tensor) -> int:
        """Return a number for the storage of a tensor that no other storage of the run has."""
        storage = tensor.untyped_storage() if tensor.layout == torch.strided else tensor
        known = self._known.get(id(storage))
        if (
            known is None or known[0]() is not storage
        ):  # the number of an object that is gone may be given again
            known = (weakref.ref(storage), next(self._numbers))
            self._known[id(storage)] = known
        return known[1]
