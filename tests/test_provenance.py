"""Traced integers: ints in every respect that code relies on, that remember where they came from."""

from __future__ import annotations

import copy
import math
import operator
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from structprune import axes
from structprune.axes import Atom
from structprune.provenance import (
    Attribute,
    Ledger,
    Literal,
    Node,
    Operation,
    Size,
    TracedInt,
    node_of,
    user_line,
)


def size(number: int) -> tuple[TracedInt, Atom, Ledger]:
    """A traced size, the axis behind it, and the ledger it writes into."""
    leaf = axes.atom(number)
    assert isinstance(leaf, Atom)
    ledger = Ledger()
    return TracedInt(number, Size(leaf), ledger), leaf, ledger


# -- an int in every respect -------------------------------------------------------------------------------


def test_it_is_an_int_to_python() -> None:
    n, _, _ = size(6)
    assert isinstance(n, int)
    assert hash(n) == hash(6)
    assert {6: "six"}[n] == "six"
    assert {n: "six"}[6] == "six"
    assert "abcdefgh"[n] == "g"
    assert "abcdefgh"[:n] == "abcdef"
    assert [*range(n)] == [0, 1, 2, 3, 4, 5]
    assert [0] * n == n * [0] == [0] * 6
    assert f"{n}" == "%d" % n == str(n) == repr(n) == "6"  # noqa: UP031
    assert (min(n, 9), max(n, 9), sum([n, 1]), sorted([n, 2])) == (6, 9, 7, [2, 6])
    assert divmod(n, 4) == (1, 2)
    assert operator.index(n) == 6
    assert bool(n)


@pytest.mark.parametrize("function", [copy.copy, copy.deepcopy])
def test_copies_stay_traced(function: Callable[[Any], Any]) -> None:
    n, leaf, _ = size(6)
    assert node_of(function(n)).value({leaf: 2}, {}) == 2


def test_pickling_leaves_a_plain_int() -> None:
    n, _, _ = size(6)
    assert type(pickle.loads(pickle.dumps(n))) is int


COMPARISONS = [operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge]


@pytest.mark.parametrize("function", COMPARISONS, ids=lambda function: function.__name__)
@pytest.mark.parametrize("other", [5, 6, 7, 6.5, True])
def test_comparisons_come_out_as_those_of_ints(function: Callable[..., bool], other: float) -> None:
    n, _, _ = size(6)
    assert function(n, other) is function(6, other)
    assert function(other, n) is function(other, 6)


def test_comparisons_with_other_things_are_those_of_ints() -> None:
    n, _, _ = size(6)
    assert n != "6"
    assert n is not None
    assert n not in ("6", None)
    with pytest.raises(TypeError):
        n < "6"  # type: ignore[operator]  # noqa: B015


ARITHMETIC = [operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod, operator.pow]


@pytest.mark.parametrize("function", ARITHMETIC, ids=lambda function: function.__name__)
@pytest.mark.parametrize("other", [1, 2, 3, 0.5])
def test_arithmetic_comes_out_as_that_of_ints(function: Callable[..., Any], other: float) -> None:
    n, _, _ = size(6)
    for got, wanted in ((function(n, other), function(6, other)), (function(other, n), function(other, 6))):
        assert got == wanted
        assert isinstance(got, type(wanted))


def test_division_by_zero_is_an_error_as_ever() -> None:
    n, _, _ = size(6)
    with pytest.raises(ZeroDivisionError):
        n // 0
    with pytest.raises(TypeError):
        n + "6"  # type: ignore[operator]


# -- it remembers ------------------------------------------------------------------------------------------

FORMULAS: list[Callable[[int], int]] = [
    lambda n: n // 2,
    lambda n: n - n // 2,
    lambda n: 3 * n + 1,
    lambda n: (n + 7) // 8 * 8,
    lambda n: -n,
    lambda n: +n,
    lambda n: n % 5,
    lambda n: 100 - n,
    lambda n: 100 // n,
    lambda n: 100 % n,
    lambda n: n**2,
    lambda n: -(-n // 4),
    lambda n: divmod(n, 4)[0],
    lambda n: divmod(n, 4)[1],
    lambda n: sum([n, n, 1]),
    lambda n: n * n,
]


@pytest.mark.parametrize("formula", range(len(FORMULAS)))
def test_arithmetic_has_the_right_value_under_other_widths(formula: int) -> None:
    n, leaf, _ = size(12)
    node = node_of(FORMULAS[formula](n))
    for width in range(1, 13):
        assert node.value({leaf: width}, {}) == FORMULAS[formula](width)


OPERATORS = st.sampled_from(["+", "-", "*", "//", "%"])
FUNCTIONS = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "//": operator.floordiv,
    "%": operator.mod,
}


