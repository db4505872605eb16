"""Arithmetic where NaN means "not there": contractions and statistics skip it, the rest hands it on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["SkipAbsent"]

aten = torch.ops.aten
Rule = Callable[..., Any]
RULES: dict[Any, Rule] = {}


def rule(*packets: Any) -> Callable[[Rule], Rule]:
    """Register a function `(func, *args, **kwargs)` for every overload of the packets."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(packets, function))
        return function

    return register


class SkipAbsent(TorchDispatchMode):
    """While active, operations that sum over something leave out NaN."""

    saw_float32 = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [a for a in args if isinstance(a, Tensor)]
        self.saw_float32 |= any(t.dtype == torch.float32 and t.dim() > 1 for t in tensors)
        function = RULES.get(func.overloadpacket)
        held = (t for t in tensors if t.is_floating_point() or t.is_complex())
        if function is None or not any(t.isnan().any() for t in held):
            return func(*args, **kwargs)
        return function(func, *args, **kwargs)


def there(x: Tensor) -> Tensor:
    return (~x.isnan()).to(x.dtype)


def filled(x: Tensor, value: float = 0.0) -> Tensor:
    return x.masked_fill(x.isnan(), value)


def marked(x: Tensor, present: Tensor) -> Tensor:
    return x.masked_fill(present == 0, math.nan)


@rule(aten.mm, aten.bmm, aten.mv, aten.dot, aten.vdot)
def product(func: Any, a: Tensor, b: Tensor) -> Tensor:
    return marked(func(filled(a), filled(b)), func(there(a), there(b)))


@rule(aten.addmm, aten.baddbmm, aten.addmv)
def added_product(
    func: Any, bias: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1
) -> Tensor:
    inner = {aten.addmm: aten.mm, aten.baddbmm: aten.bmm, aten.addmv: aten.mv}[func.overloadpacket]
    result = alpha * product(inner.default, a, b)
    return result + beta * bias if beta else result


@rule(aten._trilinear)
def bilinear(
    func: Any, a: Tensor, w: Tensor, b: Tensor, da: Any, dw: Any, db: Any, dims: Any, unroll: int = 1
) -> Tensor:
    for dim in da:
        a = a.unsqueeze(dim)
    for dim in dw:
        w = w.unsqueeze(dim)
    for dim in db:
        b = b.unsqueeze(dim)
    return total(aten.sum.default, a * w * b, dims)


