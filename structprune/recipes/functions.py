"""Functions of one's own that a recipe names: package.module:function, or file.py:function beside the recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator

from structprune.by_name import called, lookup
from structprune.errors import InputError
from structprune.recipes.fields import Strict

__all__ = ["Function", "NameOrFunction", "beside", "function", "functions_in", "guarded", "is_own"]


class _Named:
    """Marks a field that may hold the name of a function."""


_NAMED = _Named()


def is_own(name: str) -> bool:
    """Whether a name is that of a function of one's own, and none that structprune knows."""
    return ":" in name


def _spelled(name: str | None) -> str | None:
    if name is not None and not is_own(name):
        raise ValueError(
            f"{name!r}: expected package.module:function, or file.py:function with the file beside the recipe"
        )
    return name


Function = Annotated[str | None, AfterValidator(_spelled), _NAMED]
"""The name of a function of one's own."""
NameOrFunction = Annotated[str, _NAMED]
"""A name that structprune knows, or that of a function of one's own."""


def functions_in(part: Strict, place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every function of one's own that a part of a recipe names, with its place in that part."""
    for field, info in type(part).model_fields.items():
        value = getattr(part, field)
        if isinstance(value, Strict):
            yield from functions_in(value, (*place, field))
        elif isinstance(value, str) and is_own(value) and _NAMED in info.metadata:
            yield (*place, field), value


def function(name: str, base: Path, what: str = "function") -> Callable[..., Any]:
    """The function of this name; raises InputError where there is none, or what has the name is no function."""
    found = lookup(beside(name, base), what)
    if not callable(found):
        raise InputError(f"{what} {name!r}: expected a function, got {type(found).__name__}")
    return found  # type: ignore[no-any-return]


def guarded(name: str, base: Path, what: str, kind: type | tuple[type, ...]) -> Callable[..., Any]:
    """The function of this name; what it raises is an InputError that names it, and so is a result of another kind."""
    found = function(name, base, what)

    def call(*given: Any) -> Any:
        result = called(name, lambda: found(*given))
        if not isinstance(result, kind):
            kinds = " or ".join(each.__name__ for each in (kind if isinstance(kind, tuple) else (kind,)))
            raise InputError(f"{what} {name!r} returned {type(result).__name__}, expected {kinds}")
        return result

    return call


def beside(name: str, base: Path) -> str:
    """`file.py:function` with the file beside the recipe; any other name as it is."""
    file, colon, attribute = name.rpartition(":")
    return f"{base / file}{colon}{attribute}" if file.endswith(".py") else name