@settings(max_examples=200, derandomize=True, deadline=None)
@given(st.lists(st.tuples(OPERATORS, st.integers(1, 9), st.booleans()), max_size=6), st.integers(1, 12))
def test_any_formula_has_the_right_value_under_another_width(
    steps: list[tuple[str, int, bool]], width: int
) -> None:
    n, leaf, _ = size(12)

    def run(value: int) -> int:
        for symbol, number, swapped in steps:
            divides = symbol in ("//", "%")
            pair = (number, value) if swapped and not divides else (value, number)
            value = FUNCTIONS[symbol](*pair)
        return value

    traced = run(n)
    assert traced == run(12)
    assert node_of(traced).value({leaf: width}, {}) == run(width)


def test_attributes_have_the_value_of_what_they_follow() -> None:
    ledger = Ledger()
    attribute = Attribute("block", ("sizes", 1), 8)
    n = TracedInt(8, attribute, ledger)
    leaf = axes.atom(8)
    assert isinstance(leaf, Atom)
    doubled = node_of(n * 2)
    assert doubled.value({}, {}) == 16
    assert doubled.value({leaf: 3}, {attribute: leaf}) == 6
    assert str(doubled) == "(block.sizes[1] * 2)"
    assert set(doubled.leaves()) == {attribute, Literal(2)}


def test_plain_ints_are_literals() -> None:
    assert node_of(5) == Literal(5)
    assert str(node_of(5)) == "5"
    assert [*Literal(5).leaves()] == [Literal(5)]


def test_expressions_print_as_they_were_written() -> None:
    n, _, ledger = size(12)
    heads = TracedInt(4, Attribute("attention", ("config", "heads"), 4), ledger)
    node = node_of(n // heads)
    assert isinstance(node, Operation)
    assert str(node) == "(size(12) // attention.config.heads)"


# -- the ledger --------------------------------------------------------------------------------------------

NUMBERS: list[Callable[[int], Any]] = [
    float,
    math.sqrt,
    lambda n: n / 2,
    lambda n: 2 / n,
    lambda n: n**-0.5,
    lambda n: n**0.5,
    lambda n: n * 0.5,
    lambda n: n // 2.0,
    lambda n: n < 2.5,
    lambda n: n**-1,
]
STRIPPED: list[Callable[[int], Any]] = [int, round, abs, math.ceil, math.floor, math.trunc]
STRIPPED += [lambda n: f"{n}", lambda n: n << 1, lambda n: n & 3]
STRIPPED += [lambda n: n.bit_length(), lambda n: n.bit_count(), lambda n: n.as_integer_ratio()]


def noted(use: Callable[[int], Any]) -> list[int]:
    n, leaf, ledger = size(6)
    assert use(n) == use(6)
    assert all(equation.left == Literal(6) for equation in ledger.equations)
    assert all(equation.right.value({leaf: 2}, {}) == 2 for equation in ledger.equations)
    return [equation.left.value({}, {}) for equation in ledger.equations]


@pytest.mark.parametrize("use", range(len(NUMBERS)))
def test_uses_as_a_number_are_noted(use: int) -> None:
    assert noted(NUMBERS[use]) == [6]


@pytest.mark.parametrize("use", range(len(STRIPPED)))
def test_what_strips_the_tag_is_noted_as_a_number(use: int) -> None:
    assert noted(STRIPPED[use])


def test_the_truth_of_a_size_is_a_comparison_with_zero() -> None:
    n, leaf, ledger = size(8)
    assert not (n % 2)
    (comparison,) = ledger.comparisons
    assert comparison.left.value({leaf: 3}, {}) != comparison.right.value({}, {})


def test_comparisons_are_noted_with_their_truth_and_line() -> None:
    n, leaf, ledger = size(6)
    assert n > 4
    assert n != 5
    first, second = ledger.comparisons
    assert (first.symbol, first.truth, second.symbol, second.truth) == ("gt", True, "ne", True)
    assert first.where.startswith("test_provenance.py:")
    assert int(second.where.split(":")[1]) == int(first.where.split(":")[1]) + 1
    assert (first.left.value({leaf: 3}, {}), first.right) == (3, Literal(4))


def test_sizes_are_equated_with_what_the_code_says() -> None:
    ledger, leaf = Ledger(), axes.atom(6)
    ledger.equate(leaf, Literal(6), "a view")
    (equation,) = ledger.equations
    assert (equation.what, equation.right) == ("a view", Literal(6))
    assert equation.where.startswith("test_provenance.py:")


def test_a_closed_ledger_takes_no_more_notes() -> None:
    n, _, ledger = size(6)
    ledger.open = False
    assert n > 4
    assert math.sqrt(n) > 2
    assert ledger.comparisons == ledger.equations == []


def test_user_line_is_the_innermost_line_outside_of_libraries() -> None:
    def layer() -> str:
        return user_line()

    name, _, line = layer().partition(":")
    assert name == "test_provenance.py"
    assert int(line) == layer.__code__.co_firstlineno + 1


def test_nodes_have_a_common_face() -> None:
    leaf = axes.atom(4)
    nodes: list[Node] = [Literal(4), Size(leaf), Attribute("a", ("b",), 4)]
    assert [node.value({}, {}) for node in nodes] == [4, 4, 4]
    assert [str(node) for node in nodes] == ["4", "size(4)", "a.b"]
