"""Products that contract a dimension away: matrix products and convolutions."""

from __future__ import annotations

from structprune import axes
from structprune.axes import KERNEL, Const, Expr, product
from structprune.rules.call import Call
from structprune.rules.context import Dims, Uncovered
from structprune.rules.pointwise import broadcast
from structprune.rules.registry import rule


def _matrix_product(c: Call, left: str, right: str) -> tuple[Expr, ...]:
    a, b = c.dims(c[left]), c.dims(c[right])
    inner = a[-1]
    other = b[-2] if len(b) > 1 else b[-1]
    c.unify(inner, other)
    batch = broadcast(c, [a[:-2], b[:-2]], max(len(a), len(b)) - 2) if len(a) > 2 else ()
    rows = a[-2:-1]
    columns = b[-1:] if len(b) > 1 else ()
    weight = c.weight(left, right)
    if weight is not None:
        c.role(inner if weight == left else other, "in")
        for dim in rows if weight == left else columns:
            c.role(dim, "out")
    c.macs(*batch, *rows, *columns, inner)
    return (*batch, *rows, *columns)


def _mark(c: Call, left: str, right: str) -> None:
    a, b = c.dims(c[left]), c.dims(c[right])
    c.contract([a[-1]], {left: len(a) - 1, right: max(len(b) - 2, 0)})


@rule("mm", "mv", "dot", "bmm", "vdot", "_scaled_mm")
def matrix_product(c: Call) -> None:
    """[n, m], [m, p] -> [n, p]; in batches; or with vectors."""
    left, right = [name for name, value in c.arguments.items() if hasattr(value, "shape")][:2]
    c.set(c.out, _matrix_product(c, left, right))
    _mark(c, left, right)


@rule("addmm", "baddbmm", "addmv", "addbmm", "_addmm_activation")
def biased_matrix_product(c: Call) -> None:
    """[p], [n, m], [m, p] -> [n, p]."""
    _, left, right = [name for name, value in c.arguments.items() if hasattr(value, "shape")][:3]
    dims = _matrix_product(c, left, right)
    if c.name.startswith("addbmm"):
        dims = dims[1:]
    c.set(c.out, broadcast(c, [dims, c.dims(c["self"])], len(dims)))
    _mark(c, left, right)


@rule("addr", "outer", "ger")
def outer_product(c: Call) -> None:
    """[n], [m] -> [n, m]."""
    a, b = (c.dims(tensor) for tensor in c.tensors()[-2:])
    c.set(c.out, (a[0], b[0]))


@rule("linear")
def linear(c: Call) -> None:
    """[..., i], [o, i], [o] -> [..., o]."""
    x, weight = c.dims(c["input"]), c.dims(c["weight"])
    c.unify(x[-1], weight[-1])
    c.role(weight[-1], "in")
    if len(weight) > 1:
        c.role(weight[0], "out")
    if c.get("bias") is not None and len(weight) > 1:
        c.unify(weight[0], c.dims(c["bias"])[-1])
    c.macs(*x[:-1], *weight)
    c.set(c.out, (*x[:-1], *weight[:-1]))
    c.contract([x[-1]], {"input": len(x) - 1, "weight": len(weight) - 1})


@rule(
    "convolution",
    "_convolution",
    "convolution_overrideable",
    "mkldnn_convolution",
    "cudnn_convolution",
    "thnn_conv2d",
    "slow_conv3d",
)
def convolution(c: Call) -> None:
    """[b, [g i], ...], [[g o], i, ...] -> [b, [g o], ...]; transposed: the weight is [[g i], o, ...]."""
    x, weight = c.dims(c["input"]), c.dims(c["weight"])
    groups = c.get("groups", 1)
    places = _places(c, x)
    for dim in weight[2:]:
        axes.freeze(dim, KERNEL)
    reduced, inner, produced = (_transposed if c.get("transposed", False) else _plain)(
        c, x[1], weight, groups
    )
    if c.get("bias") is not None:
        c.unify(produced, c.dims(c["bias"])[0])
    out = (x[0], produced, *places)
    kernel = [Const(size) for size in c["weight"].shape[2:]]
    c.macs(x[0], produced, *(x[2:] if c.get("transposed", False) else places), inner, *kernel)
    c.set(c.out, out)
    c.contract(reduced, {"input": 1, "weight": 0 if c.get("transposed", False) else 1})


