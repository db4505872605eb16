"""What is timed: model and inputs as a runtime is to run them; a copy where it has to be converted or flushed."""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from structprune.errors import InputError
from structprune.inputs import map_tensors, repeat_batch
from structprune.runtime_settings import Runtime
from structprune.subnormals import count_subnormals, flush_subnormals

__all__ = ["flushed_for", "inputs_for", "model_for"]


def inputs_for(
    runtime: Runtime, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The inputs at the runtime's batch size and dtype; integers and booleans stay what they are."""
    inputs = args, dict(kwargs)
    if runtime.batch is not None:
        inputs = repeat_batch(inputs, runtime.batch)
    dtype = _dtype(runtime)
    if dtype is not None:
        inputs = map_tensors(inputs, lambda tensor: _cast(tensor, dtype))
    return inputs


def model_for(runtime: Runtime, model: nn.Module) -> nn.Module:
    """The model as it is timed on the runtime: `flushed_for` without the number."""
    return flushed_for(runtime, model)[0]


def flushed_for(runtime: Runtime, model: nn.Module) -> tuple[nn.Module, int]:
    """The model in the runtime's dtype without subnormal numbers, and how many there were; itself where it is so.

    A number that is taken with them says little about the network, so a copy has zeros there, and a warning says so.
    """
    dtype = _dtype(runtime)
    tensors = itertools.chain(model.parameters(), model.buffers())
    if dtype is not None and any(tensor.dtype != dtype for tensor in tensors if tensor.is_floating_point()):
        copied = _copy(
            model, f"dtype={runtime.dtype!r}", "Convert the model and its inputs and leave dtype out"
        )
        model = getattr(copied, _METHODS[dtype])()  # not `to(dtype)`: it makes complex tensors real
    count = count_subnormals(model)
    if count:
        model = _copy(model, f"{count} subnormal weights", "Call structprune.flush_subnormals(model) first")
        flush_subnormals(model)
        warnings.warn(
            f"{count} weights of {type(model).__name__} are subnormal, which slows many CPUs several times: a copy is "
            "timed in which they are zero. structprune.flush_subnormals(model) sets them to zero in the model itself",
            stacklevel=3,
        )
    return model, count


def _copy(model: nn.Module, why: str, remedy: str) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except (TypeError, RuntimeError, NotImplementedError) as error:
        raise InputError(
            f"{why}: timing needs a copy of {type(model).__name__}, which cannot be copied: {error}. {remedy}"
        ) from error


_METHODS = {
    torch.float16: "half",
    torch.bfloat16: "bfloat16",
    torch.float32: "float",
    torch.float64: "double",
}


def _dtype(runtime: Runtime) -> torch.dtype | None:
    return None if runtime.dtype is None else getattr(torch, runtime.dtype)


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor
