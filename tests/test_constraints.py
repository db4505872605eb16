"""Settling demands: each one alone, then the solutions together, against counts tried one by one."""

from __future__ import annotations

import itertools
import operator

import pytest

from structprune import axes
from structprune.axes import Atom, Const, Expr, Frozen, normal
from structprune.constraints import Settlement, settle
from structprune.provenance import Attribute, Comparison, Equation, Ledger, Literal, Node, Operation, Size

FLOOR = {"*": operator.mul, "//": operator.floordiv, "+": operator.add, "%": operator.mod, "-": operator.sub}


def atoms(*sizes: int) -> list[Atom]:
    made = [axes.atom(size) for size in sizes]
    assert all(isinstance(leaf, Atom) for leaf in made)
    return made  # type: ignore[return-value]


def compute(left: Node, symbol: str, right: Node) -> Operation:
    return Operation(symbol, FLOOR[symbol], (left, right))


def demand(expr: Expr, node: Node) -> Equation:
    return Equation(Size(expr), node, "a view", "net.py:7")


def settled(*equations: Equation, comparisons: tuple[Comparison, ...] = ()) -> Settlement:
    ledger = Ledger()
    ledger.equations.extend(equations)
    ledger.comparisons.extend(comparisons)
    return settle(ledger, lambda: False)


def check_all_counts(done: Settlement, equations: list[Equation], pool: list[Expr]) -> int:
    """Every demand holds for all counts that respect freezing and ties; returns how many such counts there are."""
    leaves = list(dict.fromkeys(leaf for expr in pool for leaf in axes.leaves(expr)))
    classes = done.classes()
    ranges = [[leaf.size] if leaf.frozen else range(1, leaf.size + 1) for leaf in leaves]
    allowed = 0
    for picked in itertools.product(*ranges):
        counts = dict(zip(leaves, picked, strict=True))
        if all(counts[a] == counts.get(b, counts[a]) for a, b in classes.items() if a in counts):
            allowed += 1
            for equation in equations:
                values = [side.value(counts, done.attributes) for side in (equation.left, equation.right)]
                assert values[0] == values[1], (picked, [str(equation.left), str(equation.right)])
    return allowed


def test_a_literal_freezes_with_its_number_and_line() -> None:
    (a,) = atoms(6)
    settled(demand(a, Literal(6)))
    assert a.frozen == Frozen("a view is written with the number 6", "net.py:7")


def test_a_use_as_a_number_freezes_and_says_so() -> None:
    (a,) = atoms(6)
    settled(Equation(Literal(6), Size(a), "a use as a number", "net.py:9"))
    assert a.frozen == Frozen("the code uses this size, 6, as a number", "net.py:9")


def test_a_size_that_follows_by_itself_demands_nothing() -> None:
    (a,) = atoms(6)
    done = settled(demand(a, Size(a)))
    assert a.frozen is None
    assert not done.classes()


def test_equal_sizes_are_tied_in_number() -> None:
    a, b = atoms(6, 6)
    equation = demand(a, Size(b))
    done = settled(equation)
    classes = done.classes()
    assert classes[a] is classes[b]
    assert a.frozen is b.frozen is None
    assert normal(a) is not normal(b), "tied in number, not in place"
    assert check_all_counts(done, [equation], [a, b]) == 6


def test_a_tie_with_what_stays_freezes() -> None:
    a, b = atoms(6, 6)
    axes.freeze(b, Frozen("model output"))
    settled(demand(a, Size(b)))
    assert a.frozen is not None
    assert "model output" in a.frozen.reason or "6" in a.frozen.reason


def test_an_attribute_follows_the_dimension() -> None:
    (a,) = atoms(6)
    width = Attribute("block", ("width",), 6)
    done = settled(demand(a, width))
    assert a.frozen is None
    assert axes.size_under(done.attributes[width], {a: 4}) == 4


def test_an_attribute_of_two_dimensions_ties_them() -> None:
    a, b = atoms(6, 6)
    width = Attribute("block", ("width",), 6)
    equations = [demand(a, width), demand(b, width)]
    done = settled(*equations)
    assert check_all_counts(done, equations, [a, b]) == 6


def test_an_attribute_is_solved_for_inside_a_product() -> None:
    heads, width = atoms(4, 3)
    whole = axes.product((heads, width))
    h, d = Attribute("a", ("heads",), 4), Attribute("a", ("width",), 3)
    equations = [demand(heads, h), demand(whole, compute(h, "*", d))]
    done = settled(*equations)
    assert axes.size_under(done.attributes[h], {heads: 2}) == 2
    assert axes.size_under(done.attributes[d], {width: 1}) == 1
    assert check_all_counts(done, equations, [whole]) == 12


