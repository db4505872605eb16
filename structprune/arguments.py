"""`@typed`: a public function whose arguments are held to their annotations, in the words of the call.

A wrong type is refused where it is given, not where it happens to fail; what the annotations cannot say (ranges, names,
shapes) the functions check themselves. Of what is only gone through once, an iterator say, nothing is read.
"""

from __future__ import annotations

import functools
import inspect
import re
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from numbers import Integral, Real
from typing import Any, Literal, TypeVar, Union

import numpy as np

from structprune.errors import InputError

__all__ = ["typed"]

Function = TypeVar("Function", bound=Callable[..., Any])

_UNIONS = (Union, types.UnionType)
_MOST_SHOWN = 60  # characters of a value


def typed(function: Function) -> Function:
    """The function, or the `__init__`, which raises InputError for arguments of types that its annotations exclude.

    numpy's numbers and truth values pass as Python's own, and are handed on as such.

    >>> @typed
    ... def half(count: int) -> float:
    ...     return count / 2
    >>> half(np.int64(3))
    1.5
    >>> half("3")
    Traceback (most recent call last):
    structprune.errors.InputError: half(count='3'): expected int, got str
    """
    signature = inspect.signature(function)
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    named = [name for name, parameter in signature.parameters.items() if parameter.kind not in variadic]
    hints: dict[str, Any] = {}

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:
            return function(*args, **kwargs)  # Python's own message names the function
        if not hints:  # not where it is decorated: modules below may still be on their way
            hints.update(typing.get_type_hints(function))
        for name, value in bound.arguments.items():
            if name not in named or name not in hints:
                continue
            if isinstance(value, np.generic):
                bound.arguments[name] = value = value.item()
            if not _fits(value, hints[name]):
                called = function.__qualname__.removesuffix(".__init__").rpartition(".")[2]
                given = f"{called}({name}={_shown(value)})"
                raise InputError(f"{given}: expected {_written(hints[name])}, got {_kind(value)}")
        return function(*bound.args, **bound.kwargs)

    return typing.cast(Function, call)


def _shown(value: object) -> str:
    plain = isinstance(value, str | bytes | int | float | complex | None)
    text = repr(value) if plain else "..."
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


def _kind(value: object) -> str:
    kind = type(value).__name__
    if isinstance(value, list | tuple) and value:
        return f"{kind} of {' and '.join(sorted({type(one).__name__ for one in value}))}"
    return kind


def _written(hint: Any) -> str:
    """The annotation as it would be written, with aliases spelt out.

    >>> _written(float | Mapping[str, int] | None)
    'float | Mapping[str, int] | None'
    """
    text = hint.__name__ if typing.get_origin(hint) is None and isinstance(hint, type) else str(hint)
    return re.sub(r"\b(?:\w+\.)+(\w+)", r"\1", text)


def _fits(value: object, hint: Any) -> bool:
    """Whether a value may be what the annotation says; of containers, those that can be read again are looked into."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in _UNIONS:
        return any(_fits(value, one) for one in inner)
    if origin is Literal:
        return value in inner
    if origin is type:
        return isinstance(value, type)
    if origin is None:
        return _is_a(value, hint)
    if not isinstance(value, origin):
        return _is_indexed(origin) and hasattr(type(value), "__getitem__")
    if issubclass(origin, Mapping):
        return all(_fits(k, inner[0]) and _fits(v, inner[1]) for k, v in _items(value))
    if origin is tuple and inner[-1:] != (...,):
        return len(value) == len(inner) and all(map(_fits, value, inner))
    if issubclass(origin, Iterable) and isinstance(value, list | tuple | str):
        return all(_fits(one, inner[0]) for one in value)
    return True


def _is_indexed(origin: type) -> bool:
    """Whether what can be indexed will do: Python goes through it, and a torch Dataset, no collection, is just that."""
    return origin is Iterable or (hasattr(origin, "__getitem__") and not issubclass(origin, Collection))


def _items(value: Any) -> Collection[tuple[object, object]]:
    return value.items() if isinstance(value, Mapping) else ()


def _is_a(value: object, hint: Any) -> bool:
    """Whether a value is of a plain class; integers count as numbers, and truth values do not."""
    if hint is None or hint is type(None):
        return value is None
    if hint in (int, float):
        return isinstance(value, Integral if hint is int else Real) and not isinstance(value, bool)
    if hint in (Any, object) or not isinstance(hint, type):
        return True
    if getattr(hint, "_is_protocol", False):
        return all(_has(value, name) for name in _asked_for(hint))
    return isinstance(value, hint)


def _asked_for(protocol: type) -> Collection[str]:
    """The names of a protocol's members."""
    bases = [base for base in protocol.__mro__ if getattr(base, "_is_protocol", False)]
    names = (name for base in bases for name in (*vars(base), *inspect.get_annotations(base)))
    return {name for name in names if not name.startswith("_")}


def _has(value: object, name: str) -> bool:
    missing = object()
    return inspect.getattr_static(value, name, missing) is not missing
