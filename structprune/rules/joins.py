"""Concatenation and its opposite: cat, stack, split, chunk, slice, pad, repeat, roll."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from structprune import axes
from structprune.axes import Const, Expr, product, total
from structprune.nodes import Literal, Node, Size, ceil_div, negative
from structprune.provenance import plain
from structprune.rules.call import Call
from structprune.rules.context import Uncovered, free
from structprune.rules.registry import function_rule, rule
from structprune.rules.views import repeated


@rule("cat", "concatenate")
def cat(c: Call) -> None:
    """[a], [b] -> [(a + b)]."""
    tensors = [tensor for tensor in c["tensors"] if tensor.ndim == c.out.ndim]
    operands = [c.dims(tensor) for tensor in tensors]
    axis = c.get("dim", 0) % c.out.ndim
    out = list(operands[0])
    for dims in operands[1:]:
        for position, dim in enumerate(dims):
            if position != axis:
                c.unify(out[position], dim)
    out[axis] = total(dims[axis] for dims in operands)
    c.set(c.out, out)


@rule("stack", "_stack")
def stack(c: Call) -> None:
    """[a], [a] -> [2], [a]."""
    operands = [c.dims(tensor) for tensor in c["tensors"]]
    out = list(operands[0])
    for dims in operands[1:]:
        for mine, other in zip(out, dims, strict=True):
            c.unify(mine, other)
    out.insert(c.get("dim", 0) % c.out.ndim, Const(len(operands)))
    c.set(c.out, out)


def cut_at(c: Call, dim: Expr, sizes: Sequence[int]) -> list[Expr]:
    """Return the consecutive pieces of ``dim`` of the given sizes."""
    pieces = []
    for size in sizes[:-1]:
        piece, dim = axes.split(dim, size, c.why("a cut falls inside a product of dimensions"))
        pieces.append(piece)
    return [*pieces, dim]


def split_equally(c: Call, dim: Expr, parts: int) -> list[Expr]:
    """Return the ``parts`` equal pieces of ``dim``, whose counts stay equal whatever is cut."""
    pieces = cut_at(c, dim, [dim.size // parts] * parts)
    for piece, node in zip(pieces, _equal_parts(dim, pieces), strict=True):
        c.equate(piece, node, f"a split into {parts} equal parts")
    return pieces


@rule(
    "split",
    "split_with_sizes",
    "unsafe_split",
    "unsafe_split_with_sizes",
    "unsafe_chunk",
    "chunk",
    "split_copy",
)
def split(c: Call) -> None:
    """[(a + b)] -> [a], [b]: pieces by the sizes the code gives, or equal ones."""
    outputs = list(c.out)
    dims = c.dims(c["self"])
    axis = c.get("dim", 0) % len(dims)
    whole = dims[axis]
    pieces = cut_at(c, whole, [tensor.shape[axis] for tensor in outputs])
    given = c.get("split_sizes", c.get("split_size"))
    if isinstance(given, list | tuple):
        nodes: list[Node | None] = c.nodes(list(given))
    else:
        nodes = _by_size(c, given, whole, pieces)
    for tensor, piece, node in zip(outputs, pieces, nodes, strict=True):
        c.equate(piece, node, "a split")
        c.set(tensor, [piece if i == axis else dim for i, dim in enumerate(dims)])


def _by_size(c: Call, size: int | None, whole: Expr, pieces: Sequence[Expr]) -> list[Node | None]:
    """Return what the pieces of a split by one size must be as long as, the number of pieces staying as it is."""
    counted = (
        c.context.function is not None and c.context.function.name == "chunk"
    )  # its number is that of pieces
    node = None if size is None or counted or len(pieces) == 1 else c.node(size)
    if node is None:
        return _equal_parts(whole, pieces) if len(pieces) > 1 else [None]
    c.count(len(pieces), ceil_div(Size(whole), node), "the number of pieces of a split")
    return [*(node for _ in pieces[1:]), node if pieces[-1].size == size else None]


def _equal_parts(whole: Expr, pieces: Sequence[Expr]) -> list[Node | None]:
    """Return what the pieces of a chunk are equal to: the first one, or where it does not come out even,
    the quotient.
    """
    if whole.size % len(pieces) == 0:
        return [None, *(Size(pieces[0]) for _ in pieces[1:])]
    quotient = ceil_div(Size(whole), Literal(len(pieces)))
    return [*(quotient for _ in pieces[1:]), None]


@rule("unbind", "unbind_copy")
def unbind(c: Call) -> None:
    """[n], [a] -> n times [a]: the program counts the pieces, so n stays as it is."""
    dims = list(c.dims(c["self"]))
    c.freeze(dims.pop(c.get("dim", 0) % len(dims)), "the pieces along this dimension are counted by the code")
    for tensor in c.out:
        c.set(tensor, dims)


@rule("slice", "slice_copy")
def slice_(c: Call) -> None:
    """[(a + b + c)] -> [b]: a stretch of positions; a strided one picks the inner factor of [n step]."""
    dims = list(c.dims(c["self"]))
    axis = c.get("dim", 0) % len(dims)
    dims[axis] = sliced(c, dims[axis], c.get("start", 0), c.get("end", 2**62), c.get("step", 1))
    c.set(c.out, dims)


def sliced(c: Call, dim: Expr, start: int, end: int, step: int) -> Expr:
    """Return the expression of ``dim[start:end:step]``, with demands on the counts that the bounds fix."""
    low = max(0, start + dim.size) if start < 0 else min(start, dim.size)
    high = max(0, end + dim.size) if end < 0 else min(end, dim.size)
    if not free(dim):
        if low == 0 and high == dim.size and step == 1:
            return dim
        return Const(len(range(low, high, step)))
    if step != 1:
        return _strided(c, dim, low, high, step)
    high = max(low, high)
    before, middle, after = cut_at(c, dim, [low, high - low, dim.size - high])
    given = c.narrowed(start, end)
    if given is not None:
        c.equate(before, given[0], "a slice")
        c.equate(middle, given[1], "a slice")
        return middle
    if low:
        _bound(c, start, before, total((middle, after)))
    if high < dim.size:
        _bound(c, end, total((before, middle)), after)
    elif 0 <= end < 2**31:
        c.equate(dim, c.node(end), "a slice")
    return middle


def _bound(c: Call, bound: int, before: Expr, after: Expr) -> None:
    node = c.bound(bound)
    if bound < 0:
        c.equate(after, negative(node), "a slice")
    else:
        c.equate(before, node, "a slice")


def _strided(c: Call, dim: Expr, low: int, high: int, step: int) -> Expr:
    if dim.size % step or low >= step or high < dim.size:
        c.freeze(dim, f"every {step}th position is taken, counted from {low}")
        return Const(len(range(low, high, step)))
    outer, inner = axes.factor(dim, dim.size // step, c.why("a strided slice cuts across the structure"))
    c.freeze(inner, f"every {step}th position is taken")
    return outer


@rule("constant_pad_nd", "pad")
def constant_pad(c: Call) -> None:
    """[a] -> [(p + a + q)]: the padding stays as wide as it is; a negative one cuts off."""
    dims = list(c.dims(c["self"]))
    pads = list(c["pad"])
    nodes = c.nodes(pads)
    for number in range(len(pads) // 2):
        axis = len(dims) - 1 - number
        ends: list[Expr] = []
        for pad, node in zip(
            pads[2 * number : 2 * number + 2], nodes[2 * number : 2 * number + 2], strict=True
        ):
            ends.append(Const(max(pad, 0)))
            if pad and node is not None and not isinstance(node, Literal):
                c.equate(Const(pad), node, "a padding")
        dim = dims[axis]
        if min(pads[2 * number : 2 * number + 2]) < 0:
            low = max(0, -pads[2 * number])
            high = dim.size - max(0, -pads[2 * number + 1])
            dim = sliced(c, dim, low, high, 1)
        dims[axis] = total((ends[0], dim, ends[1]))
    c.set(c.out, dims)


@rule("repeat", "tile")
def repeat(c: Call) -> None:
    """[a] -> [r a]: r copies one after the other."""
    counts = list(c["repeats"])
    dims = c.dims(c["self"])
    lead = len(counts) - len(dims)
    out: list[Expr] = []
    for position, (count, node) in enumerate(zip(counts, c.nodes(counts), strict=True)):
        dim = dims[position - lead] if position >= lead else Const(1)
        if dim.size == 1:
            out.append(repeated(c, count, node))
            continue
        c.equate(Const(count), node, "a repeat")
        out.append(product((Const(count), dim)) if count else Const(0))
    c.set(c.out, out)


@function_rule(torch.repeat_interleave, "self repeats dim")
@function_rule(torch.Tensor.repeat_interleave, "self repeats dim")
@function_rule(torch.ops.aten.repeat_interleave.self_int, "self repeats dim")
@rule("repeat_interleave")
def repeat_interleave(c: Call) -> None:
    """[a] -> [a r]: every position r times in a row."""
    dims = list(c.dims(c["self"]))
    repeats = c.get("repeats")
    if not isinstance(repeats, int) or c.get("dim") is None:
        raise Uncovered("positions are repeated by a tensor of counts")
    axis = c["dim"] % len(dims)
    dims[axis] = product((dims[axis], repeated(c, plain(repeats), c.argument("repeats", 1, repeats))))
    c.set(c.out, dims)


@rule("roll", "flip")
def moved(c: Call) -> None:
    """[n] -> [n], positions moved: n stays as it is where it moves."""
    dims = list(c.dims(c["self"]))
    chosen = c.get("dims") or range(len(dims))
    for axis in [chosen] if isinstance(chosen, int) else chosen:
        c.freeze(dims[axis], f"{c.name} moves its positions")
        dims[axis] = Const(dims[axis].size)
    c.set(c.out, dims)


@rule("rot90")
def turned(c: Call) -> None:
    """[n], [m] -> [m], [n], turned: both stay as they are."""
    dims = list(c.dims(c["self"]))
    i, j = c.get("dims", (0, 1))
    for axis in (i, j):
        c.freeze(dims[axis], "a rotation moves its positions")
    if c.get("k", 1) % 2:
        dims[i], dims[j] = dims[j], dims[i]
    c.set(c.out, dims)


@rule("slice_scatter", "slice_inverse")
def written_slice(c: Call) -> None:
    """[(a + b)], [b] -> [(a + b)]: a stretch is replaced."""
    dims = c.dims(c["self"])
    axis = c.get("dim", 0) % len(dims)
    stretch = sliced(c, dims[axis], c.get("start", 0), c.get("end", 2**62), c.get("step", 1))
    for position, other in enumerate(c.dims(c["src"])):
        c.unify(stretch if position == axis else dims[position], other)
    c.set(c.out, dims)


@rule("select_scatter")
def written_index(c: Call) -> None:
    """[n], [a], [a] -> [n], [a]: one index of n is replaced."""
    dims = c.dims(c["self"])
    axis = c["dim"] % len(dims)
    c.freeze(dims[axis], f"position {int(c['index'])} is written by its number")
    rest = [dim for position, dim in enumerate(dims) if position != axis]
    for mine, other in zip(rest, c.dims(c["src"]), strict=True):
        c.unify(mine, other)
    c.set(c.out, dims)
