"""Which axes may keep their own indices in every position of others: each head its own widths, each group of a
convolution its own channels.

An axis ``i`` may be ragged over an axis ``g`` if the network does not notice when the positions of ``i`` are put in
another order in each ``g``. That holds where

1. every tensor that has ``i`` has ``g``, with a ``g`` that belongs to each ``i``: beside it in a product
   (``[g i]``), or as the only one, in another dimension (``[g o], i``);
2. no operation reads across ``g`` and leaves ``i`` as it is (a mean over heads, a softmax over groups), or treats the
   positions of ``g`` by number or by order;
3. where operands meet in ``i`` and its ``g`` lies in another dimension, it is the same ``g`` in both: the result has
   it once (``q k`` per head), not twice (every head's ``q`` with every head's ``k``).

A vector of length ``i`` alone (a rotary table, the weight of a norm over the head width) breaks the first rule. What
cannot be told is not ragged: the same indices in all ``g`` are always right.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from structprune import axes
from structprune.axes import KERNEL, Atom, Const, Expr, Prod, Sum
from structprune.cutting import Place, partner, places
from structprune.rules.context import Dims
from structprune.trace import Record, Run

__all__ = ["outer_axes"]

_Company = dict[Atom, set[Atom]]


def outer_axes(run: Run) -> dict[Atom, tuple[Atom, ...]]:
    """Return the axes over which each free axis may be ragged; axes that may not are left out."""
    company = _company(run.named.values())
    _drop(company, set())
    known, seen = _Known(), set[Atom]()
    for one in (run, *run.turned) if company else ():
        _drop(company, known.of(one.context.told_apart))
        for number, record in enumerate(one.records):
            seen |= _judge(company, record, one.context.across.get(number, ()), known)
    for leaf in set(company) - seen:  # no operation of this run says anything about it
        del company[leaf]
    for dims in run.named.values() if company else ():
        for leaf in known.of(dims) & company.keys():
            company[leaf] = {outer for outer in company[leaf] if _paired(dims, leaf, outer)}
    return _oriented({leaf: outers for leaf, outers in company.items() if outers})


def _company(tensors: Iterable[Dims]) -> _Company:
    """Return for each free axis those that every one of these tensors has beside it."""
    company: _Company = {}
    seen: dict[int, tuple[Expr, list[tuple[Atom, set[Atom]]]]] = {}
    for dims in sorted(tensors, key=len):  # vectors first: most axes turn out to stand alone in one
        read = [axes.normal(dim) for dim in dims]
        for number, dim in enumerate(read):
            if id(dim) not in seen:
                seen[id(dim)] = (dim, list(_beside(dim, set())))
            around: set[Atom] | None = None
            for leaf, beside in seen[id(dim)][1]:
                if leaf.frozen is not None or company.get(leaf, True) == set():
                    continue
                if around is None:
                    around = {top for other in read[:number] + read[number + 1 :] for top in _tops(other)}
                found = (beside | around) - {leaf}
                company[leaf] = company[leaf] & found if leaf in company else found
    return company


def _beside(expr: Expr, around: set[Atom]) -> Iterator[tuple[Atom, set[Atom]]]:
    """Yield each leaf of a dimension with the axes that have an index wherever it has one."""
    if isinstance(expr, Atom):
        yield expr, around
    elif isinstance(expr, Sum):
        for part in expr.parts:
            yield from _beside(part, around)
    elif isinstance(expr, Prod):
        for item in expr.factors:
            yield from _beside(
                item, around | {x for x in expr.factors if isinstance(x, Atom) and x is not item}
            )


def _tops(expr: Expr) -> list[Atom]:
    """Return the axes that have an index at every position of a dimension."""
    items = expr.factors if isinstance(expr, Prod) else (expr,)
    return [item for item in items if isinstance(item, Atom) and item.frozen is not KERNEL]


def _drop(company: _Company, gone: set[Atom]) -> None:
    """Take axes out of all company, and forget those that are left alone."""
    for leaf in list(company):
        company[leaf] -= gone
        if not company[leaf]:
            del company[leaf]


class _Known:
    """The axes of dimensions, looked up once for each expression."""

    def __init__(self) -> None:
        self._found: dict[int, tuple[Expr, frozenset[Atom]]] = {}

    def of(self, dims: Iterable[Expr]) -> set[Atom]:
        """Return the axes of all these dimensions."""
        found: set[Atom] = set()
        for dim in dims:
            if not isinstance(dim, Const):
                if id(dim) not in self._found:
                    self._found[id(dim)] = (dim, frozenset(axes.leaves(dim)))
                found |= self._found[id(dim)][1]
        return found


def _judge(company: _Company, record: Record, across: Sequence[Expr], known: _Known) -> set[Atom]:
    """Take out of the company what this operation forbids; return the axes that it is about."""
    written = [dims for _, dims, _ in record.writes]
    leaves = [known.of(dims) for dims in (*record.given, *written)]
    read = known.of(across)
    concerned: set[Atom] = set().union(*leaves) & company.keys()
    for leaf in concerned:
        given = [dims for dims, has in zip(record.given, leaves, strict=False) if leaf in has]
        made = [dims for dims, has in zip(written, leaves[len(record.given) :], strict=True) if leaf in has]
        mixed = read if leaf not in read else set()
        company[leaf] = {
            outer
            for outer in company[leaf] - mixed
            if all(_paired(dims, leaf, outer) for dims in (*given, *made))
            and _same_outer(leaf, outer, given, written)
            and all(_only_moved(record.given, dims, leaf, outer) for dims in made)
        }
        if not company[leaf]:
            del company[leaf]
    return concerned


def _partners(dims: Dims, leaf: Atom, outer: Atom) -> Iterator[tuple[Place, Place | None]]:
    found = places(dims)
    for number, place in enumerate(found):
        if place.leaf is leaf:
            other = partner(found, number, outer)
            yield place, None if other is None else found[other]


def _paired(dims: Dims, leaf: Atom, outer: Atom) -> bool:
    """Rule 1: each ``leaf`` of a tensor has an ``outer`` that belongs to it."""
    return all(other is not None for _, other in _partners(dims, leaf, outer))


def _same_outer(leaf: Atom, outer: Atom, given: Sequence[Dims], written: Sequence[Dims]) -> bool:
    """Rule 3: operands that meet in ``leaf`` meet in the same ``outer``."""
    if len(given) < 2:
        return True
    apart = any(
        other is not None and other.dim != place.dim
        for dims in given
        for place, other in _partners(dims, leaf, outer)
    )
    return not apart or (bool(written) and _times(written[0], outer) == 1)


def _only_moved(given: Sequence[Dims], made: Dims, leaf: Atom, outer: Atom) -> bool:
    """Where a tensor has several ``outer``, a view that takes its dimensions apart may put one beside the wrong
    ``leaf``: then its dimensions must be those of the operands.
    """
    if _times(made, outer) < 2:
        return True
    concerned = [dim for dim in made if any(x is leaf or x is outer for x in axes.leaves(dim))]
    return all(any(_equal(dim, old) for dims in given for old in dims) for dim in concerned)


def _times(dims: Dims, leaf: Atom) -> int:
    return sum(other is leaf for dim in dims for other in axes.leaves(dim))


def _equal(a: Expr, b: Expr) -> bool:
    a, b = axes.normal(a), axes.normal(b)
    if isinstance(a, Sum) and isinstance(b, Sum) and len(a.parts) == len(b.parts):
        return all(_equal(x, y) for x, y in zip(a.parts, b.parts, strict=True))
    if isinstance(a, Prod) and isinstance(b, Prod) and len(a.factors) == len(b.factors):
        return all(_equal(x, y) for x, y in zip(a.factors, b.factors, strict=True))
    return a is b or (isinstance(a, Const) and isinstance(b, Const) and a.size == b.size)


def _oriented(company: _Company) -> dict[Atom, tuple[Atom, ...]]:
    """Of two axes that are always together the wider is ragged over the other; and what an axis is ragged over must
    not be ragged itself over more than the axis is.
    """
    found: _Company = {}
    for leaf in sorted(company, key=lambda leaf: (-leaf.size, leaf.uid)):
        found[leaf] = {outer for outer in company[leaf] if leaf not in found.get(outer, ())}
    changed = True
    while changed:
        changed = False
        for leaf, outers in found.items():
            kept = {outer for outer in outers if found.get(outer, set()) <= outers}
            changed |= kept != outers
            found[leaf] = kept
    return {leaf: tuple(sorted(outers, key=lambda x: x.uid)) for leaf, outers in found.items() if outers}
