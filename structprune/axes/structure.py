"""Learning more about dimensions: joining two, cutting one, factoring one, viewing several anew."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from structprune.axes.expressions import (
    Atom,
    AxisError,
    Const,
    Expr,
    Meet,
    Prod,
    Sum,
    Why,
    atom,
    freeze,
    leaves,
    normal,
    product,
    total,
)

_UNIT = Const(1)


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
