"""What is timed: the model and its inputs as a runtime is to run them, converted on a copy where it asks for that."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from structprune.errors import InputError
from structprune.inputs import map_tensors, repeat_batch
from structprune.runtime_settings import Runtime

__all__ = ["inputs_for", "model_for"]


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
    """The model in the runtime's dtype: itself where it is so already, else a copy."""
    dtype = _dtype(runtime)
    tensors = itertools.chain(model.parameters(), model.buffers())
    if dtype is None or all(tensor.dtype == dtype for tensor in tensors if tensor.is_floating_point()):
        return model
    try:
        copied = copy.deepcopy(model)
    except (TypeError, RuntimeError, NotImplementedError) as error:
        raise InputError(
            f"dtype={runtime.dtype!r} needs a copy of {type(model).__name__}, which cannot be copied: {error}. "
            "Convert the model and its inputs yourself and leave dtype out"
        ) from error
    # not `to(dtype)`: it makes complex tensors real
    converted: nn.Module = getattr(copied, _METHODS[dtype])()
    return converted


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
