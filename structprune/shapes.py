"""What the commonest operations return on the meta device, from shapes alone.

Torch finds these shapes through Python decompositions that take up to a hundred times as long as the rest of a trace.
Only plain cases are answered here; everything else, errors included, is left to torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["shortcut"]

_aten = torch.ops.aten
_SAME = [
    "relu",
    "sigmoid",
    "tanh",
    "silu",
    "gelu",
    "hardswish",
    "hardsigmoid",
    "hardtanh",
    "leaky_relu",
    "elu",
    "softplus",
    "mish",
    "clamp",
    "clamp_min",
    "add",
    "sub",
    "mul",
    "div",
    "neg",
    "exp",
    "sqrt",
    "rsqrt",
    "pow",
]


def shortcut(operation: Any) -> Callable[[tuple[Any, ...], dict[str, Any]], Any] | None:
    """Return the function that gives an operation's result on the meta device, itself None where torch
    must be asked.
    """
    return _SHORTCUTS.get(getattr(operation, "_overloadpacket", None))


def _same(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x = args[0]
    if kwargs or not isinstance(x, torch.Tensor) or not x.is_floating_point() or not x.ndim:
        return None
    for other in args[1:]:
        if isinstance(other, torch.Tensor):
            if other.shape != x.shape or other.dtype != x.dtype or other.stride() != x.stride():
                return None
        elif isinstance(other, complex):
            return None
    return torch.empty_like(x)


def _inplace(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return None if _same(args, kwargs) is None else args[0]


def _norm(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x, *others = args
    if kwargs or not all(other.shape == x.shape[1:2] for other in others if isinstance(other, torch.Tensor)):
        return None
    return torch.empty_like(x), x.new_empty(0), x.new_empty(0)


def _convolution(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if kwargs or len(args) != 9:
        return None
    x, weight, _, stride, padding, dilation, transposed, extra, groups = args
    plain = x.is_contiguous() and weight.is_contiguous() and x.dtype == weight.dtype and x.ndim == weight.ndim
    channels = weight.shape[0] if transposed else weight.shape[1] * groups
    if not plain or x.shape[1] != channels:
        return None
    out = [x.shape[0], weight.shape[1] * groups if transposed else weight.shape[0]]
    for axis, size in enumerate(x.shape[2:]):
        step, pad, wide = (values[axis % len(values)] for values in (stride, padding, dilation))
        reach = wide * (weight.shape[2 + axis] - 1)
        if transposed:
            out.append((size - 1) * step - 2 * pad + reach + extra[axis % len(extra)] + 1)
        else:
            out.append((size + 2 * pad - reach - 1) // step + 1)
    return x.new_empty(out) if min(out) > 0 else None


def _addmm(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    bias, left, right = args[:3]
    fits = left.ndim == right.ndim == 2 and left.shape[1] == right.shape[0] and left.dtype == right.dtype
    if kwargs or len(args) > 3 or not fits or bias.dtype != left.dtype or bias.shape != right.shape[1:]:
        return None
    return left.new_empty((left.shape[0], right.shape[1]))


def _mean(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x, chosen, keep = args[0], args[1] if len(args) > 1 else None, len(args) > 2 and bool(args[2])
    if kwargs or not chosen or not x.ndim or not x.is_floating_point() or not x.is_contiguous():
        return None
    gone = {axis % x.ndim for axis in chosen}
    return x.new_empty([1 if i in gone else n for i, n in enumerate(x.shape) if keep or i not in gone])


def _layer_norm(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x, sizes, *affine = args
    same = list(x.shape[x.ndim - len(sizes) :]) == list(sizes)
    fits = all(other.shape == tuple(sizes) for other in affine if isinstance(other, torch.Tensor))
    if (
        kwargs
        or not same
        or not fits
        or not x.is_contiguous()
        or x.dtype not in (torch.float32, torch.float64)
    ):
        return None
    lead = [*x.shape[: x.ndim - len(sizes)], *(1 for _ in sizes)]
    return torch.empty_like(x), x.new_empty(lead), x.new_empty(lead)


def _cat(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    tensors, axis = args[0], args[1] if len(args) > 1 else 0
    first = tensors[0]
    axis %= max(first.ndim, 1)
    for tensor in tensors:
        plain = (
            tensor.is_contiguous()
            and tensor.dtype == first.dtype
            and tensor.ndim == first.ndim
            and tensor.ndim
        )
        rest = (*tensor.shape[:axis], *tensor.shape[axis + 1 :]) == (
            *first.shape[:axis],
            *first.shape[axis + 1 :],
        )
        if kwargs or not plain or not rest:
            return None
    size = math.fsum(tensor.shape[axis] for tensor in tensors)
    return first.new_empty([*first.shape[:axis], int(size), *first.shape[axis + 1 :]])


_SHORTCUTS = {getattr(_aten, name): _same for name in _SAME}
_SHORTCUTS |= {getattr(_aten, f"{name}_"): _inplace for name in _SAME if hasattr(_aten, f"{name}_")}
_SHORTCUTS |= {
    _aten.native_batch_norm: _norm,
    _aten._native_batch_norm_legit_no_training: _norm,
    _aten.convolution: _convolution,
    _aten.addmm: _addmm,
    _aten.cat: _cat,
    _aten.mean: _mean,
    _aten.native_layer_norm: _layer_norm,
}
