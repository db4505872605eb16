"""scaled_dot_product_attention, judged as one function: inside, it takes one of many forms."""

from __future__ import annotations

import torch.nn.functional as F

from structprune import axes
from structprune.axes import Const, Expr, product
from structprune.rules.context import Call
from structprune.rules.pointwise import broadcast
from structprune.rules.registry import function_rule


@function_rule(
    F.scaled_dot_product_attention, "query key value attn_mask dropout_p is_causal scale enable_gqa"
)
def scaled_dot_product_attention(c: Call) -> None:
    """[..., h, l, e], [..., k, s, e], [..., k, s, v] -> [..., h, l, v]; grouped: h = [k r]."""
    query, key, value = (c.dims(c[name]) for name in ("query", "key", "value"))
    if c.get("scale") is None:
        for dim in (query[-1], key[-1]):
            c.freeze(dim, "attention without scale= divides by the square root of this width")
    c.unify(query[-1], key[-1])
    c.unify(key[-2], value[-2])
    for dim in (query[-2], key[-2]):
        c.freeze(dim, "attention runs along this dimension")
    heads = _heads(c, query, key, value)
    mask = c.get("attn_mask")
    if mask is not None:
        broadcast(c, [c.dims(mask), (*heads, query[-2], key[-2])], max(mask.ndim, len(query)))
    c.macs(*heads, query[-2], key[-2], query[-1])
    c.macs(*heads, query[-2], key[-2], value[-1])
    c.set(c.out, (*heads, query[-2], value[-1]))
    c.contract([query[-1]], {"query": len(query) - 1, "key": len(key) - 1})


def _heads(
    c: Call, query: tuple[Expr, ...], key: tuple[Expr, ...], value: tuple[Expr, ...]
) -> tuple[Expr, ...]:
    if not c.get("enable_gqa", False):
        return broadcast(c, [query[:-2], key[:-2], value[:-2]], len(query) - 2)
    shared = product((key[-3], Const(query[-3].size // key[-3].size)))
    c.unify(query[-3], shared)
    c.unify(key[-3], value[-3])
    lead = broadcast(c, [query[:-3], key[:-3], value[:-3]], len(query) - 3)
    return (*lead, axes.normal(query[-3]))
