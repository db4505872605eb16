"""What a trace collects from the rules: dimensions of tensors, demands on integers, costs, sites."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import torch

from structprune import axes
from structprune.axes import Const, Expr
from structprune.lineage import Lineage
from structprune.provenance import Ledger

__all__ = ["Context", "Dims", "FunctionCall", "Site", "Uncovered", "constants", "free", "iter_tensors"]

Dims = tuple[Expr, ...]


class Uncovered(Exception):
    """A rule does not cover the form an operation was called in; what it touches is frozen with this reason."""


@dataclass(slots=True)
class FunctionCall:
    """The call of torch's Python interface that is under way, with the integers the user gave it."""

    name: str
    ints: list[int]
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    used: set[int] = field(default_factory=set)
    traced: bool = False


@dataclass(frozen=True, slots=True)
class Site:
    """An operation that reads across a dimension: where removed positions must not be listened to.

    ``axes`` names, for a contraction, the dimension of each argument in which removed positions count as zero. A
    statistic has none: it is taken over the kept positions of all arguments, and ``integers`` are those that state a
    size. ``changes`` says what a cut of ``over`` changes about the result (empty: nothing).
    """

    index: int
    operation: str
    where: str
    layer: str
    arguments: Mapping[str, Dims]
    reduced: Dims
    axes: Mapping[str, int] = field(default_factory=dict)
    outputs: tuple[Dims, ...] = ()
    integers: Mapping[str, Expr | tuple[Expr, ...]] = field(default_factory=dict)
    changes: str = ""
    over: Dims = ()


@dataclass(slots=True)
class Context:
    """The state of one trace: dimensions of tensors, demands on integers, costs, sites.

    ``across`` holds for each operation, by its number, the dimensions that it reads across; ``told_apart`` those whose
    positions some operation treats by number or by order.
    """

    dims: MutableMapping[Any, Dims]
    ledger: Ledger = field(default_factory=Ledger)
    function: FunctionCall | None = None
    index: int = 0
    layer: str = ""
    produced: list[Expr] = field(default_factory=list)
    consumed: list[Expr] = field(default_factory=list)
    roles: dict[int, str] = field(default_factory=dict)
    sites: list[Site] = field(default_factory=list)
    across: dict[int, list[Expr]] = field(default_factory=dict)
    told_apart: list[Expr] = field(default_factory=list)
    costs: list[tuple[str, str, tuple[Expr, ...]]] = field(default_factory=list)
    foreign: set[str] = field(default_factory=set)
    live: MutableMapping[Any, Any] = field(default_factory=dict)  # what inputs reach: who made its values
    derived: MutableMapping[Any, Any] = field(default_factory=dict)  # so for what layers made of none
    #: tensors that may scale channels, and products of such: the dimensions of their numbers
    factors: MutableMapping[Any, Dims] = field(default_factory=dict)
    lineage: Lineage = field(default_factory=Lineage)
    exposed: bool = False  # whether code of the user's was handed a size that may change
    #: of each layer, for each of its runs: the dimensions of its result, the first tensor of it if there are several
    results: dict[str, list[Dims]] = field(default_factory=dict)


def free(expr: Expr) -> bool:
    """Return whether any atom of ``expr`` may still be cut."""
    if isinstance(expr, Const):
        return False
    return any(leaf.frozen is None for leaf in axes.leaves(expr))


def constants(tensor: torch.Tensor) -> Dims:
    """Return dimensions that never change, one for each of ``tensor``'s."""
    return tuple(Const(size) for size in tensor.shape)


_PLAIN = frozenset((int, bool, float, str, type(None)))
_SEQUENCES = (list, tuple)


def iter_tensors(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    """Yield the tensors in ``values`` and in lists and tuples inside."""
    found: list[torch.Tensor] = []
    _collect(values, found)
    return iter(found)


def _collect(values: Iterable[Any], found: list[torch.Tensor]) -> None:
    for value in values:
        if type(value) in _PLAIN:  # most of what operations are given; this runs several times for each
            continue
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, _SEQUENCES):
            _collect(value, found)
