"""How long each kernel of a network takes on a runtime, and which runtimes can say so."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import nn

from structprune.errors import InputError
from structprune.runtime_settings import Runtime

__all__ = ["Kernel", "ModuleProfiler", "Profile", "module_profiler", "register_profiler"]


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel of a network: its name in the runtime's graph, the operation, its shapes, and its times."""

    name: str
    operation: str
    shapes: tuple[tuple[int, ...], ...]
    ms: float


@dataclass(frozen=True, slots=True)
class Profile:
    """The kernels of one network in the order they run, and how long whole inferences take while nothing is profiled.

    ``reference_ms`` is how long another network took, right before and after: how fast the machine was.
    """

    kernels: tuple[Kernel, ...]
    whole_ms: float
    reference_ms: float = 1.0


ModuleProfiler: TypeAlias = Callable[[nn.Module, tuple[Any, ...], Mapping[str, Any], Runtime], Profile]
"""(module, args, kwargs, runtime) -> the profile of one inference, dtype and batch size already as the runtime says."""

_PROFILERS: dict[str, ModuleProfiler] = {}


def register_profiler(name: str) -> Callable[[ModuleProfiler], ModuleProfiler]:
    """A decorator that lets a runtime say how long each kernel of a module takes: what latency budgets need of it.

    Raises:
        InputError: where the runtime has a profiler.
    """

    def register(profiler: ModuleProfiler) -> ModuleProfiler:
        if name in _PROFILERS:
            raise InputError(f"runtime {name!r} has a profiler already")
        _PROFILERS[name] = profiler
        return profiler

    return register


def module_profiler(name: str) -> ModuleProfiler | None:
    """The profiler of a runtime, None where it has none."""
    return _PROFILERS.get(name)
