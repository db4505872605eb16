"""The axis algebra against what its operations mean, checked position by position. No torch.

The model is independent of the algebra's own `members`: `alive` says for a choice of kept indices which positions of a
dimension stay, straight from the definition of an expression, and every operation leaves a fact behind ("these two
dimensions keep the same positions", "this is the row-major product of those") that must hold for every choice, however
many operations follow.
"""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from structprune import axes
from structprune.axes import Atom, AxisError, Const, Expr, Frozen, Prod, Sum, normal

Keep = dict[Atom, frozenset[int]]
Fact = Callable[[Keep], bool]
REASON = Frozen("cannot be said", "net.py:7")


def why() -> Frozen:
    return REASON


def alive(expr: Expr, keep: Keep) -> list[bool]:
    """Which positions stay, by the definition of an expression."""
    if isinstance(expr, Const):
        return [True] * expr.size
    if isinstance(expr, Atom):
        if expr.definition is not None:
            return alive(expr.definition, keep)
        return [expr.frozen is not None or i in keep[expr] for i in range(expr.size)]
    if isinstance(expr, Sum):
        return [stays for part in expr.parts for stays in alive(part, keep)]
    assert isinstance(expr, Prod)
    return flat([alive(item, keep) for item in expr.factors])


def flat(rows: Sequence[Sequence[bool]]) -> list[bool]:
    """The row-major product: a position stays where all of its coordinates do."""
    return [all(point) for point in itertools.product(*rows)]


def every_leaf(pool: Sequence[Expr]) -> list[Atom]:
    return list(dict.fromkeys(leaf for expr in pool for leaf in axes.leaves(expr)))


def choices(pool: Sequence[Expr], most: int = 12) -> Iterator[Keep]:
    """All choices of kept indices where they are few, else `most` random ones; no atom loses all."""
    free = [leaf for leaf in every_leaf(pool) if leaf.frozen is None]
    options = [[s for k in range(1, n + 1) for s in itertools.combinations(range(n), k)] for n in range(9)]
    if math.prod(len(options[leaf.size]) if leaf.size < 9 else most + 1 for leaf in free) <= most:
        for picked in itertools.product(*(options[leaf.size] for leaf in free)):
            yield {leaf: frozenset(one) for leaf, one in zip(free, picked, strict=True)}
        return
    chance = random.Random(len(free))
    for _ in range(most):
        yield {
            leaf: frozenset(chance.sample(range(leaf.size), chance.randint(1, leaf.size))) for leaf in free
        }


