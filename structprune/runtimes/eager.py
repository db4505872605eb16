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

__all__ = ["device_of", "on_cuda", "timed_call", "torch_cuda", "torch_eager"]


@register_runtime("torch")
@contextmanager
def torch_eager(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], runtime: Runtime
) -> Iterator[TimedCall]:
    """Times the module as it is, on the device of its parameters; inputs are moved there first."""
    with torch_threads(runtime.threads), inference_mode(model):
        yield timed_call(model, args, kwargs, device_of(model))


@register_runtime("torch-cuda")
@contextmanager
def torch_cuda(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], runtime: Runtime
) -> Iterator[TimedCall]:
    """Times a copy of the module on the current CUDA device with CUDA events."""
    copied = on_cuda(model, runtime)
    with torch_threads(runtime.threads), inference_mode(copied):
        yield timed_call(copied, args, kwargs, torch.device("cuda", torch.cuda.current_device()))


def device_of(model: nn.Module) -> torch.device:
    """The device of the first parameter or buffer; the CPU where there is none."""
    tensors = itertools.chain(model.parameters(), model.buffers())
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


def on_cuda(model: nn.Module, runtime: Runtime) -> nn.Module:
    """A copy of the module on the current CUDA device.

    Raises:
        InputError: where torch has no CUDA device.
    """
    if not torch.cuda.is_available():
        raise InputError(
            f"runtime={runtime.name!r} needs a CUDA device that torch can use; "
            f"here runtime={runtime.name.removesuffix('-cuda')!r} works"
        )
    return copy.deepcopy(model).to("cuda")


def timed_call(
    call: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], device: torch.device
) -> TimedCall:
    """Times calls with the inputs moved to `device` beforehand: by the clock on a CPU, by events on a CUDA device.

    An event is recorded on an idle device before the call and another after it, and the second is waited for: what
    the CPU needs to launch the kernels counts where the device waits for it, as it does in use.
    """
    args, kwargs = map_tensors((args, dict(kwargs)), lambda tensor: tensor.to(device))

    def on_cpu() -> float:
        with torch.no_grad():
            start = time.perf_counter()
            call(*args, **kwargs)
            return (time.perf_counter() - start) * 1e3

    def on_device() -> float:
        new_event: Callable[..., torch.cuda.Event] = torch.cuda.Event
        start, end = new_event(enable_timing=True), new_event(enable_timing=True)
        with torch.no_grad(), torch.cuda.device(device):
            torch.cuda.synchronize()
            start.record()
            call(*args, **kwargs)
            end.record()
        end.synchronize()
        return float(start.elapsed_time(end))

    return on_device if device.type == "cuda" else on_cpu
