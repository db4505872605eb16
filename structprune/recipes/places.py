"""Where in a file something stands: the text as plain data with line numbers, and errors that name both."""

from __future__ import annotations

import json
import traceback
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from structprune.errors import InputError, StructpruneError
from structprune.recipes.fields import did_you_mean

__all__ = ["Document", "explained", "read", "told_at"]

Place = tuple[str | int, ...]
_MOST = 5  # errors that are told at once
_NO_MAPPING = ("model_type", "model_attributes_type", "dict_type")
_DEEPEST = 50
_LARGEST = 10_000  # parts of a file; more come of aliases of aliases alone
_SAID = ("value_error", "in_key", "misplaced")  # kinds of errors whose message says what was given


@dataclass(frozen=True)
class Document:
    """Plain data, the name of where it is from, and the lines of its parts where they are known.

    All are equal: what is made of one does not differ by where it was written.
    """

    content: Any = field(compare=False)
    name: str = field(compare=False)
    lines: Mapping[Place, int] = field(default_factory=dict, compare=False)

    def at(self, *place: str | int) -> str:
        """The file, the line where it is known, and the place, as messages begin."""
        known = (self.lines[place[:n]] for n in range(len(place), -1, -1) if place[:n] in self.lines)
        line = next(known, None)
        where = self.name if line is None else f"{self.name}:{line}"
        spelled = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in place).lstrip(".")
        return f"{where}: {spelled}" if spelled else where


def read(text: str, name: str, as_json: bool = False) -> Document:
    """What a text of YAML, or of JSON, says; raises InputError where it is neither, or says a key twice."""
    if as_json:
        try:
            return Document(json.loads(text, object_pairs_hook=lambda pairs: _once(pairs, name)), name)
        except ValueError as error:
            raise InputError(f"{name} is no JSON: {error}") from None
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        lines: dict[Place, int] = {}
        _walk(node, (), lines, name)
        return Document(yaml.safe_load(text), name, lines)
    except yaml.YAMLError as error:
        raise InputError(f"{name} is no YAML: {error}") from None


@contextmanager
def told_at(place: str, own: Collection[Path] = ()) -> Iterator[None]:
    """Inside, what structprune raises begins with the place in the recipe; its kind stays. What comes out of the files
    `own`, of the recipe's writer, is an InputError that names the line.
    """
    try:
        yield
    except StructpruneError as error:
        error.args = (f"{place}: {error}", *error.args[1:])
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        inside = [frame for frame in frames if Path(frame.filename).resolve() in own]
        if not inside:
            raise
        where = f"{Path(inside[-1].filename).name}:{inside[-1].lineno}"
        raise InputError(f"{place}: {where} failed: {type(error).__name__}: {error}") from error


def explained(error: ValidationError, document: Document) -> str:
    """The first few errors, each with its place, its line, and what to do."""
    errors = [(_place(each, document.content), each) for each in error.errors(include_url=False)]
    deepest = [
        (place, each)
        for place, each in errors  # of a union, what is wrong inside says more than that it is no plain value
        if not any(len(other) > len(place) and other[: len(place)] == place for other, _ in errors)
    ]
    found = list(dict.fromkeys(f"{document.at(*place)}: {_message(each)}" for place, each in deepest))
    more = [f"and {len(found) - _MOST} more"] if len(found) > _MOST else []
    return "\n".join([*found[:_MOST], *more])


def _message(error: Any) -> str:
    context, given = error.get("ctx", {}), error["input"]
    if error["type"] == "missing":
        return "this key is missing"
    if error["type"] == "union_tag_not_found":
        return f"the key {context['discriminator']} is missing; it says what this is"
    if error["type"] == "union_tag_invalid":
        known = [name.strip().strip("'") for name in context["expected_tags"].split(",")]
        key = context["discriminator"].strip("'")
        return f"unknown {key} {context['tag']!r}; {did_you_mean(context['tag'], known)}"
    if error["type"] in _NO_MAPPING:
        return f"expected keys with values, as in 'key: value'; got {_shown(given)}"
    message = str(error["msg"]).removeprefix("Value error, ")
    plain = isinstance(given, (str, int, float, bool)) and error["type"] not in _SAID
    return f"{message} (got {given!r})" if plain else message


def _shown(given: Any) -> str:
    return "nothing" if given is None else "a list" if isinstance(given, list) else repr(given)


def _place(error: Any, content: Any) -> Place:
    """The keys and indices that lead to what is wrong; pydantic's names of union members are none."""
    steps: list[str | int] = []
    for step in error["loc"]:
        inside = step in content if isinstance(content, Mapping) else _is_index(step, content)
        if inside:
            steps.append(step)
            content = content[step]
    if error["type"] == "missing":
        steps.append(error["loc"][-1])
    elif error["type"] == "in_key":
        steps.append(error["ctx"]["key"])
    elif error["type"] == "misplaced":
        steps += error["ctx"]["place"]
    elif error["type"].startswith("union_tag_i"):
        steps.append(error["ctx"]["discriminator"].strip("'"))
    return tuple(steps)


def _is_index(step: str | int, content: Any) -> bool:
    return isinstance(step, int) and isinstance(content, (list, tuple)) and step < len(content)


def _walk(node: yaml.Node | None, place: Place, lines: dict[Place, int], name: str) -> None:
    if len(place) > _DEEPEST or len(lines) > _LARGEST:
        raise InputError(
            f"{name}: an alias refers to what it is in, or the file is no recipe: it is too deep or large"
        )
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise InputError(
                    f"{name}:{key.start_mark.line + 1}: a key must be a word, not a list or a mapping"
                )
            inside = (*place, key.value)
            if inside in lines:
                raise InputError(
                    f"{name}:{key.start_mark.line + 1}: the key {key.value!r} is there twice, first in line "
                    f"{lines[inside]}"
                )
            lines[inside] = key.start_mark.line + 1
            _walk(value, inside, lines, name)
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            lines[(*place, number)] = value.start_mark.line + 1
            _walk(value, (*place, number), lines, name)


def _once(pairs: list[tuple[str, Any]], name: str) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise InputError(f"{name}: the key {key!r} is there twice in one object")
    return dict(pairs)
