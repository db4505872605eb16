"""Settling what the user's code demands of its integers: which counts are tied, which attributes follow, what is
frozen.

Whether a demand holds for all widths needs no symbolic solver: both sides are evaluated under a few random widths of
the free axes. Where they differ, the mildest change that makes them agree is taken: tie counts, join two dimensions,
freeze one axis, freeze all.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from structprune import axes
from structprune.axes import Atom, Const, Expr, Frozen, Prod, normal, product
from structprune.nodes import Attribute, Literal, Node, Operation, Size
from structprune.provenance import Comparison, Equation, Ledger

__all__ = ["Settlement", "involved", "settle"]

_SAMPLES = 6


@dataclass(slots=True)
class Settlement:
    """What holds for every choice of channels that respects it."""

    attributes: dict[Attribute, Expr] = field(default_factory=dict)
    ties: list[tuple[Atom, Atom]] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)

    def classes(self) -> dict[Atom, Atom]:
        """Return for every tied atom the representative of the atoms that keep the same count."""
        parent: dict[Atom, Atom] = {}

        def find(leaf: Atom) -> Atom:
            while parent.setdefault(leaf, leaf) is not leaf:
                leaf = parent[leaf]
            return leaf

        pending = list(self.ties)
        while pending:
            a, b = (normal(leaf) for leaf in pending.pop())
            if isinstance(a, Atom) and isinstance(b, Atom):
                parent[find(a)] = find(b)
            else:  # one has become a compound since: the same positions is the tie that is left
                axes.unify(a, b, lambda: Frozen("tied in number to a dimension of another structure"))
        return {leaf: find(leaf) for leaf in parent if leaf.definition is None}


def settle(ledger: Ledger, refine: Callable[[], bool]) -> Settlement:
    """Return the settlement of every demand; ``refine`` freezes what is no channel and says whether it
    froze anything.
    """
    done = Settlement()
    demands, compared = _demands(ledger)
    changed = True
    while changed:
        _define_attributes(done, demands)
        changed = _freeze_tied(done)
        classes = done.classes()
        for demand in demands:
            if not _holds(done, demand, classes):
                _repair(done, demand)
                classes, changed = done.classes(), True
        if not changed:
            changed = refine()
    done.comparisons = [c for c in compared if involved(done, (c.left, c.right))]
    return done


def _demands(ledger: Ledger) -> tuple[list[Equation], list[Comparison]]:
    """Equal numbers must stay equal; other comparisons are guards on the final counts."""
    demands, compared = [], []
    seen: set[tuple[object, ...]] = set()
    for comparison in ledger.comparisons:
        key = (comparison.symbol, str(comparison.left), str(comparison.right), comparison.where)
        plain = not any(
            isinstance(leaf, Size) for node in (comparison.left, comparison.right) for leaf in node.leaves()
        )
        if plain and key in seen:
            continue
        seen.add(key)
        same = (comparison.symbol == "eq") == comparison.truth and comparison.symbol in ("eq", "ne")
        if same and not _is_remainder(comparison):
            demands.append(Equation(comparison.left, comparison.right, "a comparison", comparison.where))
        else:
            compared.append(comparison)
    # What a number in the code fixes comes first: where that holds, less may have to give for the others.
    every = [*ledger.equations, *demands]
    return sorted(every, key=lambda one: not isinstance(one.right, Literal)), compared


def _is_remainder(comparison: Comparison) -> bool:
    """Whether a multiple is asked for, as in `n % 8 == 0`: many counts are, so none is fixed."""
    left, right = comparison.left, comparison.right
    return isinstance(left, Operation) and left.symbol == "%" and isinstance(right, Literal)


def _define_attributes(done: Settlement, demands: Iterable[Equation]) -> None:
    """An attribute that is the size of a dimension follows it; one inside a product or quotient is solved for."""
    for demand in demands:
        for left, right in ((demand.left, demand.right), (demand.right, demand.left)):
            if isinstance(right, Attribute) and right not in done.attributes:
                expr = _as_expr(done, left)
                if expr is not None and _free(expr):
                    done.attributes[right] = expr
    for fixed in (False, True):
        for demand in demands:
            if isinstance(demand.right, Operation) and isinstance(demand.left, Size):
                _solve(done, demand.left.expr, demand.right, fixed)


def _solve(done: Settlement, expr: Expr, node: Operation, fixed: bool) -> None:
    """Define the one unknown attribute of ``expr == unknown // known`` or ``expr == known * unknown * known``.

    Where ``fixed``, a divisor that no dimension's size defines counts as the number it is.
    """
    if len(node.operands) != 2 or not _free(expr):
        return
    unknown, other = node.operands
    if node.symbol == "//" and isinstance(unknown, Attribute) and unknown not in done.attributes:
        known = _as_expr(done, other)
        if known is None and fixed and isinstance(other, Attribute):
            known = Const(other.number)
        if known is not None:
            done.attributes[unknown] = product((known, expr))
    elif node.symbol == "*":
        operands = list(_multiplied(node))
        missing = [one for one in operands if isinstance(one, Attribute) and one not in done.attributes]
        if len(missing) == 1:
            found = _quotient(expr, [_as_expr(done, one) for one in operands if one is not missing[0]])
            if found is not None:
                done.attributes[missing[0]] = found


def _multiplied(node: Node) -> Iterable[Node]:
    if isinstance(node, Operation) and node.symbol == "*":
        for operand in node.operands:
            yield from _multiplied(operand)
    else:
        yield node


def _quotient(expr: Expr, known: Iterable[Expr | None]) -> Expr | None:
    """Return the size of ``expr`` divided by those of ``known``; None where they are no factors of it."""
    rest = list(_factors(expr))
    number = 1
    for one in known:
        if one is None:
            return None
        for piece in _factors(one):
            if isinstance(piece, Const):
                number *= piece.size
            elif piece in rest:
                rest.remove(piece)
            else:
                return None
    constant = math.prod(piece.size for piece in rest if isinstance(piece, Const))
    if constant % number:
        return None
    return product((Const(constant // number), *(piece for piece in rest if not isinstance(piece, Const))))


def _factors(expr: Expr) -> tuple[Expr, ...]:
    expr = normal(expr)
    return expr.factors if isinstance(expr, Prod) else (expr,)


def _as_expr(done: Settlement, node: Node) -> Expr | None:
    if isinstance(node, Size):
        return node.expr
    if isinstance(node, Literal):
        return Const(node.number)
    if isinstance(node, Attribute):
        return done.attributes.get(node)
    return None


def _free(expr: Expr) -> bool:
    return any(leaf.frozen is None for leaf in axes.leaves(expr))


def involved(done: Settlement, nodes: Iterable[Node]) -> list[Atom]:
    """Return the free atoms behind the nodes, each once."""
    found: dict[Atom, None] = {}
    for node in nodes:
        for leaf in node.leaves():
            expr = _as_expr(done, leaf)
            if expr is not None:
                found.update((item, None) for item in axes.leaves(expr) if item.frozen is None)
    return list(found)


def _freeze_tied(done: Settlement) -> bool:
    changed = False
    classes = done.classes()
    reasons = {root: leaf.frozen for leaf, root in classes.items() if leaf.frozen is not None}
    for leaf, root in classes.items():
        if leaf.frozen is None and root in reasons:
            reason = reasons[root]
            leaf.frozen = Frozen(
                f"keeps the same number as a dimension that stays: {reason.reason}", reason.where
            )
            changed = True
    return changed


def _samples(atoms: list[Atom], classes: Mapping[Atom, Atom]) -> Iterable[dict[Atom, int]]:
    """Yield random counts of the atoms, equal within a class."""
    generator = random.Random(len(atoms))
    for number in range(_SAMPLES):
        drawn: dict[Atom, int] = {}
        counts = {}
        for leaf in atoms:
            root = classes.get(leaf, leaf)
            low = 1 if number % 2 else max(1, leaf.size // 2)
            counts[leaf] = drawn.setdefault(root, generator.randint(low, leaf.size))
        yield counts


def _holds(done: Settlement, demand: Equation, classes: Mapping[Atom, Atom] | None = None) -> bool:
    atoms = involved(done, (demand.left, demand.right))
    if not atoms:
        return True
    classes = done.classes() if classes is None else classes
    return all(_equal(done, demand, counts) for counts in _samples(atoms, classes))


def _equal(done: Settlement, demand: Equation, counts: Mapping[Atom, int]) -> bool:
    try:
        return demand.left.value(counts, done.attributes) == demand.right.value(counts, done.attributes)
    except ZeroDivisionError:
        return False


def _repair(done: Settlement, demand: Equation) -> None:
    atoms = involved(done, (demand.left, demand.right))
    if _tie(done, demand, atoms) or (_join(done, demand) and _holds(done, demand)):
        return
    reason = Frozen(_reason(demand), demand.where)
    for leaf in sorted(atoms, key=lambda leaf: leaf.size):
        leaf.frozen = reason
        if _holds(done, demand):
            return
        leaf.frozen = None
    for leaf in atoms:
        leaf.frozen = reason


def _tie(done: Settlement, demand: Equation, atoms: list[Atom]) -> bool:
    """Try equal counts for the atoms of equal size."""
    before = len(done.ties)
    by_size: dict[int, Atom] = {}
    for leaf in atoms:
        other = by_size.setdefault(leaf.size, leaf)
        if other is not leaf:
            done.ties.append((other, leaf))
    if len(done.ties) > before and _holds(done, demand):
        return True
    del done.ties[before:]
    return False


def _join(done: Settlement, demand: Equation) -> bool:
    """Give two dimensions whose sizes must be equal the same structure, and tie the counts of what faces each other."""
    pair = _as_expr(done, demand.left), _as_expr(done, demand.right)
    if isinstance(demand.right, Operation) and demand.right.symbol == "//":
        whole, part = (_as_expr(done, operand) for operand in demand.right.operands)
        if whole is not None and part is not None and pair[0] is not None:
            pair = whole, product((part, pair[0]))
    left, right = pair
    if (
        left is None
        or right is None
        or left.size != right.size
        or isinstance(left, Const)
        or isinstance(right, Const)
    ):
        return False
    before = {leaf for expr in (left, right) for leaf in axes.leaves(expr) if leaf.frozen is None}
    axes.unify(
        left, right, lambda: Frozen(_reason(demand), demand.where), lambda a, b: done.ties.append((a, b))
    )
    _freeze_tied(done)
    return bool(before)


def _reason(demand: Equation) -> str:
    number = demand.left.value({}, {})
    for node in (demand.right, demand.left):
        if isinstance(node, Literal):
            if demand.what == "a use as a number":
                return f"the code uses this size, {number}, as a number"
            return f"{demand.what} is written with the number {number}"
    return f"{demand.what} fixes the size {number} as {demand.right}"
