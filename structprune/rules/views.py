"""The view family: the same elements under another shape."""

from __future__ import annotations

from structprune import axes
from structprune.axes import Const, Expr, product
from structprune.nodes import Literal, Node, Size
from structprune.rules.call import Call
from structprune.rules.context import Uncovered
from structprune.rules.registry import rule

_UNIT = Const(1)


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", "_reshape_copy", "view_copy")
def view(c: Call) -> None:
    """[a b], [c] -> [a], [b c]: the smallest runs of equal product are factored anew."""
    x = c["self"]
    if "dtype" in c.arguments and "size" not in c.arguments:
        if c.out.shape != x.shape:
            raise Uncovered("a view as another dtype changes the last dimension")
        c.set(c.out, c.dims(x))
        return
    sizes = list(c.out.shape)
    dims = axes.reshape(c.dims(x), sizes, c.why("the view cuts across the structure of a dimension"))
    given = list(c["size"] if "size" in c.arguments else c["shape"])
    for dim, node in zip(dims, c.nodes(given), strict=True):
        c.equate(dim, node, "a view")
    c.set(c.out, dims)


@rule("permute", "permute_copy")
def permute(c: Call) -> None:
    """[a], [b], [c] -> [c], [a], [b]."""
    dims = c.dims(c["self"])
    c.set(c.out, [dims[i] for i in c["dims"]])


@rule("transpose", "transpose_copy", "swapaxes")
def transpose(c: Call) -> None:
    """[a], [b] -> [b], [a]."""
    dims = list(c.dims(c["self"]))
    if dims:
        i, j = c["dim0"], c["dim1"]
        dims[i], dims[j] = dims[j], dims[i]
    c.set(c.out, dims)


@rule("t", "numpy_T", "t_copy")
def t(c: Call) -> None:
    """[a], [b] -> [b], [a]."""
    c.set(c.out, tuple(reversed(c.dims(c["self"]))))


@rule("unsqueeze", "unsqueeze_copy")
def unsqueeze(c: Call) -> None:
    """[a] -> [a], [1]."""
    dims = list(c.dims(c["self"]))
    dims.insert(c["dim"] % (len(dims) + 1), _UNIT)
    c.set(c.out, dims)


@rule("squeeze", "squeeze_copy")
def squeeze(c: Call) -> None:
    """[a], [1] -> [a]."""
    dims = c.dims(c["self"])
    chosen = c.get("dim")
    if chosen is None:
        gone = set(range(len(dims)))
    else:
        gone = {i % max(len(dims), 1) for i in ([chosen] if isinstance(chosen, int) else chosen)}
    c.set(c.out, [dim for i, dim in enumerate(dims) if not (i in gone and dim.size == 1)])


@rule("expand", "expand_copy")
def expand(c: Call) -> None:
    """[1] -> [n]: every position holds the same, so the new dimension is whatever it is asked to be as long as."""
    dims = c.dims(c["self"])
    sizes = list(c.out.shape)
    nodes = c.nodes(list(c["size"]))
    lead = len(sizes) - len(dims)
    out: list[Expr] = []
    for position, (size, node) in enumerate(zip(sizes, nodes, strict=True)):
        old = dims[position - lead] if position >= lead else _UNIT
        if old.size == size:
            c.equate(old, node, "an expand")
            out.append(old)
        else:
            out.append(repeated(c, size, node))
    c.set(c.out, out)


def repeated(c: Call, size: int, node: Node | None) -> Expr:
    """Return a dimension whose positions all hold the same: it follows the size that it was asked to have."""
    if isinstance(node, Size) and node.expr.size == size:
        return node.expr
    if isinstance(node, Literal):
        return Const(size, c.why(f"a dimension is expanded to the number {size}")())
    dim = axes.atom(size)
    if not isinstance(
        node, Node
    ):  # torch took the size from another tensor: the dimension joins what it meets
        return dim
    c.equate(dim, node, "an expand")
    return dim


