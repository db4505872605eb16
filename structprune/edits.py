"""Reading and changing one value inside a module; a path (attribute, then keys, indices, ...) leads to it.

Tuples on the way are replaced, lists, dicts and objects are changed in place, and what belongs to a class is
copied first, so that other instances keep theirs. Every change leaves a way back in an undo list.
"""

from __future__ import annotations

import copy
import dataclasses
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn

from structprune.errors import PlanError
from structprune.plan import AttributeEdit

__all__ = ["Path", "Undo", "check", "holders", "keep_in_copies", "read", "write"]

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


def keep_in_copies(module: nn.Module, edit: AttributeEdit, undo: Undo) -> None:
    """Makes copies and pickles of an edited module keep the edit.

    A class may build its instances anew from a state (`__setstate__`, `__reduce__`): what it computed from another
    integer then comes back. The integer of the same value that decides it is looked for by trial, and changed as well.
    Raises PlanError where there is none.
    """
    if not _builds_anew(type(module)) or _kept(module, edit):
        return
    for place in _integers(vars(module), edit.old):
        tried: Undo = []
        name = str(place[0])
        _set_attribute(module, name, copy.deepcopy(getattr(module, name)), tried)
        write(module, place, edit.new, tried)
        if _kept(module, edit):
            undo.extend(tried)
            return
        for step in reversed(tried):
            step()
    raise PlanError(
        f"{edit}: a copy of this layer is built anew by its class, with {edit.old} again, so the edit would be lost; "
        "keep= the layer"
    )


def _builds_anew(cls: type) -> bool:
    own = [each for each in cls.__mro__ if each.__module__.partition(".")[0] not in ("torch", "builtins")]
    return any(name in vars(each) for each in own for name in ("__setstate__", "__reduce__", "__reduce_ex__"))


def _kept(module: nn.Module, edit: AttributeEdit) -> bool:
    try:
        return bool(read(copy.copy(module), edit.path) == edit.new)
    except Exception:  # noqa: BLE001 - the user's code: a class may refuse a state that does not fit together
        return False


def _integers(value: object, number: int) -> Iterator[Path]:
    """The paths to the integers of this value inside nested dicts, lists and tuples."""
    items: Any = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    for key, item in items:
        if type(item) is int and item == number and isinstance(key, (str, int)):
            yield (key,)
        else:
            yield from ((key, *rest) for rest in _integers(item, number))


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
