"""Element-wise operations: operands are broadcast against each other, and equal positions stay together."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from structprune.axes import Const, Expr
from structprune.rules.call import Call
from structprune.rules.context import iter_tensors
from structprune.rules.registry import rule

_UNIT = Const(1)
_FOREACH = (
    "abs acos add addcdiv addcmul asin atan ceil clamp_max clamp_min copy cos cosh div erf erfc exp expm1 floor "
    "frac lerp lgamma log log10 log1p log2 maximum minimum mul neg pow reciprocal round rsqrt sigmoid sign sin sinh "
    "sqrt sub tan tanh trunc zero"
)


def broadcast(c: Call, operands: Sequence[Sequence[Expr]], rank: int) -> tuple[Expr, ...]:
    """Return the dimensions of operands broadcast against each other, equal where neither is of size one."""
    out: list[Expr] = [_UNIT] * rank
    for dims in operands:
        for position, dim in enumerate(dims, rank - len(dims)):
            if dim.size == 1 or out[position] is dim:
                continue
            if out[position].size == 1:
                out[position] = dim
            else:
                c.unify(out[position], dim)
    return tuple(out)


@rule(
    "pointwise",
    "where",
    "masked_fill",
    "lerp",
    "addcmul",
    "addcdiv",
    "native_dropout",
    "copy",
    "hardswish",
    "log_sigmoid_forward",
    "floor_divide",
    "rsub",
    "complex",
    "polar",
)
def pointwise(c: Call) -> None:
    """[n], [n] -> [n]: every operand of more than one position keeps what the others keep."""
    operands = [c.dims(tensor) for tensor in c.tensors()]
    rank = max((len(dims) for dims in operands), default=0)
    dims = broadcast(c, operands, rank)
    for tensor in iter_tensors([c.out]):
        if tensor not in c.context.dims:
            _set_like(c, tensor, dims)


@rule(*(f"_foreach_{name}" for name in _FOREACH.split()))
def foreach(c: Call) -> None:
    """[n] and [n], [m] and [m] -> [n], [m]: the lists are taken item by item."""
    lists = [value for value in c.arguments.values() if isinstance(value, list | tuple)]
    shared = [value for value in c.arguments.values() if isinstance(value, torch.Tensor)]
    outputs = c.out if isinstance(c.out, list | tuple) else []
    for number, first in enumerate(lists[0]):
        items = [*(one[number] for one in lists if number < len(one)), *shared]
        operands = [c.dims(item) for item in items if isinstance(item, torch.Tensor)]
        dims = broadcast(c, operands, first.ndim)
        if number < len(outputs) and outputs[number] is not first:
            c.set(outputs[number], dims)


def _set_like(c: Call, tensor: torch.Tensor, dims: tuple[Expr, ...]) -> None:
    shape = tensor.shape
    own = dims[len(dims) - len(shape) :]
    c.set(tensor, [dim if dim.size == size else Const(size) for dim, size in zip(own, shape, strict=True)])


@rule(
    "clone",
    "detach",
    "alias",
    "alias_copy",
    "detach_copy",
    "contiguous",
    "_to_copy",
    "to",
    "lift",
    "lift_fresh",
    "lift_fresh_copy",
    "zeros_like",
    "ones_like",
    "empty_like",
    "full_like",
    "rand_like",
    "randn_like",
    "dropout",
    "bernoulli",
    "alpha_dropout",
    "feature_dropout",
    "fill",
    "zero",
    "normal",
    "uniform",
    "exponential",
    "_conj",
    "_conj_physical",
    "resolve_conj",
    "resolve_neg",
    "set_data",
    "nan_to_num",
    "rrelu_with_noise",
    "_fused_dropout",
    "_neg_view",
    "_pin_memory",
    "pin_memory",
    "convert_element_type",
    "device_put",
)
def like_first(c: Call) -> None:
    """[n] -> [n]: the same positions, copied or filled."""
    first = c.tensors()[0]
    for tensor in iter_tensors([c.out]):
        if tensor is not first and tensor.shape == first.shape:
            c.set(tensor, c.dims(first))


@rule("prelu", "_prelu_kernel")
def prelu(c: Call) -> None:
    """[b, c, ...], [c] -> [b, c, ...]: one slope for each channel, or one for all."""
    dims = c.dims(c["self"])
    slope = c.dims(c["weight"])
    if len(slope) == len(dims):
        broadcast(c, [dims, slope], len(dims))
    elif slope and slope[-1].size > 1:
        c.unify(dims[1 if len(dims) > 1 else 0], slope[-1])
    c.set(c.out, dims)


@rule("glu")
def glu(c: Call) -> None:
    """[2 n] -> [n]: the halves are multiplied position by position."""
    from structprune.rules.joins import split_equally

    dims = list(c.dims(c["self"]))
    axis = c.get("dim", -1) % len(dims)
    first, second = split_equally(c, dims[axis], 2)
    c.unify(first, second)
    dims[axis] = first
    c.set(c.out, dims)


@rule(
    "_local_scalar_dense",
    "is_same_size",
    "equal",
    "_assert_async",
    "_assert_tensor_metadata",
    "sym_size",
    "sym_numel",
    "is_nonzero",
    "item",
    "allclose",
)
def reads_a_value(c: Call) -> None:
    """[] -> number: the value is the program's to use; nothing is learned about axes."""