def test_an_attribute_is_solved_for_inside_a_quotient() -> None:
    heads, width = atoms(4, 3)
    h, c = Attribute("a", ("heads",), 4), Attribute("a", ("channels",), 12)
    equations = [demand(heads, h), demand(width, compute(c, "//", h))]
    done = settled(*equations)
    assert axes.size_under(done.attributes[c], {heads: 2, width: 3}) == 6
    assert check_all_counts(done, equations, [heads, width]) == 12


def test_a_number_of_an_attribute_that_follows_a_dimension_freezes_it() -> None:
    (a,) = atoms(6)
    width = Attribute("block", ("width",), 6)
    settled(demand(a, width), Equation(Literal(6), width, "a use as a number", "net.py:9"))
    assert a.frozen == Frozen("the code uses this size, 6, as a number", "net.py:9")


def test_quotients_join_structure() -> None:
    (whole,) = atoms(12)
    heads, width = atoms(4, 3)
    equations = [demand(width, compute(Size(whole), "//", Size(heads)))]
    done = settled(*equations)
    assert check_all_counts(done, equations, [whole, heads, width]) > 1


def test_halves_of_a_dimension_keep_equal_numbers() -> None:
    (whole,) = atoms(8)
    first, second = axes.split(whole, 4, lambda: Frozen("no"))
    equations = [demand(first, compute(Size(whole), "//", Literal(2)))]
    done = settled(*equations)
    assert check_all_counts(done, equations, [first, second]) == 4


@pytest.mark.parametrize("symbol", ["+", "-", "*", "//", "%"])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_whatever_is_settled_holds_for_all_counts(symbol: str, number: int) -> None:
    for left, right in itertools.product((6, 4, 2), repeat=2):
        a, b = atoms(left, right)
        value = FLOOR[symbol](right, number)
        pool: list[Expr] = [a, b]
        node = compute(Size(b), symbol, Literal(number))
        equations = [demand(a, node)] if value == left else [demand(Const(value), node)]
        done = settled(*equations)
        assert check_all_counts(done, equations, pool) >= 1


def comparison(left: Node, symbol: str, right: Node, truth: bool) -> Comparison:
    return Comparison(getattr(operator, symbol), symbol, left, right, truth, "net.py:8")


def test_equal_numbers_must_stay_equal() -> None:
    a, b = atoms(6, 6)
    done = settled(comparisons=(comparison(Size(a), "eq", Size(b), True),))
    assert done.classes()[a] is done.classes()[b]
    assert done.comparisons == []


def test_numbers_that_are_not_unequal_must_stay_equal() -> None:
    (a,) = atoms(6)
    settled(comparisons=(comparison(Size(a), "ne", Literal(6), False),))
    assert a.frozen == Frozen("a comparison is written with the number 6", "net.py:8")


@pytest.mark.parametrize(
    ("symbol", "number", "truth"), [("eq", 5, False), ("ne", 5, True), ("lt", 9, True), ("ge", 2, True)]
)
def test_other_comparisons_are_guards(symbol: str, number: int, truth: bool) -> None:
    (a,) = atoms(6)
    done = settled(comparisons=(comparison(Size(a), symbol, Literal(number), truth),))
    assert a.frozen is None
    (guard,) = done.comparisons
    assert guard.truth is truth


def test_comparisons_of_what_stays_guard_nothing() -> None:
    (a,) = atoms(6)
    axes.freeze(a, Frozen("model output"))
    assert settled(comparisons=(comparison(Size(a), "lt", Literal(9), True),)).comparisons == []


def test_refinement_runs_until_nothing_changes() -> None:
    a, b = atoms(6, 6)
    ledger = Ledger()
    ledger.equations.append(demand(a, Size(b)))

    def refine() -> bool:
        if b.frozen is None:
            b.frozen = Frozen("no layer reads these positions")
            return True
        return False

    settle(ledger, refine)
    assert a.frozen is not None
    assert (
        a.frozen.reason == "keeps the same number as a dimension that stays: no layer reads these positions"
    )


def test_ties_survive_a_later_refinement_of_their_axes() -> None:
    a, b = atoms(6, 6)
    done = settled(demand(a, Size(b)))
    axes.split(a, 2, lambda: Frozen("no"))
    done.classes()
    assert axes.size_under(a, {}) == axes.size_under(b, {}) == 6
    assert [leaf.size for leaf in axes.leaves(b)] == [2, 4], "tied to a compound: the same structure"
