"""Look-ups by index: positions are named by number, so the dimension they are looked up in stays as it is."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from structprune.axes import Const, Expr
from structprune.rules.call import Call
from structprune.rules.context import Dims, Uncovered, iter_tensors
from structprune.rules.pointwise import broadcast
from structprune.rules.registry import function_rule, rule


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


@function_rule(F.one_hot, "self num_classes")
def one_hot(c: Call) -> None:
    """[n] -> [n], [k]: a one at the position that each number names. Inside, it depends on values."""
    c.set(c.out, (*c.dims(c["self"]), Const(c.out.shape[-1])))


@rule("_pack_padded_sequence")
def pack_padded_sequence(c: Call) -> None:
    """[b, t, a] or [t, b, a] and lengths [b] -> [n, a], [t]: what lies beyond each length is left out."""
    dims = c.dims(c["input"])
    for dim in (*dims[:2], *c.dims(c["lengths"])):
        c.freeze(dim, "sequences are packed by their lengths")
    data, batch_sizes = iter_tensors([c.out])
    c.set(data, (Const(data.shape[0]), *dims[2:]))
    c.set(batch_sizes, [Const(size) for size in batch_sizes.shape])


@rule("index", "_unsafe_index")
def index(c: Call) -> None:
    """[n], [a] and positions [k] -> [k], [a]."""
    c.set(c.out, _picked(c, "looked up", c.out))


def _picked(c: Call, done: str, out: torch.Tensor | None) -> list[Expr]:
    """Return the dimensions of what a list of indices, or one mask, picks of ``self``."""
    dims, given = c.dims(c["self"]), list(c["indices"])
    masks = [value for value in given if value is not None and value.dtype in (torch.bool, torch.uint8)]
    if masks:
        if sum(value is not None for value in given) > 1:
            raise Uncovered(
                "a mask beside other indices picks positions whose number is not known beforehand"
            )
        return _by_mask(c, dims, _first(given), masks[0], out)
    chosen = given + [None] * (len(dims) - len(given))
    at = [position for position, value in enumerate(chosen) if value is not None]
    for position in at:
        c.freeze(dims[position], f"positions are {done} by their number")
    places = [c.dims(chosen[position]) for position in at]
    rank = max((len(place) for place in places), default=0)
    picked = broadcast(c, places, rank)
    rest = [dim for position, dim in enumerate(dims) if position not in at]
    together = at == list(range(at[0], at[0] + len(at))) if at else True
    lead = at[0] if at and together else 0
    return [*rest[:lead], *picked, *rest[lead:]]


def _first(given: list[torch.Tensor | None]) -> int:
    return next(position for position, value in enumerate(given) if value is not None)


def _by_mask(c: Call, dims: Dims, lead: int, mask: torch.Tensor, out: torch.Tensor | None) -> list[Expr]:
    """[n, m], [a] and a mask [n, m] -> [?], [a]: how many are picked depends on values, so n and m stay."""
    end = lead + mask.ndim
    for dim in (*dims[lead:end], *c.dims(mask)):
        c.freeze(dim, "a mask picks positions whose number is not known beforehand")
    number = Const(1 if out is None else out.shape[lead])
    return [*dims[:lead], number, *dims[end:]]


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
    "index_reduce",
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
        _index_put(c)
    if c.out is not x:
        c.set(c.out, dims)


def _index_put(c: Call) -> None:
    values, given = c.dims(c["values"]), list(c["indices"])
    mask = given[-1] if sum(value is not None for value in given) == 1 else None
    if mask is not None and mask.dtype == torch.bool and all(dim.size == 1 for dim in values):
        own = c.dims(c["self"])[len(given) - 1 :]
        for mine, other in zip(own, c.dims(mask), strict=False):  # one number where the mask says so
            c.unify(mine, other)
        return
    target = _picked(c, "written", None)
    for mine, other in zip(reversed(target), reversed(values), strict=False):
        if other.size == 1:
            continue
        if mine.size == other.size:
            c.unify(mine, other)
        else:  # as many as a mask picks
            c.freeze(other, "positions are written by their number")


@rule(
    "nonzero",
    "masked_select",
    "unique_consecutive",
    "_unique2",
    "unique_dim",
    "bincount",
    "histc",
    "histogram",
    "multinomial",
    "take",
    "put",
    "nll_loss_forward",
    "nll_loss2d_forward",
    "_ctc_loss",
)
def by_value(c: Call) -> None:
    """[n] -> [?]: the values decide which positions come out, so nothing that goes in may be cut."""
    c.freeze_all(f"{c.name} picks positions by value or number")


@rule("bucketize", "searchsorted", "isin")
def found_among(c: Call) -> None:
    """[a] and some numbers in order -> [a]: each is looked up alone among numbers that stay as they are."""
    ordered = c.tensors()[-1] if c.name in ("bucketize", "isin") else c["sorted_sequence"]
    asked = c.tensors()[0 if c.name in ("bucketize", "isin") else 1]
    dims, others = list(c.dims(asked)), c.dims(ordered)
    c.freeze(others[-1], "numbers are looked up among these") if others else None
    for mine, other in zip(dims[:-1], others[:-1], strict=False):
        c.unify(mine, other)
    for tensor in c.tensors():
        if tensor is not asked and tensor is not ordered:  # the order of a sequence that is not in order
            for dim in c.dims(tensor):
                c.freeze(dim, "numbers are looked up among these")
    c.set(c.out, dims)


@rule("masked_scatter")
def masked_scatter(c: Call) -> None:
    """[n, a], [n, 1] expanded, [m, a] -> [n, a]: rows that a mask picks are replaced by whole rows, in order."""
    x, mask, source = c["self"], c["mask"], c["source"]
    dims, rows = c.dims(x), c.dims(source)
    whole = 0  # trailing dimensions along which the mask is expanded, so that it takes all positions or none
    while whole < min(mask.ndim, source.ndim, x.ndim) and mask.stride(-1 - whole) == 0:
        if not mask.shape[-1 - whole] == x.shape[-1 - whole] == source.shape[-1 - whole]:
            break
        whole += 1
    for number, dim in enumerate(reversed(dims)):
        if number < whole:
            c.unify(dim, rows[-1 - number])
            c.unify(dim, c.dims(mask)[-1 - number])
        else:
            c.freeze(dim, "a mask picks positions whose number is not known beforehand")
    for dim in (*rows[: len(rows) - whole], *c.dims(mask)[: mask.ndim - whole]):
        c.freeze(dim, "a mask picks positions whose number is not known beforehand")
    if c.out is not x:
        c.set(c.out, dims)
