"""Which layers the values of a tensor come from, as far back as the last one that contracted something.

A trace knows which dimensions are the same axis. What an axis is *for* shows in how values flow: sums of what different
layers made are a residual stream, a layer that reads what it made itself is recurrent, a product of two activations
that a second such product reads is attention. Nothing is decided here; `structprune.recognition` reads the record.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from structprune.axes import Expr

__all__ = ["Addition", "Lineage", "Maker", "Pairing", "Stacked"]

Dims = tuple[Expr, ...]
_ADDITIONS = frozenset(("add", "sub"))


@dataclass(frozen=True, slots=True)
class Maker:
    """A dimension of a weight that its layer makes; a look-up table contracts nothing."""

    made: Expr
    looked_up: bool


@dataclass(frozen=True, slots=True)
class Pairing:
    """A product of two activations: the dimensions of both and of the result, and what is contracted.

    ``complete``: attention in one operation, from queries and keys to weighted values.
    """

    left: Dims
    right: Dims
    reduced: Dims
    out: Dims
    complete: bool


@dataclass(frozen=True, slots=True)
class Addition:
    """Two activations of one shape added: the makers of each, as bits, and the dimensions of the sum."""

    left: int
    right: int
    out: Dims


@dataclass(frozen=True, slots=True)
class Stacked:
    """A product of an activation with a weight of more than two dimensions: those that it does not contract."""

    weight: Dims
    other: Dims
    out: Dims


@dataclass(slots=True)
class Lineage:
    """The record of one run. Makers and pairings are numbered together; a set of them is the bits of an integer.

    ``recurrent``: makers that read what they made; ``chained``: pairings that read another or are read by one, of which
    ``scores`` are read.
    """

    makers: dict[int, Maker] = field(default_factory=dict)
    pairings: dict[int, Pairing] = field(default_factory=dict)
    additions: list[Addition] = field(default_factory=list)
    stacked: list[Stacked] = field(default_factory=list)
    contracted: list[Expr] = field(default_factory=list)
    convolved: list[Expr] = field(default_factory=list)
    recurrent: int = 0
    chained: int = 0
    scores: int = 0
    _numbers: dict[int, int] = field(default_factory=dict)
    _weights: list[tuple[Expr, str, bool]] = field(default_factory=list)
    _paired: Pairing | None = None

    def weight(self, expr: Expr, role: str, convolves: bool) -> None:
        """Note a dimension of the weight of the operation under way: one it makes, contracts or passes through."""
        self._weights.append((expr, role, convolves))

    def pair(self, pairing: Pairing) -> None:
        """Note that the operation under way multiplies two activations."""
        self._paired = pairing

    def passed(self, name: str, read: Sequence[int], reached: int, shapes_agree: bool, out: Dims) -> int:
        """Return who made what the operation returned, given who made each activation that it read.

        ``reached`` are the makers of those that depend on the inputs.
        """
        known = 0
        for one in read:
            known |= one
        if self._paired is not None:
            known = self._product(known, self._paired)
        elif self._weights:
            known = self._layer(known, reached)
        elif name in _ADDITIONS and len(read) == 2 and shapes_agree:
            self._sum(read[0], read[1], out)
        self._weights, self._paired = [], None
        return known

    @property
    def makes(self) -> bool:
        """Whether the operation under way is a layer."""
        return bool(self._weights)

    def _layer(self, known: int, reached: int) -> int:
        looked_up = all(role == "out" for _, role, _ in self._weights)
        self.contracted += [expr for expr, role, _ in self._weights if role == "in"]
        self.convolved += [expr for expr, _, convolves in self._weights if convolves]
        bits = 0
        for expr in (expr for expr, role, _ in self._weights if role == "out"):
            number = self._numbers.setdefault(id(expr), len(self._numbers))
            self.makers.setdefault(number, Maker(expr, looked_up))
            bits |= 1 << number
        self.recurrent |= reached & bits
        return bits or known

    def _product(self, known: int, pairing: Pairing) -> int:
        before = self.among(known, self.pairings)
        number = self._numbers.setdefault(id(pairing), len(self._numbers))
        self.pairings[number] = pairing
        if before or pairing.complete:
            self.chained |= before | 1 << number
            self.scores |= before
        return known | 1 << number

    def _sum(self, left: int, right: int, out: Dims) -> None:
        if left & ~right and right & ~left:
            self.additions.append(Addition(left, right, out))

    @staticmethod
    def among(bits: int, numbers: Iterable[int]) -> int:
        """Return those of ``bits`` that have one of ``numbers``."""
        return sum(1 << number for number in numbers if bits >> number & 1)
