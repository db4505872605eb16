"""Operations along space: pooling, resizing, padding by reflection, pixel shuffle, windows."""

from __future__ import annotations

import re

import torch

from structprune import axes
from structprune.axes import Const, product
from structprune.rules.call import Call
from structprune.rules.context import iter_tensors
from structprune.rules.registry import function_rule, rule

_POOLS = [f"{kind}_pool{n}d" for n in (1, 2, 3) for kind in ("max", "avg", "adaptive_max", "adaptive_avg")]
_POOLS += [f"_adaptive_avg_pool{n}d" for n in (2, 3)] + [f"fractional_max_pool{n}d" for n in (2, 3)]
_POOLS += [f"max_pool{n}d_with_indices" for n in (2, 3)] + [f"max_unpool{n}d" for n in (2, 3)]
_RESIZE = ["upsample_linear1d", "upsample_trilinear3d"]
_RESIZE += [f"upsample_nearest{n}d" for n in (1, 2, 3)] + [f"_upsample_nearest_exact{n}d" for n in (1, 2, 3)]
_RESIZE += [
    f"{mark}upsample_{kind}2d{aa}"
    for kind in ("bilinear", "bicubic")
    for mark, aa in (("", ""), ("_", "_aa"))
]
_PADS = [f"{kind}_pad{n}d" for kind in ("reflection", "replication") for n in (1, 2, 3)]


@rule(*_POOLS, *_RESIZE, *_PADS, "mkldnn_max_pool2d", "quantized_max_pool2d")
def spatial(c: Call) -> None:
    """[b, c, h, w] -> [b, c, h', w']: channel by channel; space stays as it is."""
    x = c.tensors()[0]
    dims = c.dims(x)
    found = re.search(r"(\d)d", c.name)
    extent = int(found.group(1)) if found else x.ndim - 2
    for dim in dims[x.ndim - extent :]:
        c.freeze(dim, f"{c.name} runs along this dimension")
    if c.get("random_samples") is not None:
        c.unify(c.dims(c["random_samples"])[1], dims[x.ndim - extent - 1])
    for tensor in iter_tensors([c.out]):
        c.set(tensor, [*dims[: x.ndim - extent], *(Const(size) for size in tensor.shape[x.ndim - extent :])])


@rule("grid_sampler_2d", "grid_sampler_3d", "grid_sampler", "cudnn_grid_sampler")
def grid_sampler(c: Call) -> None:
    """[b, c, h, w], [b, p, q, 2] -> [b, c, p, q]."""
    dims, grid = c.dims(c["input"]), c.dims(c["grid"])
    for dim in (*dims[2:], *grid[1:]):
        c.freeze(dim, "positions are sampled along this dimension")
    c.set(c.out, [*dims[:2], *(Const(size) for size in c.out.shape[2:])])


@function_rule(torch.affine_grid_generator, "theta size align_corners")
def affine_grid(c: Call) -> None:
    """[b, 2, 3] and the size of an image -> [b, h, w, 2]: places, whatever number of channels lies there."""
    theta = c.dims(c["theta"])
    function = c.context.function
    if function is not None:
        function.used.update(range(len(function.ints)))
    for dim in theta[1:]:
        c.freeze(dim, "places are computed from these numbers")
    for size, place in zip(c["size"][2:], c.nodes(list(c["size"]))[2:], strict=True):
        c.equate(Const(size), place, "the size of a grid")
    c.set(c.out, [theta[0], *(Const(size) for size in c.out.shape[1:])])


@rule("pixel_shuffle")
def pixel_shuffle(c: Call) -> None:
    """[b, [c r r], h, w] -> [b, c, h r, w r]."""
    x = c["self"]
    dims = c.dims(x)
    square = c["upscale_factor"] ** 2
    why = c.why("a pixel shuffle cuts across the structure of its channels")
    channels, cells = axes.factor(dims[-3], dims[-3].size // square, why)
    c.freeze(cells, "a pixel shuffle moves these channels into space")
    c.set(c.out, [*dims[:-3], channels, *(Const(size) for size in c.out.shape[-2:])])


@rule("pixel_unshuffle")
def pixel_unshuffle(c: Call) -> None:
    """[b, c, h r, w r] -> [b, [c r r], h, w]."""
    dims = c.dims(c["self"])
    cells = Const(c["downscale_factor"] ** 2)
    for dim in dims[-2:]:
        c.freeze(dim, "a pixel unshuffle cuts space into cells")
    c.set(c.out, [*dims[:-3], product((dims[-3], cells)), *(Const(size) for size in c.out.shape[-2:])])


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(c: Call) -> None:
    """[b, [g k], ...] -> [b, [k g], ...]."""
    dims = list(c.dims(c["self"]))
    groups = c["groups"]
    outer, inner = axes.factor(
        dims[1], groups, c.why("a channel shuffle cuts across the structure of its channels")
    )
    c.equate(outer, c.argument("groups", 1, groups), "the groups of a channel shuffle")
    dims[1] = product((inner, outer))
    c.set(c.out, dims)


@rule("im2col")
def im2col(c: Call) -> None:
    """[b, c, h, w] -> [b, [c k], places]."""
    dims = c.dims(c["self"])
    for dim in dims[-2:]:
        c.freeze(dim, "windows slide along this dimension")
    kernel = Const(c["kernel_size"][0] * c["kernel_size"][1])
    c.set(c.out, [*dims[:-3], product((dims[-3], kernel)), Const(c.out.shape[-1])])


@rule("col2im")
def col2im(c: Call) -> None:
    """[b, [c k], places] -> [b, c, h, w]."""
    dims = c.dims(c["self"])
    kernel = c["kernel_size"][0] * c["kernel_size"][1]
    channels, cells = axes.factor(dims[-2], dims[-2].size // kernel, c.why("a fold cuts across its channels"))
    c.freeze(cells, "a fold moves these channels into space")
    c.freeze(dims[-1], "a fold sums windows along this dimension")
    c.set(c.out, [*dims[:-2], channels, *(Const(size) for size in c.out.shape[-2:])])
