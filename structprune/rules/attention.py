"""scaled_dot_product_attention, judged as one function: inside, it takes one of many forms."""

from __future__ import annotations

import torch.nn.functional as F

from structprune import axes
from structprune.axes import Const, Expr, product
from structprune.rules.call import Call
from structprune.rules.context import constants, iter_tensors
from structprune.rules.pointwise import broadcast
from structprune.rules.registry import function_rule, rule


@rule(
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
    "_scaled_dot_product_attention_math",
    "_scaled_dot_product_attention_math_for_mps",
)
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
    mask = c.get("attn_mask", c.get("attn_bias"))
    if mask is not None:
        broadcast(c, [c.dims(mask), (*heads, query[-2], key[-2])], max(mask.ndim, len(query)))
    c.macs(*heads, query[-2], key[-2], query[-1])
    c.macs(*heads, query[-2], key[-2], value[-1])
    out, *others = c.out if isinstance(c.out, list | tuple) else [c.out]
    c.set(out, (*heads, query[-2], value[-1]))
    for tensor in iter_tensors(
        others
    ):  # the logarithm of the sums, one for each query, and what a kernel keeps
        dims = (*heads, query[-2], key[-2])[: tensor.ndim]
        c.set(tensor, dims if [dim.size for dim in dims] == list(tensor.shape) else constants(tensor))
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
