"""Where an integer came from: the size of an axis, an attribute of a module, a literal, or arithmetic on those.

While a model is traced, `x.shape` and module attributes hand out `TracedInt`: an int in every respect, that remembers
the expression behind its value. What the code then demands of its integers (a view size, a slice bound, a group count,
a comparison, a number used as a value) is written into a `Ledger`, and decided once the whole network has been seen.
An integer that arrives without a trace counts as a literal, which is always safe.
"""

from __future__ import annotations

import linecache
import operator
import os
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from structprune.axes import Expr
from structprune.nodes import Attribute, Literal, Node, Operation, Size, negative

__all__ = [
    "Attribute",
    "Comparison",
    "Equation",
    "Ledger",
    "Literal",
    "Node",
    "Operation",
    "Size",
    "TracedInt",
    "asked_by_user",
    "is_library",
    "node_of",
    "plain",
    "user_line",
]

_HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep


def user_line() -> str:
    """Return ``file.py:12`` of the innermost frame that belongs neither to torch nor to structprune.

    The code of a rewritten model stands for the lines it was made from.
    """
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith("<eval_with_key>"):
            where = _line_behind(frame)
            if where:
                return where
        if not (name.startswith(_HERE) or is_library(name)):
            return f"{os.path.basename(name)}:{frame.f_lineno}"
        if frame.f_back is None:
            break
        frame = frame.f_back
    return ""


def _line_behind(frame: types.FrameType) -> str:
    """Return the line that a statement of generated code was made from, as its module's ``sources`` say: by the name
    it assigns.
    """
    sources = getattr(frame.f_locals.get("self"), "sources", None)
    statement = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
    return sources.get(statement.split("=")[0].strip(), "") if isinstance(sources, dict) else ""


def asked_by_user() -> bool:
    """Return whether the innermost frame outside of structprune is neither torch's nor Python's own."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_HERE):
        frame = frame.f_back
    name = frame.f_code.co_filename
    return name.startswith("<eval_with_key>") or not is_library(name)


def is_library(name: str) -> bool:
    """Return whether a file of this name is torch's, numpy's, or no file of anybody's."""
    parts = (f"{os.sep}torch{os.sep}", f"{os.sep}numpy{os.sep}", f"{os.sep}contextlib.py")
    return name.startswith("<") or any(part in name for part in parts)


@dataclass(frozen=True, slots=True)
class Equation:
    """What must hold after a cut: ``left`` and ``right`` are the same number, because of ``what`` at ``where``."""

    left: Node
    right: Node
    what: str
    where: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """A comparison in the user's code whose truth must not change."""

    function: Callable[[int, int], bool]
    symbol: str
    left: Node
    right: Node
    truth: bool
    where: str


@dataclass(slots=True)
class Ledger:
    """Everything the code demanded of its integers during one trace."""

    equations: list[Equation] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    open: bool = True

    def equate(self, expr: Expr, node: Node, what: str) -> None:
        """Demand that dimension ``expr`` has as many positions as ``node`` says."""
        self.equations.append(Equation(Size(expr), node, what, user_line()))

    def hold(self, number: int, node: Node, what: str) -> None:
        """Demand that ``node`` stays ``number``."""
        self.equations.append(Equation(Literal(number), node, what, user_line()))

    def number(self, value: TracedInt) -> None:
        """Note that ``value`` was used as a number, not as a size: it must not change."""
        if self.open:
            self.equations.append(
                Equation(Literal(plain(value)), value.node, "a use as a number", user_line())
            )

    def compare(self, function: Any, symbol: str, left: TracedInt, right: int) -> bool:
        truth = bool(function(plain(left), plain(right)))
        if self.open:
            self.comparisons.append(
                Comparison(function, symbol, left.node, node_of(right), truth, user_line())
            )
        return truth


def plain(value: int) -> int:
    """Return the number alone, without noting that it was asked for."""
    return int.__index__(value)


def node_of(value: int) -> Node:
    """Return the expression behind ``value``; a plain int is a literal."""
    return value.node if isinstance(value, TracedInt) else Literal(plain(value))


