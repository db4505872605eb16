"""What a dimension says: which channel each position belongs to, its size under a choice, its text."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from structprune.axes.expressions import Atom, Const, Expr, Prod, Sum, Table, normal


def members(expr: Expr) -> list[tuple[Atom, np.ndarray]]:
    """Return for each occurrence of an atom the index it has at every position (int64 ``[size]``, -1: no say)."""
    expr = normal(expr)
    if isinstance(expr, Const):
        return []
    if isinstance(expr, Atom):
        return [(expr, np.arange(expr.size, dtype=np.int64))]
    if isinstance(expr, Table):
        return list(expr.parts)
    found: list[tuple[Atom, np.ndarray]] = []
    if isinstance(expr, Sum):
        start = 0
        for part in expr.parts:
            for leaf, index in members(part):
                wide = np.full(expr.size, -1, dtype=np.int64)
                wide[start : start + part.size] = index
                found.append((leaf, wide))
            start += part.size
        return found
    assert isinstance(expr, Prod)
    before = 1
    for item in expr.factors:
        after = expr.size // (before * item.size)
        for leaf, index in members(item):
            found.append((leaf, np.tile(np.repeat(index, after), before)))
        before *= item.size
    return found


def size_under(expr: Expr, counts: Mapping[Atom, int]) -> int:
    """Return the positions of ``expr`` that are left when each atom keeps ``counts`` of its own (absent: all)."""
    expr = normal(expr)
    if isinstance(expr, Atom):
        return counts.get(expr, expr.size)
    if isinstance(expr, Sum):
        return sum(size_under(part, counts) for part in expr.parts)
    if isinstance(expr, Prod):
        return math.prod(size_under(item, counts) for item in expr.factors)
    if isinstance(expr, Table):
        return size_under(expr.extent, counts)
    return expr.size


def show(expr: Expr, names: Mapping[Atom, str] | None = None) -> str:
    """Return ``expr`` einops-like: ``[a b]`` a product, ``(a + b)`` a concatenation, numbers for constants.

    ``{a + 2}`` is a table: how many positions go with what, not which.
    """
    expr = normal(expr)
    if isinstance(expr, Atom):
        return (names or {}).get(expr) or f"a{expr.uid}"
    if isinstance(expr, Sum):
        return "(" + " + ".join(show(part, names) for part in expr.parts) + ")"
    if isinstance(expr, Prod):
        return "[" + " ".join(show(item, names) for item in expr.factors) + "]"
    if isinstance(expr, Table):
        return "{" + show(expr.extent, names) + "}"
    return str(expr.size)
