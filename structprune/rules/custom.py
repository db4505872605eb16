"""Rules for operations of the user's own: the decorator that is public, and what it refuses."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from structprune.errors import InputError
from structprune.rules.call import Call
from structprune.rules.context import iter_tensors
from structprune.rules.registry import Rule, has_rule, qualified, source
from structprune.rules.registry import rule as register_rule

__all__ = ["rule"]


def rule(*operations: str) -> Callable[[Rule], Rule]:
    """Register the decorated function as the rule of ``operations``: it says how axes flow through them.

    An operation is named as torch does, ``"mylib::my_op"``; all its overloads and its in-place variant share the rule.
    The function gets one `Call`: arguments by name (``c["x"]``), the result (``c.out``), the dimensions of a tensor
    (``c.dims``), and verbs that say what the operation does with them. It must give every result its dimensions with
    ``c.set``. Without a rule, whatever the operation touches is left whole.

    Raises InputError for an operation that torch does not know (import what defines it first), or that has a rule.
    """
    if not operations:
        raise InputError('rule() needs the name of an operation: @rule("mylib::my_op")')
    for name in operations:
        _check(name)

    def register(function: Rule) -> Rule:
        register_rule(*operations)(_checked(function))
        return function

    return register


def _check(name: object) -> None:
    if not isinstance(name, str):
        raise InputError(f'rule({name!r}): name the operation, as in @rule("mylib::my_op")')
    known = has_rule(name)
    if known is not None:
        raise InputError(
            f"operation {name!r} has a rule already, at {source(known)}; an operation has one rule"
        )
    namespace, _, operation = qualified(name).partition("::")
    if not hasattr(getattr(torch.ops, namespace), operation):
        raise InputError(
            f"torch knows no operation {qualified(name)!r}: define it (torch.library.custom_op) or import the module "
            "that does before its rule is registered"
        )


def _checked(function: Rule) -> Rule:
    """A rule that forgets a result would let it pass for one that never changes."""

    @functools.wraps(function)
    def checked(c: Call) -> None:
        function(c)
        for number, tensor in enumerate(iter_tensors([c.out])):
            if tensor not in c.context.dims:
                raise AssertionError(
                    f"it gives result {number}, of shape {list(tensor.shape)}, no dimensions"
                )

    return checked