@rule("select", "select_copy")
def select(c: Call) -> None:
    """[n], [a] -> [a]: one index is picked, so n stays as it is."""
    dims = list(c.dims(c["self"]))
    c.freeze(dims.pop(c["dim"] % len(dims)), f"position {int(c['index'])} is picked by its number")
    c.set(c.out, dims)


@rule("view_as_real", "view_as_real_copy")
def view_as_real(c: Call) -> None:
    """[a] -> [a], [2]."""
    c.set(c.out, (*c.dims(c["self"]), Const(2)))


@rule("view_as_complex", "view_as_complex_copy")
def view_as_complex(c: Call) -> None:
    """[a], [2] -> [a]."""
    *dims, pair = c.dims(c["self"])
    c.freeze(pair, "real and imaginary parts belong together")
    c.set(c.out, dims)


@rule("diagonal", "diagonal_copy")
def diagonal(c: Call) -> None:
    """[a], [a] -> [a]: both dimensions keep the same positions."""
    dims = list(c.dims(c["self"]))
    i, j = c.get("dim1", 0) % len(dims), c.get("dim2", 1) % len(dims)
    kept = [dim for position, dim in enumerate(dims) if position not in (i, j)]
    if c.get("offset", 0) or dims[i].size != dims[j].size:
        for dim in (dims[i], dims[j]):
            c.freeze(dim, "a diagonal off the main one is read by its numbers")
        c.set(c.out, [*kept, Const(c.out.shape[-1])])
        return
    c.unify(dims[i], dims[j])
    c.set(c.out, [*kept, dims[i]])


@rule("diag_embed")
def diag_embed(c: Call) -> None:
    """[a] -> [a], [a]: the diagonal of a matrix of zeros."""
    *rest, inner = c.dims(c["self"])
    i, j = sorted(axis % c.out.ndim for axis in (c.get("dim1", -2), c.get("dim2", -1)))
    if c.get("offset", 0):
        c.freeze(inner, "a diagonal off the main one is written by its numbers")
        inner = Const(c.out.shape[i])
    rest.insert(i, inner)
    rest.insert(j, inner)
    c.set(c.out, rest)


@rule("unfold")
def unfold(c: Call) -> None:
    """[n], [a] -> [windows], [a], [size]: windows slide along n, so n stays as it is."""
    dims = list(c.dims(c["self"]))
    if not dims:
        raise Uncovered("a window over a single number")
    axis = c["dimension"] % len(dims)
    c.freeze(dims[axis], "windows slide along this dimension")
    dims[axis] = Const(c.out.shape[axis])
    c.set(c.out, [*dims, Const(c["size"])])


@rule("as_strided", "as_strided_copy")
def as_strided(c: Call) -> None:
    """[n], [a] -> [windows], [m], [a]: rows are read by their distance in memory, each of them whole."""
    x = c["self"]
    dims = c.dims(x)
    if c.out.shape == x.shape and c.out.stride() == x.stride() and not c.get("storage_offset", 0):
        c.set(c.out, dims)
        return
    sizes, strides = list(c["size"]), list(c["stride"])
    row = dims[-1].size if dims else 0
    whole = x.is_contiguous() and sizes and dims and sizes[-1] == row and strides[-1] == 1
    if not whole or any(step % row for step in (*strides[:-1], c.get("storage_offset", 0))):
        raise Uncovered("as_strided reads memory by literal strides")
    for dim in dims[:-1]:
        c.freeze(dim, "as_strided reads rows by their distance in memory")
    c.equate(dims[-1], c.nodes(sizes)[-1], "as_strided")
    for step, node in zip(strides[:-1], c.nodes(strides)[:-1], strict=True):
        c.equate(product((Const(step // row), dims[-1])), node, "the stride of as_strided")
    if c.get("storage_offset", 0):
        offset = c["storage_offset"]
        c.equate(product((Const(offset // row), dims[-1])), c.node(offset), "the offset of as_strided")
    c.set(c.out, [*(Const(size) for size in sizes[:-1]), dims[-1]])