@rule(aten.linear)
def linear(func: Any, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    result = marked(func(filled(x), filled(weight)), func(there(x), there(weight)))
    return result if bias is None else result + bias


@rule(aten.convolution)
def convolution(
    func: Any,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
) -> Tensor:
    geometry = (stride, padding, dilation, transposed, output_padding, groups)
    result = func(filled(x), filled(weight), None, *geometry)
    unbatched = x.dim() == weight.dim() - 1
    pixels = x.unsqueeze(0) if unbatched else x
    if weight.shape[2:].numel() == 1 and not any(padding):  # each place is a product of its own
        result = marked(result, func(there(x), there(weight), None, *geometry))
        return result if bias is None else result + bias.reshape(-1, *[1] * (pixels.dim() - 2))
    # Which channels meet at all is a question of channels, not of places: ask it of a kernel of size 1.
    some_x = there(pixels).flatten(2).amax(2, keepdim=True)
    some_w = there(weight).flatten(2).amax(2, keepdim=True)
    count = func(some_x, some_w, None, [1], [0], [1], transposed, [0], groups)
    count = count.reshape(*count.shape[:2], *[1] * (pixels.dim() - 2))
    result = marked(result, count.squeeze(0) if unbatched else count)
    return result if bias is None else result + bias.reshape(-1, *[1] * (pixels.dim() - 2))


@rule(aten._euclidean_dist, aten._cdist_forward)
def distance(func: Any, a: Tensor, b: Tensor, *rest: Any) -> Tensor:
    both = there(a).amax(-2, keepdim=True) * there(b).amax(-2, keepdim=True)
    return func(filled(a) * both, filled(b) * both, *rest)


def _dims(x: Tensor, dim: int | Sequence[int] | None) -> list[int]:
    if dim is None or (isinstance(dim, Sequence) and not dim):
        return list(range(x.dim()))
    return [dim] if isinstance(dim, int) else list(dim)


@rule(aten.sum, aten.mean)
def total(func: Any, x: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    x = x if dtype is None else x.to(dtype)
    axes = _dims(x, dim)
    count = there(x).sum(axes, keepdim=keepdim)
    value = filled(x).sum(axes, keepdim=keepdim)
    return marked(value, count) / (count if func.overloadpacket is aten.mean else 1)


def moments(x: Tensor, axes: list[int], correction: float = 0.0) -> tuple[Tensor, Tensor]:
    """Variance and mean over `axes` of what is there, the axes kept."""
    count = there(x).sum(axes, keepdim=True)
    mean = filled(x).sum(axes, keepdim=True) / count
    square = filled((x - mean) ** 2).sum(axes, keepdim=True)
    return square / (count - correction), mean


@rule(aten.var, aten.std, aten.var_mean, aten.std_mean)
def spread(
    func: Any, x: Tensor, dim: Any = None, *rest: Any, correction: Any = None, keepdim: bool = False
) -> Any:
    axes = _dims(x, None if isinstance(dim, bool) else dim)
    variance, mean = moments(x, axes, 1 if correction is None else correction)
    value = variance.sqrt() if func.overloadpacket in (aten.std, aten.std_mean) else variance
    if not keepdim:
        value, mean = (t.amax(axes) for t in (value, mean))
    return (value, mean) if func.overloadpacket in (aten.var_mean, aten.std_mean) else value


@rule(aten.linalg_vector_norm)
def vector_norm(
    func: Any, x: Tensor, order: float = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Tensor:
    axes = _dims(x, dim)
    return marked(func(filled(x), order, axes, keepdim, dtype=dtype), there(x).sum(axes, keepdim=keepdim))


@rule(aten.norm)
def norm(func: Any, x: Tensor, p: Any = 2, dim: Any = None, keepdim: bool = False) -> Tensor:
    return vector_norm(aten.linalg_vector_norm.default, x, 2 if p is None else p, dim, keepdim)


@rule(aten._weight_norm_interface)
def weight_norm(func: Any, v: Tensor, g: Tensor, dim: int = 0) -> tuple[Tensor, Tensor]:
    axes = [axis for axis in range(v.dim()) if axis != dim % v.dim()]
    length = marked((filled(v) ** 2).sum(axes, keepdim=True).sqrt(), there(v).sum(axes, keepdim=True))
    return v * (g / length), length


@rule(aten.amax, aten.amin)
def extreme(func: Any, x: Tensor, dim: Any = (), keepdim: bool = False) -> Tensor:
    worst = -math.inf if func.overloadpacket is aten.amax else math.inf
    axes = _dims(x, dim)
    return marked(func(filled(x, worst), axes, keepdim), there(x).sum(axes, keepdim=keepdim))


@rule(aten.max, aten.min)
def extreme_with_index(func: Any, x: Tensor, *args: Any) -> Any:
    worst = -math.inf if func.overloadpacket is aten.max else math.inf
    if args and isinstance(args[0], Tensor):
        return func(x, *args)
    result = func(filled(x, worst), *args)
    if not args:
        return result
    count = there(x).sum(args[0], keepdim=len(args) > 1 and args[1])
    return marked(result[0], count), result[1]


@rule(aten._softmax, aten._log_softmax, aten._safe_softmax, aten.softmax)
def softmax(func: Any, x: Tensor, dim: int, *rest: Any, **kwargs: Any) -> Tensor:
    return marked(func(filled(x, -math.inf), dim, *rest, **kwargs), there(x))


@rule(aten.logsumexp)
def logsumexp(func: Any, x: Tensor, dim: Any, keepdim: bool = False) -> Tensor:
    return marked(func(filled(x, -math.inf), dim, keepdim), there(x).sum(_dims(x, dim), keepdim=keepdim))


@rule(aten.native_layer_norm)
def layer_norm(
    func: Any, x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    variance, mean = moments(x, list(range(-len(shape), 0)))
    scale = (variance + eps).rsqrt()
    y = (x - mean) * scale
    y = y if weight is None else y * weight
    return (y if bias is None else y + bias), mean, scale


@rule(aten._fused_rms_norm)
def rms_norm(
    func: Any, x: Tensor, shape: Sequence[int], weight: Tensor | None, eps: float | None
) -> tuple[Tensor, Tensor]:
    axes = list(range(-len(shape), 0))
    square = filled(x * x).sum(axes, keepdim=True) / there(x).sum(axes, keepdim=True)
    scale = (square + (torch.finfo(x.dtype).eps if eps is None else eps)).rsqrt()
    y = x * scale
    return (y if weight is None else y * weight), scale


@rule(aten.native_group_norm)
def group_norm(
    func: Any,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    n: int,
    channels: int,
    places: int,
    groups: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    grouped = x.reshape(n, groups, -1)
    variance, mean = moments(grouped, [-1])
    scale = (variance + eps).rsqrt()
    y = ((grouped - mean) * scale).reshape(x.shape)
    per_channel = (1, channels, *[1] * (x.dim() - 2))
    y = y if weight is None else y * weight.reshape(per_channel)
    return (y if bias is None else y + bias.reshape(per_channel)), mean.flatten(1), scale.flatten(1)
