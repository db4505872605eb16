"""Normalisation layers: affine per channel, statistics over other dimensions or over the channels themselves."""

from __future__ import annotations

import torch

from structprune import axes
from structprune.axes import product
from structprune.rules.call import Call
from structprune.rules.context import free
from structprune.rules.registry import function_rule, rule


@rule(
    "native_batch_norm",
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training",
    "_native_batch_norm_legit_functional",
    "_batch_norm_no_update",
    "_batch_norm_with_update",
    "cudnn_batch_norm",
    "miopen_batch_norm",
    "batch_norm",
)
def batch_norm(c: Call) -> None:
    """[b, c, ...], [c], [c], [c], [c] -> [b, c, ...]."""
    x, *others = c.tensors()
    dims = c.dims(x)
    c.scale(x, c.get("weight"))
    for tensor in others:
        c.unify(dims[1], c.dims(tensor)[0])
    out = c.out if isinstance(c.out, list | tuple) else [c.out]
    c.set(out[0], dims)
    for statistics in out[1:]:
        if statistics.ndim == 1 and statistics.shape[0] == dims[1].size:
            c.set(statistics, dims[1:2])
    if c.get("training", False):
        reduced = [dim for position, dim in enumerate(dims) if position != 1]
        tensors = ((name, value) for name, value in c.arguments.items() if isinstance(value, torch.Tensor))
        arguments = {name: c.dims(value) for name, value in tensors}
        c.statistic("its statistics are taken over the kept channels", arguments, reduced)


@function_rule(torch.rms_norm, "input normalized_shape weight eps")
@rule("native_layer_norm", "layer_norm", "_fused_rms_norm")
def layer_norm(c: Call) -> None:
    """[..., c], [c], [c] -> [..., c]: statistics over the last dimensions."""
    x = c["input"]
    dims = c.dims(x)
    c.scale(x, c.get("weight"))
    sizes = list(c["normalized_shape"])
    last = dims[len(dims) - len(sizes) :]
    for dim, node in zip(last, c.nodes(sizes), strict=True):
        c.equate(dim, node, "a normalized_shape")
    arguments = {"input": dims}
    for name in ("weight", "bias"):
        if c.get(name) is not None:
            arguments[name] = c.dims(c[name])
            for mine, other in zip(last, arguments[name], strict=True):
                c.unify(mine, other)
    out = c.out if isinstance(c.out, list | tuple) else [c.out]
    c.set(out[0], dims)
    lead = dims[: len(dims) - len(sizes)]
    for statistics in out[1:]:
        if statistics.ndim:
            c.set(statistics, [*lead, *(axes.Const(1) for _ in sizes)][: statistics.ndim])
    c.statistic(
        "its statistics are taken over the kept channels",
        arguments,
        last,
        integers={"normalized_shape": last},
    )


@rule("native_group_norm", "group_norm")
def group_norm(c: Call) -> None:
    """[b, [g i], ...], [[g i]], [[g i]] -> [b, [g i], ...]: statistics over i in each of the g groups."""
    dims = c.dims(c["input"])
    c.scale(c["input"], c.get("weight"))
    groups = c.get("group", c.get("num_groups"))
    lead, inner = axes.factor(
        dims[1], groups, c.why("the groups of a norm cut across the structure of its channels")
    )
    c.equate(lead, c.argument("num_groups", 1, groups), "the groups of a norm")
    arguments = {"input": dims}
    for name in ("weight", "bias"):
        if c.get(name) is not None:
            arguments[name] = c.dims(c[name])
            c.unify(dims[1], arguments[name][0])
    out = c.out if isinstance(c.out, list | tuple) else [c.out]
    c.set(out[0], dims)
    for statistics in out[1:]:
        if statistics.ndim == 2:
            c.set(statistics, (dims[0], lead))
    for dim in dims[2:]:
        c.freeze(dim, "a norm averages over this dimension")
    integers = {"group": lead}
    if "C" in c.arguments:
        integers |= {"N": dims[0], "C": dims[1], "HxW": product(dims[2:])}
    changes = "its statistics are taken over the kept channels" if free(inner) else ""
    c.statistic(changes, arguments, [lead, inner], integers=integers, over=[inner])


@rule("_weight_norm_interface", "_weight_norm")
def weight_norm(c: Call) -> None:
    """[o, i], [o, 1] -> [o, i]: the norm is taken over i."""
    v, g = c.dims(c["v"]), c.dims(c["g"])
    axis = c.get("dim", 0)
    c.unify(v[axis], g[axis] if len(g) > 1 else g[0])
    out = c.out if isinstance(c.out, list | tuple) else [c.out]
    c.set(out[0], v)
    for norm in out[1:]:
        c.set(norm, g)
    reduced = [dim for position, dim in enumerate(v) if position != axis]
    c.statistic("the weight's norm is taken over the kept channels", {"v": v, "g": g}, reduced)
