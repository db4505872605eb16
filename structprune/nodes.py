"""Integer expressions: sizes of dimensions, attributes of modules, literals, and arithmetic on those."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from structprune.axes import Atom, Expr, size_under

__all__ = [
    "Attribute",
    "Literal",
    "Node",
    "Operation",
    "Size",
    "ceil_div",
    "negative",
]


class Node:
    """An integer expression."""

    __slots__ = ()

    def value(self, counts: Mapping[Atom, int], attributes: Mapping[Attribute, Expr]) -> int:
        """Return the number when atoms keep ``counts`` and attributes follow the sizes of ``attributes``."""
        raise AssertionError("abstract")

    def leaves(self) -> Iterator[Node]:
        """Yield the sizes, attributes and literals the expression is made of."""
        yield self


@dataclass(frozen=True, slots=True)
class Literal(Node):
    """A number written in the code, or one that reached torch without a trace."""

    number: int

    def value(self, counts: Mapping[Atom, int], attributes: Mapping[Attribute, Expr]) -> int:
        return self.number

    def __str__(self) -> str:
        return str(self.number)


@dataclass(frozen=True, slots=True, eq=False)
class Size(Node):
    """The size of a dimension, as `x.shape` gives it."""

    expr: Expr

    def value(self, counts: Mapping[Atom, int], attributes: Mapping[Attribute, Expr]) -> int:
        return size_under(self.expr, counts)

    def __str__(self) -> str:
        return f"size({self.expr.size})"


@dataclass(frozen=True, slots=True)
class Attribute(Node):
    """The integer at ``path`` below a module: attribute name, then indices, keys or further attributes."""

    module: str
    path: tuple[str | int, ...]
    number: int

    def value(self, counts: Mapping[Atom, int], attributes: Mapping[Attribute, Expr]) -> int:
        expr = attributes.get(self)
        return self.number if expr is None else size_under(expr, counts)

    def __str__(self) -> str:
        steps = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in self.path)
        return (self.module + steps).lstrip(".")


@dataclass(frozen=True, slots=True, eq=False)
class Operation(Node):
    """Arithmetic on integer expressions."""

    symbol: str
    function: Callable[..., int]
    operands: tuple[Node, ...]

    def value(self, counts: Mapping[Atom, int], attributes: Mapping[Attribute, Expr]) -> int:
        return self.function(*(operand.value(counts, attributes) for operand in self.operands))

    def leaves(self) -> Iterator[Node]:
        for operand in self.operands:
            yield from operand.leaves()

    def __str__(self) -> str:
        if len(self.operands) == 1:
            return f"{self.symbol}({self.operands[0]})"
        return f"({self.operands[0]} {self.symbol} {self.operands[1]})"


def ceil_div(a: Node, b: Node) -> Node:
    """Return the node of ``a / b``, rounded up."""
    return Operation("/^", lambda x, y: -(-x // y), (a, b))


def negative(node: Node) -> Node:
    """Return the node of ``-node``."""
    return Operation("-", operator.neg, (node,))
