"""Tensors of a trace that outlived it: a cache of the user's code has kept them, and would hand them out again."""

from __future__ import annotations

import functools
import gc
from collections.abc import Sequence
from typing import Any
from weakref import ReferenceType

__all__ = ["forget"]

_Cache = type(functools.lru_cache(lambda: None))
_DEPTH = 4


def forget(tensors: Sequence[ReferenceType[Any]]) -> int:
    """Empty the caches (`functools.lru_cache`, dicts, lists) that still hold tensors of a trace; return how many.

    A forward may keep what it computes outside the model, for the next call. What it kept during a trace has no values.
    Costs nothing where nothing has survived.
    """
    if not _alive(tensors):
        return 0
    gc.collect()
    alive = _alive(tensors)
    if not alive:
        return 0
    emptied = 0
    wanted = {id(tensor) for tensor in alive}
    for candidate in gc.get_objects():
        if type(candidate) is _Cache and candidate.cache_info().currsize and _reaches(candidate, wanted):
            candidate.cache_clear()
            emptied += 1
    for tensor in alive:
        emptied += sum(_removed(holder, tensor) for holder in gc.get_referrers(tensor) if holder is not alive)
    return emptied


def _alive(tensors: Sequence[ReferenceType[Any]]) -> list[Any]:
    return [tensor for tensor in (reference() for reference in tensors) if tensor is not None]


def _reaches(start: Any, wanted: set[int]) -> bool:
    level = [start]
    for _ in range(_DEPTH):
        level = [
            item for item in gc.get_referents(*level) if not isinstance(item, type) and not callable(item)
        ]
        if any(id(item) in wanted for item in level):
            return True
    return False


def _removed(holder: Any, tensor: Any) -> bool:
    """Take a tensor out of the list or the dict that keeps it; names of variables and attributes stay as they are."""
    if type(holder) is list:
        before = len(holder)
        holder[:] = [item for item in holder if item is not tensor]
        return len(holder) < before
    if type(holder) is tuple:
        return any(_removed(outer, holder) for outer in gc.get_referrers(holder) if type(outer) is dict)
    if type(holder) is not dict or _is_namespace(holder):
        return False
    for key in [key for key, value in holder.items() if value is tensor]:
        del holder[key]
    return True


def _is_namespace(holder: dict[Any, Any]) -> bool:
    """Whether a dict holds the variables of a module or the attributes of an object."""
    if "__builtins__" in holder or "__name__" in holder:
        return True
    owners = gc.get_referrers(holder)
    return any(getattr(owner, "__dict__", None) is holder for owner in owners)
