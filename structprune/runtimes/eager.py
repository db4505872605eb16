"""torch eager: the module itself where its tensors lie (`torch`), or a copy on CUDA (`torch-cuda`)."""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from structprune.errors import InputError
from structprune.inputs import map_tensors
from structprune.runtime_settings import Runtime
from structprune.runtimes.flags import inference_mode, torch_threads
from structprune.runtimes.registry import TimedCall, register_runtime

__all__ = ["torch_cuda", "torch_eager"]


@register_runtime("torch")
@contextmanager
def torch_eager(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], runtime: Runtime
) -> Iterator[TimedCall]:
    """Times the module as it is, on the device of its parameters; inputs are moved there first."""
    tensors = itertools.chain(model.parameters(), model.buffers())
    device = next((tensor.device for tensor in tensors), torch.device("cpu"))
    args, kwargs = map_tensors((args, dict(kwargs)), lambda tensor: tensor.to(device))

    def on_cpu() -> float:
        with torch.no_grad():
            start = time.perf_counter()
            model(*args, **kwargs)
            return (time.perf_counter() - start) * 1e3

    def on_cuda() -> float:
        new_event: Callable[..., torch.cuda.Event] = torch.cuda.Event
        start, end = new_event(enable_timing=True), new_event(enable_timing=True)
        with torch.no_grad(), torch.cuda.device(device):
            start.record()
            model(*args, **kwargs)
            end.record()
        end.synchronize()
        return float(start.elapsed_time(end))

    with torch_threads(runtime.threads), inference_mode(model):
        yield on_cuda if device.type == "cuda" else on_cpu


@register_runtime("torch-cuda")
@contextmanager
def torch_cuda(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], runtime: Runtime
) -> Iterator[TimedCall]:
    """Times a copy of the module on the current CUDA device with CUDA events."""
    if not torch.cuda.is_available():
        raise InputError(
            "runtime='torch-cuda' needs a CUDA device that torch can use; here runtime='torch' works"
        )
    with torch_eager(copy.deepcopy(model).to("cuda"), args, kwargs, runtime) as timed:
        yield timed
