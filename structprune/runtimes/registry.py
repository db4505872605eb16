"""The table of runtimes, and the one interface they share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, TypeAlias

from torch import nn

from structprune.errors import InputError
from structprune.runtime_settings import Runtime

__all__ = [
    "Factory",
    "TimedCall",
    "alone",
    "lender",
    "prepare",
    "register_runtime",
    "require_known",
    "runtime_names",
]

TimedCall: TypeAlias = Callable[[], float]
"""Runs one inference to its end and returns how long it took, in milliseconds."""

Factory: TypeAlias = Callable[
    [nn.Module, tuple[Any, ...], Mapping[str, Any], Runtime], AbstractContextManager[TimedCall]
]
"""(module, args, kwargs, runtime) -> a context in which the module is ready to be timed.

The module and the inputs have the runtime's dtype and batch size already; `threads` and `options` are the factory's.
"""


def alone() -> float:
    """Stands for a network beside the one that is profiled, where there is none: as quick at every call."""
    return 1.0


_FACTORIES: dict[str, Factory] = {}
_TAKE_OPTIONS: set[str] = set()
_LENDERS: dict[str, str] = {}


def register_runtime(
    name: str, *, takes_options: bool = False, kernels_of: str = "torch"
) -> Callable[[Factory], Factory]:
    """A decorator that makes a factory available as `runtime=name`.

    Without `takes_options` provider options are refused before the factory is called. `kernels_of` is the runtime
    whose kernels stand for this one's in latency budgets, weighed, where it has no profiler of its own.

    Raises:
        InputError: where the name is taken.
    """

    def register(factory: Factory) -> Factory:
        if name in _FACTORIES:
            raise InputError(f"a runtime named {name!r} is registered already; choose another name")
        if name == kernels_of != "torch":
            raise InputError(f"{kernels_of=} names the runtime itself: name one that has a profiler")
        _FACTORIES[name] = factory
        _TAKE_OPTIONS.update({name} if takes_options else ())
        _LENDERS[name] = kernels_of
        return factory

    return register


def runtime_names() -> tuple[str, ...]:
    """The names that `runtime=` takes, sorted; that a name is known does not say that its device is there.

    >>> {"onnxruntime", "torch"} <= set(runtime_names())
    True
    """
    return tuple(sorted(_FACTORIES))


def require_known(runtime: Runtime) -> None:
    """Raises InputError for a name that is not registered, and for provider options where the runtime has none."""
    if runtime.name not in _FACTORIES:
        raise InputError(f"runtime={runtime.name!r} is not known; the names are {', '.join(runtime_names())}")
    if runtime.options and runtime.name not in _TAKE_OPTIONS:
        raise InputError(
            f"runtime={runtime.name!r} takes no provider options, got {runtime.options}; "
            f"those that do are {', '.join(sorted(_TAKE_OPTIONS & set(_FACTORIES)))}"
        )


def lender(runtime: Runtime) -> Runtime:
    """The runtime whose kernels stand for those of one that has no profiler, with the same settings."""
    return replace(runtime, name=_LENDERS[runtime.name], provider_options=None)


def prepare(
    runtime: Runtime, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> AbstractContextManager[TimedCall]:
    """A context in which `model` is ready on `runtime`; it gives a callable that times one inference.

    Raises:
        InputError: for a name that is not registered, or provider options that it does not take.
    """
    require_known(runtime)
    return _FACTORIES[runtime.name](model, args, kwargs, runtime)
