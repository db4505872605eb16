"""Reading and changing one value inside a module; a path (attribute, then keys, indices, ...) leads to it.

Tuples on the way are replaced, lists, dicts and objects are changed in place, and what belongs to a class is
copied first, so that other instances keep theirs. Every change leaves a way back in an undo list.
"""

from __future__ import annotations

import copy
import dataclasses
import types
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from structprune.errors import PlanError
from structprune.plan import AttributeEdit

__all__ = ["Path", "Undo", "check", "holders", "read", "write"]

Path = tuple[str | int, ...]
Undo = list[Callable[[], None]]


def check(model: nn.Module, edit: AttributeEdit) -> None:
    """Passes if the edit's place holds its old value, and can be changed; raises PlanError otherwise."""
    try:
        module = model.get_submodule(edit.module)
        value = read(module, edit.path)
        shared = [
            holder for holder in holders(module, edit.path) if isinstance(holder, (type, types.ModuleType))
        ]
    except (AttributeError, LookupError, TypeError) as error:
        raise PlanError(
            f"{edit}: the model has no such attribute ({error}); it was made for another model"
        ) from None
    if isinstance(value, bool) or not isinstance(value, int) or value != edit.old:
        raise PlanError(
            f"{edit}: the model has {str(value)[:80]!r} there; the plan was made for another model"
        )
    if shared:
        raise PlanError(
            f"{edit}: the integer lies in {shared[0]!r}, which all models share; give each its own object"
        )


def read(module: nn.Module, path: Path) -> Any:
    """The value at a path; raises AttributeError, LookupError or TypeError where there is none."""
    value = getattr(module, str(path[0]))
    for key in path[1:]:
        value = _step(value, key)
    return value


def holders(module: nn.Module, path: Path) -> list[Any]:
    """The containers and objects inside the module that a write at the path changes in place."""
    found = []
    value, owned = getattr(module, str(path[0])), path[0] in vars(module)
    for key in path[1:]:
        if owned and not isinstance(value, tuple):
            found.append(value)
        owned = owned and (_is_container(value) or key in getattr(value, "__dict__", {}))
        value = _step(value, key)
    return found


def write(module: nn.Module, path: Path, new: object, undo: Undo) -> None:
    """Puts a value at a path that `read` can follow."""
    name = str(path[0])
    old = getattr(module, name)
    value = _changed(old, path[1:], new, name in vars(module) or isinstance(old, nn.Module), undo)
    if value is not old:
        _set_attribute(module, name, value, undo)


def _changed(value: Any, rest: Path, new: object, owned: bool, undo: Undo) -> Any:
    if not rest:
        return new
    key: Any = rest[0]
    old = _step(value, key)
    below = owned and (_is_container(value) or key in getattr(value, "__dict__", {}))
    item = _changed(old, rest[1:], new, below or isinstance(old, nn.Module), undo)
    if item is old:
        return value
    if isinstance(value, tuple):
        return _tuple_with(value, key, item)
    target: Any = value if owned else copy.copy(value)
    if isinstance(value, (list, Mapping)):
        undo.append(lambda: target.__setitem__(key, old))
        target[key] = item
    else:
        _set_attribute(target, str(key), item, undo)
    return target


def _step(value: Any, key: Any) -> Any:
    if isinstance(value, (list, Mapping)) or isinstance(key, int):
        return value[key]
    return getattr(value, key)


def _is_container(value: object) -> bool:
    return isinstance(value, (tuple, list, Mapping))


def _tuple_with(value: tuple[Any, ...], key: str | int, item: Any) -> tuple[Any, ...]:
    if hasattr(value, "_replace"):  # a namedtuple
        field = key if isinstance(key, str) else value._fields[key]  # type: ignore[attr-defined]
        return value._replace(**{field: item})  # type: ignore[no-any-return]
    items = list(value)
    items[int(key)] = item
    return type(value)(items)


def _set_attribute(owner: Any, name: str, value: object, undo: Undo) -> None:
    old, before = getattr(owner, name), name in getattr(owner, "__dict__", {})
    setter: Callable[[Any, str, object], None] = setattr
    try:
        setattr(owner, name, value)
    except dataclasses.FrozenInstanceError:
        setter = object.__setattr__
        setter(owner, name, value)
    if not before and name in getattr(owner, "__dict__", {}):  # it came from the class
        undo.append(lambda: delattr(owner, name))
    else:
        undo.append(lambda: setter(owner, name, old))
