"""What each axis of a traced run is for: heads, a residual stream, the hidden width of an MLP, ...

Told from the flow of values alone (`structprune.lineage`), never from names:

1. Two products of activations of which the second reads the first are an attention, whatever lies between (a softmax,
   a mask, nothing). The axes that both operands and the result share are its heads; what is contracted is compared
   (queries and keys), and what else the result has is the width of values.
2. Where an axis of heads occurs in a weight without another one that it otherwise comes with, several query heads share
   a key head.
3. An axis is residual where activations of one shape are added that different layers made; except in a cell, where
   one of them reads what it made itself: that is recurrent.
4. Other axes go by the layers that make and contract them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import product as combinations

from structprune import axes
from structprune.axes import Atom, Const, Expr, Prod, Sum
from structprune.lineage import Addition, Lineage, Pairing
from structprune.trace import Run

__all__ = ["recognise"]

Atoms = dict[Atom, None]
_MADE_BY_NONE = frozenset(("experts",))  # other kinds are of channels, which a layer makes


def recognise(run: Run) -> Mapping[Atom, str]:
    """Return the kind, one of `structprune.kinds.KINDS`, of every axis of a settled run."""
    return _Recognition(run).kinds


class _Recognition:
    def __init__(self, run: Run) -> None:
        self.run = run
        self.lineage: Lineage = run.context.lineage
        self._leaves: dict[int, tuple[Expr, Atoms]] = {}
        self.kinds: dict[Atom, str] = {}
        consumed, contracted = self.of(run.context.consumed), self.of(self.lineage.contracted)
        outputs = self.of(dim for dims in run.outputs for dim in dims)
        made = self.of(maker.made for maker in self.lineage.makers.values())
        for name, found in self._found():
            for leaf in found:
                if leaf in made or name in _MADE_BY_NONE:
                    self.kinds.setdefault(leaf, name)
        for leaf in self.of(dim for dims in run.named.values() for dim in dims):
            if leaf in made:
                other = "hidden" if leaf in consumed else "output" if leaf in outputs else "positions"
            else:
                other = "input" if leaf in contracted else "positions"
            self.kinds.setdefault(leaf, other)

    def of(self, exprs: Iterable[Expr]) -> Atoms:
        """Return the axes of some dimensions, in order."""
        found: Atoms = {}
        for expr in exprs:
            if id(expr) not in self._leaves:
                self._leaves[id(expr)] = (expr, dict.fromkeys(axes.leaves(expr)))
            found.update(self._leaves[id(expr)][1])
        return found

    def _found(self) -> Iterable[tuple[str, Atoms]]:
        """Yield kinds with their axes; an axis is of the first kind that has it."""
        heads, compared, valued = self._attention()
        shared, queries = self._shared_heads(heads)
        yield "kv groups", shared
        yield "queries per group", queries
        yield "heads", heads
        residual, states = self._sums()
        yield "residual", residual
        yield "rnn", states
        yield "head_dim", {leaf: None for leaf in compared if leaf in valued}
        yield "qk width", compared
        yield "v width", valued
        yield "experts", self._stacked()
        yield from self._by_layer()

    def _attention(self) -> tuple[Atoms, Atoms, Atoms]:
        """Return heads, what queries and keys are compared over, and the width of values."""
        heads, compared, valued = Atoms(), Atoms(), Atoms()
        for number, pairing in self.lineage.pairings.items():
            if self.lineage.chained >> number & 1:
                batch, reduced, rest = self._sides(pairing)
                heads.update(batch)
                compared.update(reduced)
                if not self.lineage.scores >> number & 1:
                    valued.update(rest)
        return heads, compared, valued

    def _sides(self, pairing: Pairing) -> tuple[Atoms, Atoms, Atoms]:
        """Return what a product runs over side by side, what it contracts, and what else its result has."""
        reduced, left = self.of(pairing.reduced), self.of(pairing.left)
        # In one operation the values come third, and keys may be fewer heads than queries.
        right = left if pairing.complete else self.of(pairing.right)
        seen = Counter(leaf for dim in pairing.out for leaf in self.of([dim]))
        beside = (leaf for leaf, times in seen.items() if times == 1 and leaf not in reduced)
        batch = {leaf: None for leaf in beside if leaf in left and leaf in right}
        return batch, reduced, {leaf: None for leaf in seen if leaf not in batch}

    def _shared_heads(self, heads: Atoms) -> tuple[Atoms, Atoms]:
        """Return the heads of keys that several query heads share, and how many of these each has."""
        terms: dict[Atom, set[tuple[frozenset[Atom], int]]] = {}
        for dims in self.run.named.values():
            for dim in dims:
                if any(leaf in heads for leaf in self.of([dim])):
                    for leaves, number in _monomials(dim):
                        inside = frozenset(leaf for leaf in leaves if leaf in heads)
                        for leaf in inside:
                            terms.setdefault(leaf, set()).add((inside - {leaf}, number))
        shared: Atoms = {}
        queries: Atoms = {}
        for leaf in heads:
            found = terms.get(leaf, set())
            others = {other for beside, _ in found for other in beside}
            if any(not beside for beside, _ in found) and len(found) > 1:
                shared[leaf] = None
                queries.update(dict.fromkeys(others))
        return shared, {leaf: None for leaf in queries if leaf not in shared}

    def _sums(self) -> tuple[Atoms, Atoms]:
        """Return what several layers add into, and the states of cells."""
        lineage = self.lineage
        layers = sum(1 << number for number, maker in lineage.makers.items() if not maker.looked_up)
        cell = lineage.recurrent
        for one in lineage.additions:
            if any(side and not side & ~lineage.recurrent for side in _sides_of(one)):
                cell |= (one.left | one.right) & layers
        residual, states = Atoms(), Atoms()
        for one in lineage.additions:
            added = (one.left ^ one.right) & layers
            if added & ~cell:
                residual.update(self.of(one.out))
            elif added:
                states.update(self.of(one.out))
        return residual, states

    def _stacked(self) -> Atoms:
        """Return the axes of weights that a product neither contracts nor makes."""
        found = Atoms()
        for one in self.lineage.stacked:
            other, out = self.of(one.other), self.of(one.out)
            found.update({leaf: None for leaf in self.of(one.weight) if leaf in other or leaf not in out})
        return found

    def _by_layer(self) -> Iterable[tuple[str, Atoms]]:
        makers = self.lineage.makers.values()
        contracted = self.of(self.lineage.contracted)
        convolved = self.of(self.lineage.convolved)
        made = self.of(maker.made for maker in makers if not maker.looked_up)
        looked_up = self.of(maker.made for maker in makers if maker.looked_up)
        inside = {leaf: None for leaf in (*made, *looked_up) if leaf in contracted}
        yield "embedding", {leaf: None for leaf in inside if leaf not in made}
        yield "conv", {leaf: None for leaf in inside if leaf in convolved}
        yield "mlp", inside


def _sides_of(addition: Addition) -> tuple[int, int]:
    return addition.left & ~addition.right, addition.right & ~addition.left


def _monomials(expr: Expr) -> list[tuple[frozenset[Atom], int]]:
    """Return the terms of a dimension, multiplied out: the axes of each and its constant factor."""
    expr = axes.normal(expr)
    if isinstance(expr, Atom):
        return [(frozenset((expr,)), 1)]
    if isinstance(expr, Const):
        return [(frozenset(), expr.size)]
    if isinstance(expr, Sum):
        return [term for part in expr.parts for term in _monomials(part)]
    assert isinstance(expr, Prod)
    found = []
    for terms in combinations(*(_monomials(item) for item in expr.factors)):
        leaves = frozenset[Atom]().union(*(leaves for leaves, _ in terms))
        found.append((leaves, math.prod(number for _, number in terms)))
    return found
