"""The table of runtimes, and the one interface they share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, TypeAlias

from torch import nn

from structprune.errors import InputError

__all__ = ["Factory", "TimedCall", "prepare", "register_runtime", "runtime_names"]

TimedCall: TypeAlias = Callable[[], float]
"""Runs one inference to its end and returns how long it took, in milliseconds."""

Factory: TypeAlias = Callable[
    [nn.Module, tuple[Any, ...], Mapping[str, Any], int], AbstractContextManager[TimedCall]
]
"""(module, args, kwargs, threads) -> a context in which the module is ready to be timed."""

_FACTORIES: dict[str, Factory] = {}


def register_runtime(name: str) -> Callable[[Factory], Factory]:
    """A decorator that makes a factory available as `runtime=name`.

    Raises:
        InputError: where the name is taken.
    """

    def register(factory: Factory) -> Factory:
        if name in _FACTORIES:
            raise InputError(f"a runtime named {name!r} is registered already; choose another name")
        _FACTORIES[name] = factory
        return factory

    return register


def runtime_names() -> tuple[str, ...]:
    """The names that `runtime=` takes, sorted; that a name is known does not say that its device is there.

    >>> {"onnxruntime", "torch"} <= set(runtime_names())
    True
    """
    return tuple(sorted(_FACTORIES))


def prepare(
    runtime: str, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], threads: int
) -> AbstractContextManager[TimedCall]:
    """A context in which `model` is ready on `runtime`; it gives a callable that times one inference.

    Raises:
        InputError: for a name that is not registered, or fewer than one thread.
    """
    if runtime not in _FACTORIES:
        raise InputError(f"{runtime=} is not known; the names are {', '.join(runtime_names())}")
    if threads < 1:
        raise InputError(f"{threads=}: a runtime needs at least 1 thread")
    return _FACTORIES[runtime](model, args, kwargs, threads)