@dataclass
class World:
    """Dimensions, and what the operations so far have promised about them."""

    pool: list[Expr] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    facts: list[tuple[str, Fact]] = field(default_factory=list)
    frozen: set[Atom] = field(default_factory=set)

    def add(self, *dims: Expr) -> None:
        self.pool.extend(dims)
        self.sizes.extend(dim.size for dim in dims)

    def promise(self, name: str, fact: Fact) -> None:
        self.facts.append((name, fact))

    # -- the operations, each with what it means -------------------------------------------------------------------

    def unify(self, a: Expr, b: Expr) -> None:
        axes.unify(a, b, why)
        self.promise("unify", lambda keep: alive(a, keep) == alive(b, keep))

    def split(self, a: Expr, at: int) -> None:
        left, right = axes.split(a, at, why)
        assert (left.size, right.size) == (at, a.size - at)
        self.promise("split", lambda keep: alive(left, keep) + alive(right, keep) == alive(a, keep))
        self.add(left, right)

    def factor(self, a: Expr, outer: int) -> None:
        lead, inner = axes.factor(a, outer, why)
        assert (lead.size, inner.size) == (outer, a.size // outer)
        self.promise("factor", lambda keep: flat([alive(lead, keep), alive(inner, keep)]) == alive(a, keep))
        self.add(lead, inner)

    def reshape(self, dims: Sequence[Expr], sizes: Sequence[int]) -> None:
        out = axes.reshape(dims, sizes, why)
        assert [dim.size for dim in out] == list(sizes)
        self.promise(
            "reshape",
            lambda keep: flat([alive(d, keep) for d in dims]) == flat([alive(d, keep) for d in out]),
        )
        self.add(*out)

    def total(self, parts: Sequence[Expr]) -> None:
        whole = axes.total(parts)
        self.promise("total", lambda keep: alive(whole, keep) == [x for p in parts for x in alive(p, keep)])
        self.add(whole)

    def product(self, factors: Sequence[Expr]) -> None:
        whole = axes.product(factors)
        self.promise("product", lambda keep: alive(whole, keep) == flat([alive(f, keep) for f in factors]))
        self.add(whole)

    def freeze(self, a: Expr) -> None:
        axes.freeze(a, REASON)
        self.promise("freeze", lambda keep: all(alive(a, keep)))

    # -- what must hold at any time --------------------------------------------------------------------------------

    def check(self, most: int = 12) -> None:
        for dim, size in zip(self.pool, self.sizes, strict=True):
            self.check_form(dim, size)
        for leaf in self.frozen:
            assert all(found.frozen is not None for found in axes.leaves(leaf)), "a frozen atom came free"
        self.frozen.update(leaf for leaf in every_leaf(self.pool) if leaf.frozen is not None)
        for keep in choices(self.pool, most):
            for name, fact in self.facts:
                assert fact(keep), f"{name} no longer holds"
            for dim in self.pool:
                check_counts(dim, keep)

    @staticmethod
    def check_form(dim: Expr, size: int) -> None:
        expr = normal(dim)
        assert expr.size == dim.size == size
        assert normal(expr) is expr
        assert well_formed(expr)
        for leaf, index in axes.members(dim):
            assert leaf.definition is None
            assert index.dtype == np.int64
            assert index.shape == (size,)
            assert index.min() >= -1
            assert index.max() < leaf.size
            assert set(index.tolist()) >= set(range(leaf.size)), "each index speaks somewhere"
        assert [leaf for leaf, _ in axes.members(dim)] == list(axes.leaves(dim))


def check_counts(dim: Expr, keep: Keep) -> None:
    """`members` and `size_under` say what the definition says."""
    wanted = alive(dim, keep)
    found = np.ones(dim.size, dtype=bool)
    for leaf, index in axes.members(dim):
        kept = range(leaf.size) if leaf.frozen is not None else keep[leaf]
        found &= np.isin(index, [-1, *kept])
    assert found.tolist() == wanted
    assert axes.size_under(dim, {leaf: len(kept) for leaf, kept in keep.items()}) == sum(wanted)


def well_formed(expr: Expr) -> bool:
    """Normal form: flat, no definitions, no units in products, no neighbouring constants, no atom of one position."""
    if isinstance(expr, Atom):
        return expr.definition is None and expr.size > 1
    if isinstance(expr, Const):
        return True
    items = expr.parts if isinstance(expr, Sum) else expr.factors
    nothing = 0 if isinstance(expr, Sum) else 1
    neighbours = any(isinstance(a, Const) and isinstance(b, Const) for a, b in itertools.pairwise(items))
    return (
        len(items) > 1
        and not neighbours
        and all(type(item) is not type(expr) and item.size != nothing and well_formed(item) for item in items)
    )


# -- a small domain, exhaustively --------------------------------------------------------------------------

Form = tuple[object, ...]


def forms(size: int, depth: int) -> list[Form]:
    """Every expression of `size` positions up to `depth`: constants, atoms of its own, atoms shared by their size."""
    found: list[Form] = [("const", size), ("atom", size), ("shared", size)]
    if depth:
        for left in range(1, size):
            found += [("sum", a, b) for a in forms(left, depth - 1) for b in forms(size - left, depth - 1)]
        for outer in range(2, size):
            if size % outer == 0:
                inner = size // outer
                found += [("prod", a, b) for a in forms(outer, depth - 1) for b in forms(inner, depth - 1)]
    return found


def made(form: Form, shared: dict[int, Expr]) -> Expr:
    kind, *rest = form
    if kind == "sum":
        return axes.total(made(part, shared) for part in rest)  # type: ignore[arg-type]
    if kind == "prod":
        return axes.product(made(item, shared) for item in rest)  # type: ignore[arg-type]
    (size,) = rest
    assert isinstance(size, int)
    if kind == "const":
        return Const(size)
    return axes.atom(size) if kind == "atom" else shared.setdefault(size, axes.atom(size))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6])
