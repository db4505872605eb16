"""The axis algebra: what every dimension of every tensor is made of.

A dimension is an expression: ``Const(n)`` (positions that all stay), ``Atom(n)`` (positions that may be removed),
``Sum(parts)`` (a concatenation) or ``Prod(factors)`` (a row-major product, outermost factor first). An atom may later
be *defined* as an expression, or *merged* with another atom; every expression that mentions it changes with it. So an
equality learned late in a network refines what was inferred early, and no pass over the network is run twice.

A position of a dimension stays exactly when every atom that speaks there keeps its index (`members`). The operations
below only ever make that condition stronger. What cannot be expressed is frozen, with the reason: unknown means less
pruning, never a wrong network. Dimensions of one position carry no freedom and are all ``Const(1)``.
"""

from __future__ import annotations

from structprune.axes.expressions import (
    KERNEL,
    Atom,
    AxisError,
    Const,
    Expr,
    Frozen,
    Meet,
    Prod,
    Sum,
    Table,
    Why,
    atom,
    freeze,
    leaves,
    normal,
    product,
    total,
)
from structprune.axes.reading import members, show, size_under
from structprune.axes.structure import factor, reshape, split, unify

__all__ = [
    "KERNEL",
    "Atom",
    "AxisError",
    "Const",
    "Expr",
    "Frozen",
    "Meet",
    "Prod",
    "Sum",
    "Table",
    "Why",
    "atom",
    "factor",
    "freeze",
    "leaves",
    "members",
    "normal",
    "product",
    "reshape",
    "show",
    "size_under",
    "split",
    "total",
    "unify",
]
