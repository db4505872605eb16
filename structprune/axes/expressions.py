"""Expressions, their normal form, and freezing."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Frozen:
    """Why positions must all stay, and the user's line (``file.py:12``, or empty) that says so."""

    reason: str
    where: str = ""

    def __str__(self) -> str:
        return f"{self.reason} ({self.where})" if self.where else self.reason


KERNEL = Frozen("the kernel's extent")
"""The one reason that says: these positions are no channels at all, and need no mention."""


class AxisError(ValueError):
    """Two dimensions were said to be equal that cannot be: a mistake in a rule, never in the user's model."""


Why = Callable[[], Frozen]
"""Called only when something has to be frozen: finding the user's line costs more than the algebra does."""


Meet = Callable[["Atom", "Atom"], None]
"""Called with two atoms that face each other."""


class Expr:
    """A dimension of ``size`` positions."""

    __slots__ = ("size",)
    size: int


class Const(Expr):
    """Positions that all stay; ``why`` is known where the dimension is fixed by something worth naming."""

    __slots__ = ("why",)

    def __init__(self, size: int, why: Frozen | None = None) -> None:
        self.size = size
        self.why = why


class Atom(Expr):
    """Positions that may be removed one by one, unless ``frozen``; ``definition`` is set once more is known."""

    __slots__ = ("definition", "frozen", "uid")
    _uids = itertools.count()

    def __init__(self, size: int, frozen: Frozen | None = None) -> None:
        self.size = size
        self.frozen = frozen
        self.definition: Expr | None = None
        self.uid = next(Atom._uids)


class Sum(Expr):
    """The concatenation of ``parts``; build it with `total`."""

    __slots__ = ("parts",)

    def __init__(self, parts: tuple[Expr, ...]) -> None:
        self.parts = parts
        self.size = sum(part.size for part in parts)


class Prod(Expr):
    """The row-major product of ``factors``, outermost first; build it with `product`."""

    __slots__ = ("factors",)

    def __init__(self, factors: tuple[Expr, ...]) -> None:
        self.factors = factors
        self.size = math.prod(factor.size for factor in factors)


class Table(Expr):
    """A dimension written down position by position: what an engine found that knows nothing of products and sums.

    ``parts`` are atoms, each with the index it has at every position (int64 ``[size]``, -1: no say); ``extent`` is a
    dimension of the same size under every choice. A table is made once all atoms are final, and is never unified.
    """

    __slots__ = ("extent", "parts")

    def __init__(self, parts: tuple[tuple[Atom, np.ndarray], ...], extent: Expr) -> None:
        self.parts = parts
        self.extent = extent
        self.size = extent.size


_UNIT = Const(1)


def atom(size: int, frozen: Frozen | None = None) -> Expr:
    """Return a new axis of ``size`` positions; one position alone can never go, so it is constant."""
    return Atom(size, frozen) if size > 1 else Const(size, frozen)


def total(parts: Iterable[Expr]) -> Expr:
    """Return the concatenation of ``parts`` in normal form: flat, no empty part, neighbouring constants joined."""
    flat: list[Expr] = []
    for part in parts:
        part = normal(part)
        for piece in part.parts if isinstance(part, Sum) else (part,):
            if piece.size == 0:
                continue
            if flat and isinstance(piece, Const) and isinstance(flat[-1], Const):
                flat[-1] = Const(flat[-1].size + piece.size, flat[-1].why or piece.why)
            else:
                flat.append(piece)
    if not flat:
        return Const(0)
    return flat[0] if len(flat) == 1 else Sum(tuple(flat))


def product(factors: Iterable[Expr]) -> Expr:
    """Return the row-major product of ``factors`` in normal form: flat, no unit, neighbouring constants joined."""
    flat: list[Expr] = []
    for item in factors:
        item = normal(item)
        for piece in item.factors if isinstance(item, Prod) else (item,):
            if piece.size == 0:
                return Const(0)
            if piece.size == 1:
                continue
            if flat and isinstance(piece, Const) and isinstance(flat[-1], Const):
                flat[-1] = Const(flat[-1].size * piece.size, flat[-1].why or piece.why)
            else:
                flat.append(piece)
    if not flat:
        return _UNIT
    return flat[0] if len(flat) == 1 else Prod(tuple(flat))


def normal(expr: Expr) -> Expr:
    """Return ``expr`` with every definition put in its place; the same object where nothing has changed."""
    if isinstance(expr, Atom):
        if expr.definition is None:
            return expr
        expr.definition = normal(expr.definition)
        return expr.definition
    if isinstance(expr, Sum):
        return expr if _settled(expr.parts) else total(expr.parts)
    if isinstance(expr, Prod):
        return expr if _settled(expr.factors) else product(expr.factors)
    return expr


def _settled(items: Sequence[Expr]) -> bool:
    return all(item.definition is None if isinstance(item, Atom) else normal(item) is item for item in items)


def leaves(expr: Expr) -> Iterator[Atom]:
    """Yield the atoms of ``expr``, left to right, an atom as often as it occurs."""
    expr = normal(expr)
    if isinstance(expr, Atom):
        yield expr
    elif isinstance(expr, Sum):
        for part in expr.parts:
            yield from leaves(part)
    elif isinstance(expr, Prod):
        for item in expr.factors:
            yield from leaves(item)
    elif isinstance(expr, Table):
        yield from (leaf for leaf, _ in expr.parts)


def freeze(expr: Expr, why: Frozen) -> None:
    """Freeze every atom of ``expr``; an atom that is frozen already keeps its first reason."""
    for leaf in leaves(expr):
        if leaf.frozen is None:
            leaf.frozen = why
