"""Subnormal weights: counted, and set to zero where that is asked for.

A number is subnormal where it is not zero and its exponent is the least there is: below 1.2e-38 in float32 and
bfloat16, 2.2e-308 in float64. Many CPUs compute with such numbers several times slower, so that they make a latency
worthless; they are left by weight decay, and by folding a norm of a channel that is nearly switched off. Narrower
formats (float16 and below) are left alone: processors take their small numbers at full speed or widen them first.

The bits are looked at, not the values: a thread that computes with subnormal numbers as zero cannot see them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from structprune.arguments import typed
from structprune.tensors import named_tensors

__all__ = ["count_subnormals", "flush_subnormals", "without_subnormals"]

_FORMATS = {"float32": ("int32", 23), "float64": ("int64", 52), "bfloat16": ("int16", 7)}
"""Format -> the integers of its size, and how many bits lie below the exponent."""

_SPARSE = (torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)


def count_subnormals(model: nn.Module) -> int:
    """How many of the numbers that a model holds are subnormal: in parameters, buffers and plain tensor attributes.

    >>> layer = nn.Linear(2, 1, bias=False)
    >>> _ = layer.weight.data.copy_(torch.tensor([[1e-40, 1.0]]))
    >>> count_subnormals(layer)
    1
    """
    stored = (part for tensor in named_tensors(model).values() for part in _stored(tensor))
    return sum(int(_mask(part).sum()) for part in stored)


@typed
def flush_subnormals(model: nn.Module) -> int:
    """Sets every subnormal number that the model holds to zero, in place, and returns how many there were.

    Each was below 1.2e-38 (2.2e-308 in float64), so that outputs differ by about as little. Everything else stays bit
    for bit; the model computes as fast as it should, also where nobody tells the processor to flush.

    >>> layer = nn.Linear(2, 1, bias=False)
    >>> _ = layer.weight.data.copy_(torch.tensor([[1e-40, 1.0]]))
    >>> flush_subnormals(layer), layer.weight.tolist()
    (1, [[0.0, 1.0]])
    """
    found = 0
    for tensor in named_tensors(model).values():
        for part in _stored(tensor):
            mask = _mask(part)
            count = int(mask.sum())
            if count:
                with torch.inference_mode(part.is_inference()), torch.no_grad():
                    part.masked_fill_(mask, 0.0)
            found += count
    return found


def without_subnormals(array: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], int]:
    """The array with its subnormal numbers as zero, and how many there were; itself where there were none."""
    if array.dtype.name not in _FORMATS:
        return array, 0
    integer, below = _FORMATS[array.dtype.name]
    mask = _is_subnormal(np.ascontiguousarray(array).view(integer), integer, below)
    count = int(mask.sum())
    return (np.where(mask, np.zeros((), array.dtype), array), count) if count else (array, 0)


def _stored(tensor: Tensor) -> Iterator[Tensor]:
    """The plain tensors of floating numbers that a tensor stands for: the values of a sparse one, the parts of one that
    wraps others, the real and imaginary numbers of a complex one.
    """
    tensor = tensor.detach()
    if is_traceable_wrapper_subclass(tensor):
        names, _ = tensor.__tensor_flatten__()
        for name in names:
            yield from _stored(getattr(tensor, name))
        return
    if tensor.layout == torch.sparse_coo:
        tensor = tensor._values()
    elif tensor.layout in _SPARSE:
        tensor = tensor.values()
    if tensor.is_complex() and not tensor.is_conj():
        tensor = torch.view_as_real(tensor)
    if str(tensor.dtype).removeprefix("torch.") in _FORMATS and not tensor.is_meta:
        yield tensor


def _mask(tensor: Tensor) -> Tensor:
    integer, below = _FORMATS[str(tensor.dtype).removeprefix("torch.")]
    mask: Tensor = _is_subnormal(tensor.view(getattr(torch, integer)), integer, below)
    return mask


def _is_subnormal(bits: Any, integer: str, below: int) -> Any:
    """Where the exponent's bits are all zero and not all of those below are."""
    size = bits & np.iinfo(integer).max
    return (size > 0) & (size < (1 << below))