def _places(c: Call, x: Dims) -> list[Expr]:
    """A kernel of one position passes a dimension through; any other slides along it, and it stays as it is."""
    places: list[Expr] = []
    steps = zip(c["stride"], c["padding"], strict=True)
    still = c["weight"].shape[2:].numel() == 1 and all(step == (1, 0) for step in steps)
    for dim, size in zip(x[2:], c.out.shape[2:], strict=True):
        if still and dim.size == size:
            places.append(dim)
        else:
            c.freeze(dim, "a convolution slides along this dimension")
            places.append(Const(size))
    return places


def _grouped(c: Call, dim: Expr, groups: int) -> tuple[Expr, Expr]:
    return axes.factor(
        dim, groups, c.why("the groups of a convolution cut across the structure of its channels")
    )


def _tie_groups(c: Call, group: Expr, groups: int) -> None:
    if groups > 1:
        c.equate(group, c.argument("groups", 6, groups), "the groups of a convolution")


def _plain(c: Call, channels: Expr, weight: Dims, groups: int) -> tuple[list[Expr], Expr, Expr]:
    c.role(
        weight[1] if groups == 1 or weight[1].size > 1 else weight[0],
        "in" if weight[1].size > 1 else "affine",
    )
    c.role(weight[0], "out")
    if groups == 1:
        c.unify(channels, weight[1])
        return [channels], weight[1], weight[0]
    lead, inner = _grouped(c, channels, groups)
    mine, _ = _grouped(c, weight[0], groups)
    c.unify(lead, mine)
    c.unify(inner, weight[1])
    _tie_groups(c, lead, groups)
    return [inner], weight[1], weight[0]


def _transposed(c: Call, channels: Expr, weight: Dims, groups: int) -> tuple[list[Expr], Expr, Expr]:
    c.role(weight[0], "in")
    c.role(weight[1], "out")
    c.unify(channels, weight[0])
    if groups == 1:
        return [channels], channels, weight[1]
    lead, inner = _grouped(c, channels, groups)
    _tie_groups(c, lead, groups)
    return [inner], inner, product((lead, weight[1]))


@rule("_trilinear")
def trilinear(c: Call) -> None:
    """[b, i], [o, i, j], [b, j] -> [b, o], each operand unsqueezed where it lacks a dimension."""
    rank = c.out.ndim + len(c["sumdim"])
    operands = [list(c.dims(c[name])) for name in ("i1", "i2", "i3")]
    for dims, added in zip(operands, (c["expand1"], c["expand2"], c["expand3"]), strict=True):
        for axis in sorted(added):
            dims.insert(axis, Const(1))
    full = broadcast(c, operands, rank)
    reduced = sorted(axis % rank for axis in c["sumdim"])
    weight = operands[1]
    for axis, dim in enumerate(weight):
        if dim.size > 1:
            c.role(dim, "in" if axis in reduced else "out")
    c.macs(*full)
    c.set(c.out, [dim for axis, dim in enumerate(full) if axis not in reduced])
    arguments = {name: c.dims(c[name]) for name in ("i1", "i2", "i3")}
    c.statistic("", arguments, [full[axis] for axis in reduced])


@rule("_grouped_mm")
def grouped_matrix_product(c: Call) -> None:
    """[s, k], [g, k, n] -> [s, n]: rows of the first go to one of g weights, by offsets."""
    x, weight = c.dims(c["self"]), c.dims(c["mat2"])
    if len(x) != 2 or len(weight) != 3:
        raise Uncovered("a grouped product whose offsets cut the contracted dimension")
    c.unify(x[1], weight[1])
    c.freeze(weight[0], "rows are sent to these weights by their number")
    c.freeze(x[0], "rows are sent to one of several weights")
    c.role(weight[1], "in")
    c.role(weight[2], "out")
    if c.get("bias") is not None:
        c.unify(weight[2], c.dims(c["bias"])[-1])
    c.macs(x[0], weight[2], x[1])
    c.set(c.out, (x[0], weight[2]))
    c.contract([x[1]], {"self": 1, "mat2": 1})
