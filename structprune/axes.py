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

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = [
    "KERNEL",
    "Atom",
    "AxisError",
    "Const",
    "Expr",
    "Frozen",
    "Prod",
    "Sum",
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


def freeze(expr: Expr, why: Frozen) -> None:
    """Freeze every atom of ``expr``; an atom that is frozen already keeps its first reason."""
    for leaf in leaves(expr):
        if leaf.frozen is None:
            leaf.frozen = why


def unify(a: Expr, b: Expr, why: Why, meet: Meet | None = None) -> None:
    """Make ``a`` and ``b`` keep the same positions; where no expression says so, both are frozen with ``why()``.

    With ``meet`` they only get the same structure: it is called with each pair of atoms that face each other, which
    stay two. Raises AxisError where the sizes differ.
    """
    a, b = normal(a), normal(b)
    if a is b:
        return
    if a.size != b.size:
        raise AxisError(f"dimensions of {a.size} and {b.size} positions cannot be equal")
    if isinstance(a, Const) or isinstance(b, Const):
        _unify_const(a, b, why)
    elif isinstance(a, Atom) and isinstance(b, Atom):
        old, new = (a, b) if a.uid < b.uid else (b, a)
        if meet is None:
            _define(new, old)
        else:
            meet(old, new)
    elif isinstance(a, Atom):
        _define(a, b if meet is None else _mirrored(b, meet))
    elif isinstance(b, Atom):
        _define(b, a if meet is None else _mirrored(a, meet))
    elif isinstance(a, Sum):
        _unify_sum(a, b, why, meet)
    elif isinstance(b, Sum):
        _unify_sum(b, a, why, meet)
    elif isinstance(a, Prod) and isinstance(b, Prod):
        _unify_products(a, b, why, meet)


def _mirrored(expr: Expr, meet: Meet) -> Expr:
    """Return an expression of the same structure over atoms of its own, each met with the one it mirrors."""
    expr = normal(expr)
    if isinstance(expr, Atom):
        other = Atom(expr.size)
        meet(expr, other)
        return other
    if isinstance(expr, Sum):
        return total([_mirrored(part, meet) for part in expr.parts])
    if isinstance(expr, Prod):
        return product([_mirrored(item, meet) for item in expr.factors])
    return Const(expr.size)


def _define(target: Atom, expr: Expr) -> None:
    target.definition = expr
    if target.frozen is not None:
        freeze(expr, target.frozen)


def _unify_const(a: Expr, b: Expr, why: Why) -> None:
    fixed, other = (a, b) if isinstance(a, Const) else (b, a)
    if not isinstance(other, Const) and any(leaf.frozen is None for leaf in leaves(other)):
        known = fixed.why if isinstance(fixed, Const) else None
        freeze(other, known or why())


def _unify_sum(a: Sum, b: Expr, why: Why, meet: Meet | None) -> None:
    if isinstance(b, Sum) and [part.size for part in a.parts] == [part.size for part in b.parts]:
        for mine, other in zip(a.parts, b.parts, strict=True):
            unify(mine, other, why, meet)
        return
    rest = b
    for part in a.parts[:-1]:
        left, rest = split(rest, part.size, why)
        unify(part, left, why, meet)
    unify(a.parts[-1], rest, why, meet)


def _unify_products(a: Prod, b: Prod, why: Why, meet: Meet | None) -> None:
    left, right = [a.factors[0], *a.factors[1:]], [b.factors[0], *b.factors[1:]]
    while left and right:
        x, y = _pop_inner(left), _pop_inner(right)
        if x.size == y.size:
            unify(x, y, why, meet)
            continue
        wide, narrow, stack = (x, y, left) if x.size > y.size else (y, x, right)
        if wide.size % narrow.size:
            for expr in (x, y, *left, *right):
                freeze(expr, why())
            return
        outer, inner = factor(wide, wide.size // narrow.size, why)
        stack.append(outer)
        unify(inner, narrow, why, meet)


def _pop_inner(stack: list[Expr]) -> Expr:
    last = normal(stack.pop())
    if isinstance(last, Prod):
        stack.extend(last.factors[:-1])
        return last.factors[-1]
    return last


def split(expr: Expr, at: int, why: Why) -> tuple[Expr, Expr]:
    """Return the first ``at`` positions of ``expr`` and the rest; an atom is cut in two for good."""
    expr = normal(expr)
    if at <= 0 or at >= expr.size:
        return (Const(0), expr) if at <= 0 else (expr, Const(0))
    if isinstance(expr, Const):
        return Const(at, expr.why), Const(expr.size - at, expr.why)
    if isinstance(expr, Atom):
        left, right = atom(at, expr.frozen), atom(expr.size - at, expr.frozen)
        expr.definition = total((left, right))
        return left, right
    if isinstance(expr, Sum):
        return _split_sum(expr, at, why)
    assert isinstance(expr, Prod)
    return _split_product(expr, at, why)


def _split_sum(expr: Sum, at: int, why: Why) -> tuple[Expr, Expr]:
    left: list[Expr] = []
    for number, part in enumerate(expr.parts):
        if at < part.size:
            head, tail = split(part, at, why)
            return total((*left, head)), total((tail, *expr.parts[number + 1 :]))
        left.append(part)
        at -= part.size
    raise AssertionError("the cut lies inside the dimension")


def _split_product(expr: Prod, at: int, why: Why) -> tuple[Expr, Expr]:
    lead, rest = expr.factors[0], product(expr.factors[1:])
    whole, extra = divmod(at, rest.size)
    if not extra:
        first, second = split(lead, whole, why)
        return product((first, rest)), product((second, rest))
    # The cut falls inside one element of the leading factor. That element must stay, so it is a constant of its own.
    before, others = split(lead, whole, why)
    _, after = split(others, 1, why)
    head, tail = split(rest, extra, why)
    return total((product((before, rest)), head)), total((tail, product((after, rest))))


def factor(expr: Expr, outer: int, why: Why) -> tuple[Expr, Expr]:
    """Return (outer, inner) with ``expr == [outer inner]``; frozen with ``why()`` where no product says so."""
    expr = normal(expr)
    inner = expr.size // outer
    if outer * inner != expr.size:
        raise AxisError(f"{expr.size} positions are no product of {outer} and anything")
    if outer == 1 or inner == 1:
        return (_UNIT, expr) if outer == 1 else (expr, _UNIT)
    if isinstance(expr, Const):
        return Const(outer, expr.why), Const(inner, expr.why)
    if isinstance(expr, Atom):
        first, second = atom(outer, expr.frozen), atom(inner, expr.frozen)
        expr.definition = product((first, second))
        return first, second
    if isinstance(expr, Prod):
        return _factor_product(expr, inner, why)
    assert isinstance(expr, Sum)
    return _factor_sum(expr, outer, inner, why)


def _factor_product(expr: Prod, inner: int, why: Why) -> tuple[Expr, Expr]:
    stack, taken, missing = list(expr.factors), [], inner
    while missing > 1:
        last = _pop_inner(stack)
        if last.size <= missing and missing % last.size == 0:
            taken.append(last)
            missing //= last.size
        elif last.size % missing == 0:
            head, tail = factor(last, last.size // missing, why)
            stack.append(head)
            taken.append(tail)
            missing = 1
        else:
            return _opaque(expr, inner, why)
    return product(stack), product(reversed(taken))


def _factor_sum(expr: Sum, outer: int, inner: int, why: Why) -> tuple[Expr, Expr]:
    if all(part.size % inner == 0 for part in expr.parts):
        pairs = [factor(part, part.size // inner, why) for part in expr.parts]
        for _, other in pairs[1:]:
            unify(pairs[0][1], other, why)
        return total(head for head, _ in pairs), normal(pairs[0][1])
    boundaries = set(itertools.accumulate(part.size for part in expr.parts))
    if not all(inner * step in boundaries for step in range(1, outer + 1)):
        return _opaque(expr, inner, why)
    rest: Expr = expr
    rows = []
    for _ in range(outer):
        row, rest = split(rest, inner, why)
        rows.append(row)
    for row in rows[1:]:
        unify(rows[0], row, why)
    return Const(outer), normal(rows[0])


def _opaque(expr: Expr, inner: int, why: Why) -> tuple[Expr, Expr]:
    reason = why()
    freeze(expr, reason)
    return Const(expr.size // inner, reason), Const(inner, reason)


def reshape(dims: Sequence[Expr], sizes: Sequence[int], why: Why) -> list[Expr]:
    """Return the expressions of ``dims`` viewed as ``sizes``: the smallest runs of equal product are factored anew."""
    if 0 in sizes:
        return [Const(size) for size in sizes]
    out: list[Expr] = []
    source = [dim for dim in dims if dim.size != 1]
    position = 0
    run: Expr = _UNIT
    for size in sizes:
        if size == 1:
            out.append(_UNIT)
            continue
        while run.size % size or run.size < size:
            if position == len(source):
                raise AxisError(f"sizes {[dim.size for dim in dims]} cannot be viewed as {list(sizes)}")
            run = product((run, source[position]))
            position += 1
        head, run = factor(run, size, why)
        out.append(head)
    if run.size != 1 or position != len(source):
        raise AxisError(f"sizes {[dim.size for dim in dims]} cannot be viewed as {list(sizes)}")
    return out


def members(expr: Expr) -> list[tuple[Atom, np.ndarray]]:
    """Return for each occurrence of an atom the index it has at every position (int64 ``[size]``, -1: no say)."""
    expr = normal(expr)
    if isinstance(expr, Const):
        return []
    if isinstance(expr, Atom):
        return [(expr, np.arange(expr.size, dtype=np.int64))]
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
    return expr.size


def show(expr: Expr, names: Mapping[Atom, str] | None = None) -> str:
    """Return ``expr`` einops-like: ``[a b]`` a product, ``(a + b)`` a concatenation, numbers for constants."""
    expr = normal(expr)
    if isinstance(expr, Atom):
        return (names or {}).get(expr) or f"a{expr.uid}"
    if isinstance(expr, Sum):
        return "(" + " + ".join(show(part, names) for part in expr.parts) + ")"
    if isinstance(expr, Prod):
        return "[" + " ".join(show(item, names) for item in expr.factors) + "]"
    return str(expr.size)
