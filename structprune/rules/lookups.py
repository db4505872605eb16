"""Look-ups by index: positions are named by number, so the dimension they are looked up in stays as it is."""

from __future__ import annotations

import torch

from structprune.axes import Const, Expr
from structprune.rules.context import Call, Dims, iter_tensors
from structprune.rules.pointwise import broadcast
from structprune.rules.registry import rule


@rule("embedding")
def embedding(c: Call) -> None:
    """[v, d], [...] -> [..., d]."""
    rows, width = c.dims(c["weight"])
    c.freeze(rows, "rows are looked up by their number")
    c.role(width, "out")
    c.set(c.out, (*c.dims(c["indices"]), width))


@rule("_embedding_bag", "_embedding_bag_forward_only", "embedding_bag")
def embedding_bag(c: Call) -> None:
    """[v, d], [n], [b] -> [b, d]."""
    rows, width = c.dims(c["weight"])
    c.freeze(rows, "rows are looked up by their number")
    c.role(width, "out")
    first, *others = iter_tensors([c.out])
    c.set(first, (Const(first.shape[0]), width))
    for tensor in others:
        c.set(tensor, [Const(size) for size in tensor.shape])


@rule("index", "_unsafe_index")
def index(c: Call) -> None:
    """[n], [a] and positions [k] -> [k], [a]."""
    dims = c.dims(c["self"])
    chosen = list(c["indices"]) + [None] * (len(dims) - len(c["indices"]))
    at = [position for position, value in enumerate(chosen) if value is not None]
    if any(chosen[position].dtype in (torch.bool, torch.uint8) for position in at):
        _by_mask(c, dims)
        return
    for position in at:
        c.freeze(dims[position], "positions are looked up by their number")
    places = [c.dims(chosen[position]) for position in at]
    rank = max((len(place) for place in places), default=0)
    picked = list(broadcast(c, places, rank))
    rest = [dim for position, dim in enumerate(dims) if position not in at]
    together = at == list(range(at[0], at[0] + len(at))) if at else True
    lead = at[0] if at and together else 0
    c.set(c.out, [*rest[:lead], *picked, *rest[lead:]])


def _by_mask(c: Call, dims: Dims) -> None:
    """[n, m], [a] and a mask [n, m] -> [?], [a]: how many are picked depends on values, so n and m stay."""
    taken = 0
    out: list[Expr] = []
    masks = [value for value in c["indices"] if value is not None]
    if len(masks) > 1:
        c.freeze_all("several masks pick positions whose number is not known beforehand")
        return
    for value in c["indices"]:
        if value is None:
            out.append(dims[taken])
            taken += 1
            continue
        for dim, mine in zip(dims[taken : taken + value.ndim], c.dims(value), strict=True):
            c.freeze(dim, "a mask picks positions whose number is not known beforehand")
            c.freeze(mine, "a mask picks positions whose number is not known beforehand")
        taken += value.ndim
        out.append(Const(c.out.shape[len(out)]))
    c.set(c.out, [*out, *dims[taken:]])


@rule("index_select")
def index_select(c: Call) -> None:
    """[n], [a] and positions [k] -> [k], [a]."""
    dims = list(c.dims(c["self"]))
    axis = c["dim"] % max(len(dims), 1)
    c.freeze(dims[axis], "positions are looked up by their number")
    dims[axis] = c.dims(c["index"])[0] if c["index"].ndim else Const(1)
    c.set(c.out, dims)


@rule("gather", "take_along_dim")
def gather(c: Call) -> None:
    """[n], [a] and positions [k], [a] -> [k], [a]."""
    dims, places = c.dims(c["self"]), list(c.dims(c["index"]))
    axis = c["dim"] % max(len(dims), 1)
    for position, (mine, other) in enumerate(zip(dims, places, strict=True)):
        if position == axis:
            c.freeze(mine, "positions are gathered by their number")
        elif mine.size == other.size:
            c.unify(mine, other)
        else:
            c.freeze(mine, "positions are gathered by their number")
    c.set(c.out, places)


@rule(
    "index_put",
    "_index_put_impl",
    "index_add",
    "index_copy",
    "index_fill",
    "scatter",
    "scatter_add",
    "scatter_reduce",
    "_unsafe_index_put",
)
def write_by_index(c: Call) -> None:
    """[n], [a], positions, values -> [n], [a]: written by number along n; other dimensions stay together."""
    x = c["self"]
    dims = c.dims(x)
    if "dim" in c.arguments:
        axis = c["dim"] % max(len(dims), 1)
        for tensor in c.tensors():
            for position, dim in enumerate(c.dims(tensor)):
                same = tensor.ndim == x.ndim and dim.size == dims[position].size
                if position != axis and same:
                    c.unify(dims[position], dim)
                elif dim.size > 1:
                    c.freeze(dim, "positions are written by their number")
        c.freeze(dims[axis], "positions are written by their number")
    else:
        _index_put(c, dims)
    if c.out is not x:
        c.set(c.out, dims)


def _index_put(c: Call, dims: tuple[object, ...]) -> None:
    own = c.dims(c["self"])
    chosen = list(c["indices"]) + [None] * (len(own) - len(c["indices"]))
    for position, value in enumerate(chosen):
        if value is not None:
            c.freeze(own[position], "positions are written by their number")
    values = c.dims(c["values"])
    rest = [dim for dim, value in zip(own, chosen, strict=False) if value is None]
    trailing = rest if chosen and chosen[0] is not None else []
    for mine, other in zip(reversed(trailing), reversed(values), strict=False):
        if mine.size == other.size:
            c.unify(mine, other)
    for dim in values[: len(values) - len(trailing)]:
        c.freeze(dim, "positions are written by their number")
    if not trailing:
        for dim in (*rest, *values):
            c.freeze(dim, "positions are written by their number")


@rule(
    "nonzero",
    "masked_select",
    "unique_consecutive",
    "_unique2",
    "unique_dim",
    "masked_scatter",
    "bincount",
    "histc",
    "searchsorted",
    "bucketize",
    "multinomial",
)
def by_value(c: Call) -> None:
    """[n] -> [?]: the values decide which positions come out, so nothing that goes in may be cut."""
    c.freeze_all(f"{c.name} picks positions by value")
