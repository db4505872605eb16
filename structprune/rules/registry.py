"""The rule table: which function says how axes flow through an operation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from structprune.rules.context import Call

__all__ = ["Rule", "function_rule", "known_rules", "lookup", "lookup_function", "rule"]

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


def known_rules() -> Iterator[tuple[str, str, str]]:
    """Yield (operation, family, first sentence of the rule's docstring) for every known rule, sorted."""
    for name, function in sorted(_RULES.items()):
        yield name, function.__module__.rsplit(".", 1)[-1], (function.__doc__ or "").strip().split("\n")[0]
