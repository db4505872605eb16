"""Tensors made from nothing: as long as the code asks for."""

from __future__ import annotations

from structprune.axes import Const, Expr
from structprune.nodes import Literal, Node, Size
from structprune.rules.call import Call
from structprune.rules.registry import rule
from structprune.rules.views import repeated


@rule(
    "zeros",
    "ones",
    "empty",
    "full",
    "rand",
    "randn",
    "new_zeros",
    "new_ones",
    "new_empty",
    "new_full",
    "empty_strided",
    "new_empty_strided",
    "empty_permuted",
)
def filled(c: Call) -> None:
    """-> [n]: every position holds the same, so a size taken from an axis makes it that axis."""
    sizes = list(c["size"])
    nodes = c.nodes(sizes)
    c.set(c.out, [_dimension(c, size, node) for size, node in zip(sizes, nodes, strict=True)])


def _dimension(c: Call, size: int, node: Node | None) -> Expr:
    if isinstance(node, Literal):
        return Const(size, c.why(f"a tensor is made with the number {size}")() if size > 1 else None)
    return repeated(c, size, node)


@rule(
    "arange",
    "linspace",
    "logspace",
    "eye",
    "randperm",
    "tril_indices",
    "triu_indices",
    "hann_window",
    "scalar_tensor",
    "randint",
    "range",
    "kaiser_window",
    "hamming_window",
    "blackman_window",
)
def counted(c: Call) -> None:
    """-> [n]: every position holds its own number, so a size taken from an axis freezes that axis."""
    function = c.context.function
    for position, value in enumerate(function.ints if function else ()):
        node = getattr(value, "node", None)
        if node is None:
            continue
        assert function is not None
        function.used.add(position)
        for leaf in node.leaves():
            if isinstance(leaf, Size):
                c.freeze(leaf.expr, f"{c.name} numbers its positions")
        c.equate(Const(int(value)), node, f"{c.name}")
    c.set(c.out, [Const(size) for size in c.out.shape])