def test_every_pair_of_one_size_can_be_unified(size: int) -> None:
    every = forms(size, 1)
    for one, other in itertools.product(every, every):
        world, shared = World(), dict[int, Expr]()
        a, b = made(one, shared), made(other, shared)
        world.add(a, b, *shared.values())
        world.unify(a, b)
        world.check(8)


@pytest.mark.parametrize("size", [4, 6])
def test_deep_expressions_can_be_unified_with_every_shallow_one(size: int) -> None:
    deep = random.Random(0).sample(forms(size, 2), 60)
    for one, other in itertools.product(deep, forms(size, 1)[::3]):
        world, shared = World(), dict[int, Expr]()
        a, b = made(one, shared), made(other, shared)
        world.add(a, b, *shared.values())
        world.unify(b, a)
        world.check(4)


@pytest.mark.parametrize("size", [2, 3, 4, 6])
def test_every_split_and_factor(size: int) -> None:
    every = forms(size, 2) if size < 6 else random.Random(0).sample(forms(size, 2), 500)
    cuts = [("split", at) for at in range(size + 1)]
    cuts += [("factor", outer) for outer in range(1, size + 1) if size % outer == 0]
    for form, (operation, number) in itertools.product(every, cuts):
        world, shared = World(), dict[int, Expr]()
        expr = made(form, shared)
        world.add(expr, *shared.values())
        getattr(world, operation)(expr, number)
        world.check(4)


