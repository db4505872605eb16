"""How long each operation of a module takes when it runs as Python: timed one by one as they are dispatched."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from structprune.inputs import map_tensors
from structprune.runtime_settings import Runtime
from structprune.runtimes.eager import device_of, on_cuda
from structprune.runtimes.flags import inference_mode, torch_threads
from structprune.runtimes.profiles import Kernel, Profile, register_profiler

__all__ = ["profile_eager", "profile_on_cuda"]

_WARMUP, _ROUNDS = 2, 8


class _Timer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Times every operation; its own time falls between them."""

    def __init__(self, wait: Callable[[], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.wait = wait
        self.seen: dict[str, int] = {}
        self.kernels: list[Kernel] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        start = time.perf_counter()
        out = func(*args, **(kwargs or {}))
        self.wait()
        ms = (time.perf_counter() - start) * 1e3
        operation = str(func)
        number = self.seen[operation] = self.seen.get(operation, -1) + 1
        listed = args[0] if args and isinstance(args[0], (list, tuple)) else args
        shapes = tuple(tuple(value.shape) for value in listed if isinstance(value, Tensor))
        shapes += (tuple(out.shape),) if isinstance(out, Tensor) else ((),)
        self.kernels.append(Kernel(f"{operation}#{number}", operation, shapes, ms))
        return out


def _go_on() -> None:
    """A CPU is done when the call returns."""


@register_profiler("torch-cuda")
def profile_on_cuda(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], runtime: Runtime
) -> Profile:
    """The profile of a copy on the current CUDA device."""
    return profile_eager(on_cuda(model, runtime), args, kwargs, runtime)


@register_profiler("torch")
def profile_eager(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    runtime: Runtime,
) -> Profile:
    """The profile of a module in torch eager where its tensors lie: of each operation the lower quartile over rounds.

    What Python spends between the operations is one kernel more, without shapes. On a CUDA device each operation is
    waited for.
    """
    device = device_of(model)
    args, kwargs = map_tensors((args, dict(kwargs)), lambda tensor: tensor.to(device))
    wait = functools.partial(torch.cuda.synchronize, device) if device.type == "cuda" else _go_on
    first: dict[str, Kernel] = {}
    times: dict[str, list[float]] = {}
    wholes = []
    with torch_threads(runtime.threads), inference_mode(model):
        for turn in range(_WARMUP + _ROUNDS):
            start = time.perf_counter()
            model(*args, **kwargs)
            wait()
            whole = (time.perf_counter() - start) * 1e3
            with _Timer(wait) as timer, torch.no_grad():
                model(*args, **kwargs)
            for kernel in timer.kernels if turn >= _WARMUP else ():
                first.setdefault(kernel.name, kernel)
                times.setdefault(kernel.name, []).append(kernel.ms)
            wholes += [whole] if turn >= _WARMUP else []
    kernels = [
        Kernel(name, kernel.operation, kernel.shapes, float(np.quantile(times[name], 0.25)))
        for name, kernel in first.items()
    ]
    whole = float(np.quantile(wholes, 0.25))
    between = max(whole - sum(kernel.ms for kernel in kernels), 0.0)
    return Profile((*kernels, Kernel("python", "python", ((),), between)), whole)