class TracedInt(int):
    """An int that remembers where it came from. Hashes, prints and counts as the int it is."""

    node: Node
    ledger: Ledger

    def __new__(cls, value: int, node: Node, ledger: Ledger) -> TracedInt:
        self = super().__new__(cls, value)
        self.node = node
        self.ledger = ledger
        return self

    def __hash__(self) -> int:
        return int.__hash__(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return (int, (plain(self),))

    def __deepcopy__(self, memo: dict[int, Any]) -> TracedInt:
        return self

    def __copy__(self) -> TracedInt:
        return self

    def __neg__(self) -> TracedInt:
        return TracedInt(-plain(self), negative(self.node), self.ledger)

    def __pos__(self) -> TracedInt:
        return self

    def __bool__(self) -> bool:
        return self.ledger.compare(operator.ne, "ne", self, 0)

    def __int__(self) -> int:
        self.ledger.number(self)
        return plain(self)

    def __format__(self, spec: str) -> str:
        self.ledger.number(self)
        return format(plain(self), spec)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        numbers = [int(value) if isinstance(value, TracedInt) else value for value in inputs]
        return getattr(ufunc, method)(*numbers, **kwargs)

    def __float__(self) -> float:
        self.ledger.number(self)
        return float(plain(self))

    def __truediv__(self, other: Any) -> Any:
        return _as_number(operator.truediv, self, other)

    def __rtruediv__(self, other: Any) -> Any:
        return _as_number(operator.truediv, other, self)

    def __pow__(self, other: Any, mod: Any = None) -> Any:
        if mod is None and type(other) is int and other >= 0:
            return _arithmetic("**", operator.pow, self, other)
        return _as_number(operator.pow, self, other)

    def __rpow__(self, other: Any, mod: Any = None) -> Any:
        return _as_number(operator.pow, other, self)

    def __divmod__(self, other: Any) -> Any:
        return self // other, self % other


def _as_number(function: Callable[[Any, Any], Any], left: Any, right: Any) -> Any:
    numbers = []
    for operand in (left, right):
        if isinstance(operand, TracedInt):
            operand.ledger.number(operand)
            operand = plain(operand)
        elif not isinstance(operand, int | float | complex):
            return NotImplemented
        numbers.append(operand)
    return function(*numbers)


def _arithmetic(symbol: str, function: Callable[[Any, Any], Any], left: Any, right: Any) -> Any:
    if not (isinstance(left, int) and isinstance(right, int)):
        if isinstance(left, float) or isinstance(right, float):
            return _as_number(function, left, right)
        return NotImplemented
    ledger = left.ledger if isinstance(left, TracedInt) else right.ledger  # type: ignore[attr-defined]
    node = Operation(symbol, function, (node_of(left), node_of(right)))
    return TracedInt(function(plain(left), plain(right)), node, ledger)


def _install(symbol: str, name: str, function: Callable[[Any, Any], Any]) -> None:
    setattr(TracedInt, f"__{name}__", lambda self, other: _arithmetic(symbol, function, self, other))
    setattr(TracedInt, f"__r{name}__", lambda self, other: _arithmetic(symbol, function, other, self))


def _install_comparison(symbol: str, name: str, function: Callable[[Any, Any], bool]) -> None:
    def compare(self: TracedInt, other: Any) -> Any:
        if isinstance(other, int) and not isinstance(other, bool):
            return self.ledger.compare(function, symbol, self, other)
        if isinstance(other, float):
            self.ledger.number(self)
            return function(plain(self), other)
        return NotImplemented

    setattr(TracedInt, f"__{name}__", compare)


def _install_number(name: str) -> None:
    method = getattr(int, name)

    def as_number(self: TracedInt, *others: Any, **options: Any) -> Any:
        for operand in (self, *others):
            if isinstance(operand, TracedInt):
                operand.ledger.number(operand)
        return method(plain(self), *(plain(o) if isinstance(o, TracedInt) else o for o in others), **options)

    setattr(TracedInt, name, as_number)


_UNARY = ("abs", "round", "trunc", "floor", "ceil", "invert")
_BITS = ("lshift", "rshift", "and", "or", "xor", "rlshift", "rrshift", "rand", "ror", "rxor")
for _name in (*_UNARY, *_BITS):
    _install_number(f"__{_name}__")
for _name in ("bit_length", "bit_count", "to_bytes", "as_integer_ratio"):
    _install_number(_name)

_FLOOR = {"+": ("add", operator.add), "-": ("sub", operator.sub), "*": ("mul", operator.mul)}
_FLOOR |= {"//": ("floordiv", operator.floordiv), "%": ("mod", operator.mod)}
for _symbol, (_name, _function) in _FLOOR.items():
    _install(_symbol, _name, _function)
for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    _install_comparison(_name, _name, getattr(operator, _name))
