"""Models of what others already declare: a dataclass or a function says once what its fields are.

A recipe that names an option of training or a quantity of a budget has exactly those that exist; one that is added
there is in recipes, in their schema and in their checks as well.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, create_model, model_validator
from pydantic_core import PydanticCustomError

__all__ = ["Derived", "Names", "Seed", "Strict", "derived", "did_you_mean", "names"]

Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""What random numbers begin with: as much as every library takes."""
Names = str | list[str]
"""One name, or several."""


class Strict(BaseModel):
    """A part of a recipe: it cannot be changed, and takes no key that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, given: Any) -> Any:
        for key, value in given.items() if isinstance(given, Mapping) else ():
            if key not in cls.model_fields:
                hint = did_you_mean(str(key), cls.model_fields)
                raise PydanticCustomError("in_key", "unknown key; {hint}", {"key": key, "hint": hint})
            if isinstance(value, bool) and not _takes(cls.model_fields[key].annotation, bool):
                raise PydanticCustomError("in_key", "neither true nor false will do here", {"key": key})
        return given


class Derived(Strict):
    """A model of the fields of a dataclass or function; `make` calls it with them."""

    source: ClassVar[Callable[..., Any]]

    def make(self, **more: Any) -> Any:
        """What the source makes of the fields; `more` go before them."""
        given = {name: _made(getattr(self, name)) for name in self.called_with()}
        return type(self).source(**(given | more))

    @classmethod
    def called_with(cls) -> tuple[str, ...]:
        """The names of the fields that the source takes."""
        return tuple(name for name in inspect.signature(cls.source).parameters if name in cls.model_fields)


def derived(
    source: Callable[..., Any], name: str, leave_out: tuple[str, ...] = (), **other: Any
) -> type[Derived]:
    """A model with the parameters of `source` as fields, `other` ones by a type and default of their own.

    A parameter whose type is a dataclass becomes a model of that dataclass. What the source refuses, the model refuses.
    """
    hints = typing.get_type_hints(source.__init__ if inspect.isclass(source) else source)
    fields = {
        parameter.name: (_modelled(hints[parameter.name]), _default(parameter))
        for parameter in inspect.signature(source).parameters.values()
        if parameter.name not in leave_out
    }
    made = create_model(name, __base__=Derived, __doc__=inspect.getdoc(source), **(fields | other))
    made.source = source
    return made


def did_you_mean(given: str, known: typing.Iterable[str]) -> str:
    """The known name that is nearest, or all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(given, names, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known are {', '.join(names)}"


def names(given: Names) -> list[str]:
    """One name or several, as several."""
    return [given] if isinstance(given, str) else list(given)


def _takes(annotation: Any, kind: type) -> bool:
    """Whether a type is this one, or has it among others."""
    return annotation in (kind, Any) or any(_takes(each, kind) for each in typing.get_args(annotation))


def _made(value: Any) -> Any:
    return value.make() if isinstance(value, Derived) else value


def _default(parameter: inspect.Parameter) -> Any:
    return ... if parameter.default is parameter.empty else parameter.default


def _modelled(kind: Any) -> Any:
    """The type as plain data has it: models in place of dataclasses, and no functions where others will do."""
    if inspect.isclass(kind) and dataclasses.is_dataclass(kind):
        return derived(kind, kind.__name__)
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        plain = [each for each in typing.get_args(kind) if typing.get_origin(each) is not Callable]
        return typing.Union[tuple(_modelled(each) for each in plain)]  # noqa: UP007
    return kind
