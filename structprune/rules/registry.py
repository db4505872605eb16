"""The rule table: which function says how axes flow through an operation."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from structprune.rules.call import Call

__all__ = [
    "KnownRule",
    "Rule",
    "function_rule",
    "has_rule",
    "known_rules",
    "lookup",
    "lookup_function",
    "qualified",
    "rule",
    "source",
]

Rule = Callable[["Call"], None]
_RULES: dict[str, Rule] = {}
_FUNCTION_RULES: dict[Any, tuple[Rule, tuple[str, ...]]] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a function as the rule of the operations ``names``: ``"convolution"``, or ``"mylib::my_op"`` for a
    custom one.

    The in-place variant (``relu_``) and all overloads share the rule. Raises ValueError for a name that has one.
    """

    def register(function: Rule) -> Rule:
        for name in names:
            if name in _RULES:
                raise ValueError(f"operation {name!r} has a rule already: {_RULES[name].__module__}")
            _RULES[name] = function
        return function

    return register


def function_rule(function: Any, parameters: str) -> Callable[[Rule], Rule]:
    """Register the rule of a function that is judged as a whole, before it takes one of several forms inside.

    ``parameters`` names its positional parameters, separated by spaces.
    """

    def register(rule_function: Rule) -> Rule:
        if function in _FUNCTION_RULES:
            raise ValueError(f"function {function!r} has a rule already")
        _FUNCTION_RULES[function] = (rule_function, tuple(parameters.split()))
        return rule_function

    return register


def lookup_function(function: Any) -> tuple[Rule, tuple[str, ...]] | None:
    """Return the rule of a function of torch's Python interface and its parameters' names, or None."""
    try:
        return _FUNCTION_RULES.get(function)
    except TypeError:
        return None


def lookup(operation: Any) -> Rule | None:
    """Return the rule of an overload such as ``aten.add.Tensor``, or None where none is known."""
    namespace, _, name = operation._schema.name.partition("::")
    for key in (name, name.rstrip("_")) if namespace in ("aten", "prims") else (f"{namespace}::{name}",):
        if key in _RULES:
            return _RULES[key]
    return _RULES["pointwise"] if _is_pointwise(operation, name) else None


def _is_pointwise(operation: Any, name: str) -> bool:
    """An in-place variant is what its functional twin is, also where torch has tagged only that."""
    if torch.Tag.pointwise in operation.tags:
        return True
    twin = getattr(getattr(torch.ops.aten, name.rstrip("_"), None), operation._overloadname, None)
    return name.endswith("_") and twin is not None and torch.Tag.pointwise in twin.tags


def has_rule(name: str) -> Rule | None:
    """Return the rule that was registered under ``name``, or None."""
    return _RULES.get(name)


def qualified(name: str) -> str:
    """Return ``name`` with its namespace: what has none is one of torch's own, ``aten``."""
    return name if "::" in name else f"aten::{name}"


def source(function: Any) -> str:
    """Return ``file.py:12``, where a rule is written."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return f"{os.path.basename(code.co_filename)}:{code.co_firstlineno}" if code else repr(function)


@dataclass(frozen=True, slots=True)
class KnownRule:
    """One line of the rule table; ``known_by`` is "name", "function" (judged as a whole) or "tag" (torch's)."""

    operation: str
    family: str
    sentence: str
    known_by: str


def known_rules() -> Iterator[KnownRule]:
    """Yield every known rule by the name of its operation, those that torch tags as pointwise included."""
    found = [_known(name, function, "name") for name, function in _RULES.items() if name != "pointwise"]
    found += [_known(f.__name__, function, "function") for f, (function, _) in _FUNCTION_RULES.items()]
    found += [_known(name, _RULES["pointwise"], "tag") for name in _tagged()]
    yield from sorted(found, key=lambda known: (known.operation, known.known_by))


def _known(name: str, function: Rule, known_by: str) -> KnownRule:
    family = (function.__module__ or "").removeprefix("structprune.rules.")  # none in code that was exec'd
    return KnownRule(name, family, (function.__doc__ or "").strip().split("\n")[0], known_by)


def _tagged() -> set[str]:
    """Return the ATen operations that are judged by torch's tag alone."""
    names = {schema.name.partition("::") for schema in torch._C._jit_get_all_schemas()}
    own = {name.rstrip("_") for namespace, _, name in names if namespace == "aten"}
    packets = ((name, getattr(torch.ops.aten, name, None)) for name in own - set(_RULES))
    return {
        name
        for name, packet in packets
        if packet is not None
        and any(torch.Tag.pointwise in getattr(packet, o).tags for o in packet.overloads())
    }
