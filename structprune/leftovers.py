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
    for generation in (None, 1, 2):  # the oldest generation is the whole of the program: looked through last
        if generation is not None:
            gc.collect(generation)
        alive = _alive(tensors)
        if not alive:
            return 0
    wanted = {id(tensor) for tensor in alive}
    return _cleared(wanted) + _removed(
        [holder for holder in gc.get_referrers(*alive) if holder is not alive], wanted
    )


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


def _cleared(wanted: set[int]) -> int:
    """Clear the function caches that reach one of the objects; return how many."""
    cleared = 0
    for candidate in gc.get_objects():
        if type(candidate) is _Cache and candidate.cache_info().currsize and _reaches(candidate, wanted):
            candidate.cache_clear()
            cleared += 1
    return cleared


def _removed(holders: list[Any], wanted: set[int]) -> int:
    """Take the objects out of the lists and dicts that keep them, by themselves or in a tuple; names of variables and
    attributes stay as they are. Each search goes through the whole memory, so there is one for all.
    """
    removed = 0
    for holder in holders:
        if type(holder) is list:
            before = len(holder)
            holder[:] = [item for item in holder if id(item) not in wanted]
            removed += len(holder) < before
    tuples = [holder for holder in holders if type(holder) is tuple]
    outer = [holder for holder in gc.get_referrers(*tuples) if type(holder) is dict] if tuples else []
    wanted = wanted | {id(one) for one in tuples}
    dicts = [holder for holder in (*holders, *outer) if type(holder) is dict]
    names = _namespaces(dicts)
    for holder in dicts:
        if id(holder) not in names:
            for key in [key for key, value in holder.items() if id(value) in wanted]:
                del holder[key]
                removed += 1
    return removed


def _namespaces(dicts: list[dict[Any, Any]]) -> set[int]:
    """The ids of those that hold the variables of a module or the attributes of an object."""
    found = {id(one) for one in dicts if "__builtins__" in one or "__name__" in one}
    asked = {id(one) for one in dicts}
    for owner in gc.get_referrers(*dicts) if dicts else ():
        if id(own := getattr(owner, "__dict__", None)) in asked:
            found.add(id(own))
    return found