def shapes(size: int, rank: int) -> list[tuple[int, ...]]:
    if rank == 1:
        return [(size,)]
    return [(d, *rest) for d in range(1, size + 1) if size % d == 0 for rest in shapes(size // d, rank - 1)]


@pytest.mark.parametrize("size", [4, 6, 8, 12])
def test_every_reshape_of_atoms(size: int) -> None:
    every = [shape for rank in (1, 2, 3) for shape in shapes(size, rank)]
    for before, after in itertools.product(every, every):
        world = World()
        dims = [axes.atom(n) for n in before]
        world.add(*dims)
        world.reshape(dims, after)
        world.check(6)
        world.reshape(world.pool[len(dims) :], before)  # and back
        world.check(6)


# -- long random sequences ---------------------------------------------------------------------------------

MOST = 24
OPERATIONS = st.tuples(
    st.sampled_from(
        ["atom", "const", "unify", "unify", "split", "factor", "reshape", "total", "product", "freeze"]
    ),
    *[st.integers(0, 10_000)] * 3,
)


def step(world: World, operation: str, i: int, j: int, k: int) -> None:
    """One operation on dimensions of the pool that fit it; nothing where none does."""
    pool = world.pool
    if operation in ("atom", "const"):
        world.add((axes.atom if operation == "atom" else Const)(1 + i % 12))
        return
    a = pool[i % len(pool)]
    if operation == "unify":
        equal = [dim for dim in pool if dim.size == a.size]
        world.unify(a, equal[j % len(equal)])
    elif operation == "split":
        world.split(a, j % (a.size + 1))
    elif operation == "factor" and a.size:
        divisors = [d for d in range(1, a.size + 1) if a.size % d == 0]
        world.factor(a, divisors[j % len(divisors)])
    elif operation == "freeze":
        world.freeze(a)
    elif operation in ("total", "product"):
        parts = [a, pool[j % len(pool)]]
        if (sum if operation == "total" else math.prod)(part.size for part in parts) <= MOST:
            getattr(world, operation)(parts)
    elif operation == "reshape":
        dims = [a, pool[j % len(pool)]]
        size = math.prod(dim.size for dim in dims)
        if 0 < size <= 2 * MOST:
            every = [shape for rank in (1, 2, 3) for shape in shapes(size, rank)]
            world.reshape(dims, every[k % len(every)])


@settings(max_examples=400, derandomize=True, deadline=None)
@given(st.lists(OPERATIONS, max_size=14))
def test_no_sequence_of_operations_breaks_an_earlier_promise(
    operations: list[tuple[str, int, int, int]],
) -> None:
    world = World()
    world.add(axes.atom(6), axes.atom(6), axes.atom(12))
    for operation in operations:
        step(world, *operation)
    world.check()


@pytest.mark.nightly
@settings(max_examples=20_000, deadline=None)
@given(st.lists(OPERATIONS, max_size=30))
def test_no_long_sequence_breaks_an_earlier_promise(operations: list[tuple[str, int, int, int]]) -> None:
    world = World()
    world.add(axes.atom(6), axes.atom(6), axes.atom(12))
    for operation in operations:
        step(world, *operation)
        world.check(3)
    world.check()


@settings(max_examples=200, derandomize=True, deadline=None)
@given(st.lists(OPERATIONS, max_size=8))
def test_what_the_operations_do_not_ask_stays_free(operations: list[tuple[str, int, int, int]]) -> None:
    world = World()
    world.add(axes.atom(6), axes.atom(6))
    for operation, *numbers in operations:
        step(world, operation, *numbers)
    apart = axes.atom(6)
    assert isinstance(apart, Atom)
    assert apart.frozen is apart.definition is None
    asked = {operation for operation, *_ in operations}
    if not asked & {"const", "freeze", "unify", "reshape", "factor", "total"}:
        assert all(leaf.frozen is None for leaf in every_leaf(world.pool)), (
            "a split or a product froze something"
        )


# -- equal structure without merging -----------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 3, 4, 6])
def test_meet_gives_equal_structure_and_pairs_but_does_not_merge(size: int) -> None:
    every = [form for form in forms(size, 1) if "shared" not in str(form)]
    for one, other in itertools.product(every, every):
        a, b = made(one, {}), made(other, {})
        pairs: list[tuple[Atom, Atom]] = []
        axes.unify(a, b, why, lambda x, y, pairs=pairs: pairs.append((x, y)))
        mine, theirs = set(axes.leaves(a)), set(axes.leaves(b))
        assert not mine & theirs, "merged"
        assert all(x.size == y.size for x, y in pairs)
        check_equal_counts(a, b, pairs)


def check_equal_counts(a: Expr, b: Expr, pairs: list[tuple[Atom, Atom]]) -> None:
    """Whatever the counts, if those of a pair are equal then both dimensions keep equally many positions."""
    chance = random.Random(0)
    for _ in range(6):
        counts: dict[Atom, int] = {}
        tied: list[set[Atom]] = []
        for x, y in [(leaf, leaf) for leaf in (*axes.leaves(a), *axes.leaves(b))] + pairs:
            touching = [group for group in tied if group & {x, y}]
            tied = [group for group in tied if group not in touching] + [set().union({x, y}, *touching)]
        for group in tied:
            fixed = any(leaf.frozen for leaf in group)
            size = next(iter(group)).size
            counts.update(dict.fromkeys(group, size if fixed else chance.randint(1, size)))
        assert axes.size_under(a, counts) == axes.size_under(b, counts)


# -- by hand -----------------------------------------------------------------------------------------------


def test_unified_atoms_are_one() -> None:
    a, b = axes.atom(4), axes.atom(4)
    axes.unify(a, b, why)
    assert normal(a) is normal(b)


def test_a_definition_acts_on_every_expression_that_mentions_the_atom() -> None:
    a = axes.atom(6)
    padded = axes.total((Const(1), a, Const(2)))
    left, right = axes.split(a, 2, why)
    names = {left: "l", right: "r"}
    assert axes.show(padded, names) == "(1 + l + r + 2)"  # type: ignore[arg-type]


def test_constants_pass_on_their_reason() -> None:
    reason = Frozen("model input")
    a = axes.atom(3)
    axes.unify(a, Const(3, reason), why)
    assert [leaf.frozen for leaf in axes.leaves(a)] == [reason]


def test_the_first_reason_stays_and_spreads_to_what_is_merged() -> None:
    a, b, first = axes.atom(4), axes.atom(4), Frozen("first")
    axes.freeze(b, first)
    axes.freeze(b, Frozen("second"))
    axes.unify(a, b, why)
    assert [leaf.frozen for leaf in axes.leaves(a)] == [first]


def test_a_cut_inside_an_element_of_the_leading_factor_keeps_that_element() -> None:
    lead, inner = axes.atom(3), axes.atom(4)
    whole = axes.product((lead, inner))
    axes.split(whole, 6, why)
    names = {leaf: f"{leaf.size}" for leaf in axes.leaves(whole)}
    assert axes.show(lead, names) == "3"  # nothing of three single elements is left to cut
    assert axes.show(inner, names) == "(2 + 2)"


def test_crossing_factors_freeze_with_the_reason() -> None:
    a, b = axes.product((axes.atom(2), axes.atom(3))), axes.product((axes.atom(3), axes.atom(2)))
    axes.unify(a, b, why)
    assert {leaf.frozen for leaf in (*axes.leaves(a), *axes.leaves(b))} == {REASON}


def test_reshape_factors_the_smallest_runs() -> None:
    b, c, h = axes.atom(2), axes.atom(6), axes.atom(5)
    batch, outer, inner, last = axes.reshape((b, c, h), (2, 3, 2, 5), why)
    assert batch is b
    assert last is h
    assert axes.leaves(c).__next__() is normal(outer)
    assert [leaf.size for leaf in axes.leaves(c)] == [3, 2]
    assert inner.size == 2


def test_empty_dimensions_are_constant() -> None:
    assert [dim.size for dim in axes.reshape((Const(0), axes.atom(4)), (4, 0), why)] == [4, 0]
    assert isinstance(axes.total(()), Const)
    assert axes.product(()).size == 1


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: axes.unify(axes.atom(4), axes.atom(5), why),
        lambda: axes.unify(Const(4), axes.atom(5), why),
        lambda: axes.unify(Const(4), Const(5), why),
        lambda: axes.factor(axes.atom(6), 4, why),
        lambda: axes.reshape((axes.atom(6),), (4,), why),
        lambda: axes.reshape((axes.atom(6),), (12,), why),
        lambda: axes.reshape((axes.atom(6),), (3,), why),
        lambda: axes.reshape((axes.atom(6), axes.atom(2)), (6,), why),
    ],
)
def test_sizes_that_do_not_fit_are_an_error(wrong: Callable[[], object]) -> None:
    with pytest.raises(AxisError):
        wrong()


def test_show_is_einops_like() -> None:
    heads, width, rest = axes.atom(4), axes.atom(8), axes.atom(3)
    names = {heads: "h", width: "d", rest: "r"}
    expr = axes.total((axes.product((heads, Const(2), width)), rest, Const(5)))
    assert axes.show(expr, names) == "([h 2 d] + r + 5)"  # type: ignore[arg-type]
    assert re.fullmatch(r"\(\[a\d+ 2 a\d+\] \+ a\d+ \+ 5\)", axes.show(expr))
    assert str(Frozen("model input")) == "model input"
    assert str(REASON) == "cannot be said (net.py:7)"
