"""Functions that remember their results, run anew where a size that a trace follows goes in.

`functools.lru_cache` takes a traced integer for the plain one that it equals, and answers with what an earlier run
stored: sizes without an origin. So while a model is traced, such functions, where they lie in the user's modules or
classes, look at their arguments first.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from structprune.provenance import TracedInt

__all__ = ["fresh_results"]

_CACHED = type(functools.lru_cache(lambda: None))
_FOREIGN = frozenset(("torch", "numpy", "structprune", "builtins")) | sys.stdlib_module_names


@contextlib.contextmanager
def fresh_results(model: nn.Module) -> Iterator[None]:
    """Inside, what the user's cached functions make of traced integers is neither looked up nor stored."""
    changed: list[tuple[Any, str, Any]] = []
    try:
        for owner, name, found in _cached(model):
            static = isinstance(found, staticmethod)
            looking = _looking(found.__func__ if static else found)
            changed.append((owner, name, found))
            setattr(owner, name, staticmethod(looking) if static else looking)
        yield
    finally:
        for owner, name, found in reversed(changed):
            setattr(owner, name, found)


def _cached(model: nn.Module) -> list[tuple[Any, str, Any]]:
    """The cached functions in modules outside torch and the standard library, and in the classes of the model."""
    owners: dict[int, Any] = {
        id(module): module
        for name, module in list(sys.modules.items())
        if module is not None and name.partition(".")[0] not in _FOREIGN
    }
    for module in model.modules():
        owners.update((id(cls), cls) for cls in type(module).__mro__ if not _is_foreign(cls))
    found = []
    for owner in owners.values():
        for name, value in list(getattr(owner, "__dict__", {}).items()):
            inner = value.__func__ if type(value) is staticmethod else value
            if type(inner) is _CACHED and not _is_foreign(inner):
                found.append((owner, name, value))
    return found


def _is_foreign(value: Any) -> bool:
    return str(getattr(value, "__module__", "")).partition(".")[0] in _FOREIGN


def _looking(cached: Any) -> Callable[..., Any]:
    @functools.wraps(cached)
    def looking(*args: Any, **kwargs: Any) -> Any:
        traced = _holds_traced(args) or _holds_traced(tuple(kwargs.values()))
        return (cached.__wrapped__ if traced else cached)(*args, **kwargs)

    looking.cache_info, looking.cache_clear = cached.cache_info, cached.cache_clear  # type: ignore[attr-defined]
    return looking


def _holds_traced(values: tuple[Any, ...] | list[Any]) -> bool:
    return any(
        isinstance(value, TracedInt) or (isinstance(value, (tuple, list)) and _holds_traced(value))
        for value in values
    )
