"""A structural clone: the same modules, containers and hooks over other tensors, so that a run leaves no trace.

A forward may store what it computes: on modules, in dicts, in config objects. On a clone it stores it there. The
tensors of the clone are given by the caller (on the meta device, say), the integers of its attributes can be made to
remember where they came from, and the model itself is never touched.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from structprune.nodes import Attribute
from structprune.provenance import Ledger, TracedInt
from structprune.replica import rebind_functions
from structprune.tensors import hook_target, slots

__all__ = ["structural_clone"]

_PLAIN = (
    str,
    float,
    bool,
    type(None),
    torch.dtype,
    torch.device,
    type,
    types.FunctionType,
    types.BuiltinFunctionType,
    torch.fx.Graph,  # a graph module's own description, which no forward changes
)
_REGISTRIES = frozenset(("_parameters", "_buffers", "_modules"))
_OWN = frozenset(vars(nn.Module()))


def structural_clone(
    model: nn.Module, replace: Callable[[torch.Tensor, str], torch.Tensor], ledger: Ledger | None = None
) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """Return a clone of ``model`` and its tensors by name: ``replace(tensor, kind)`` stands where ``tensor`` stood.

    With a ``ledger``, integer attributes (in tuples, lists, dicts and plain objects too) become `TracedInt`.
    """
    memo: dict[int, Any] = {}
    named: dict[str, torch.Tensor] = {}
    for slot in slots(model):
        if id(slot.tensor) not in memo:
            memo[id(slot.tensor)] = named[slot.name] = replace(slot.tensor, slot.kind)
    for module in model.modules():
        for hook in module._forward_pre_hooks.values():
            computed = vars(module).get(hook_target(hook) or "")
            if isinstance(computed, torch.Tensor):
                memo[id(computed)] = replace(computed, "attribute")
    names = {id(module): name for name, module in model.named_modules()}
    return _Cloner(memo, names, ledger).module(model), named


class _Cloner:
    def __init__(self, memo: dict[int, Any], names: dict[int, str], ledger: Ledger | None) -> None:
        self.memo = memo
        self.names = names
        self.ledger = ledger
        self.tagged: set[int] = set()

    def module(self, module: nn.Module) -> nn.Module:
        for known, item in self._registered(module).items():
            self.memo[known] = item
        for child in module.modules():
            self._fill(child)
        for child in module.modules():
            rebind_functions(self.memo[id(child)], self.memo)
        clone = self.memo[id(module)]
        assert isinstance(clone, nn.Module)
        return clone

    def _registered(self, module: nn.Module) -> dict[int, nn.Module]:
        return {id(child): object.__new__(type(child)) for child in module.modules()}

    def _fill(self, module: nn.Module) -> None:
        new = vars(self.memo[id(module)])
        prefix = self.names.get(id(module), "")
        for name, value in vars(module).items():
            if name in _REGISTRIES:
                items = ((key, None if item is None else self.memo[id(item)]) for key, item in value.items())
                new[name] = type(value)(items)
            elif name in _OWN:
                new[name] = self._own(value)
            else:
                new[name] = self._value(value, prefix, (name,))

    def _own(self, value: Any) -> Any:
        if isinstance(value, _PLAIN):
            return value
        if isinstance(value, dict | set) and not value:
            return type(value)()  # no hooks, as mostly
        return self._copied(value)

    def _value(self, value: Any, module: str, path: tuple[str | int, ...]) -> Any:
        if type(value) is int:
            return (
                value
                if self.ledger is None
                else TracedInt(value, Attribute(module, path, value), self.ledger)
            )
        if isinstance(value, _PLAIN):
            return value
        if id(value) in self.memo:
            return self.memo[id(value)]
        if type(value) in (tuple, list):
            return type(value)(self._value(item, module, (*path, i)) for i, item in enumerate(value))
        copied = self._copied(value)
        if self.ledger is not None and copied is not value:
            self._tag(copied, module, path)
        return copied

    def _copied(self, value: Any) -> Any:
        try:
            return copy.deepcopy(value, self.memo)
        except (TypeError, RuntimeError, NotImplementedError, AttributeError, RecursionError):
            return value  # locks, generators, handles: what cannot be copied is shared, and its integers stay untraced

    def _tag(self, value: Any, module: str, path: tuple[str | int, ...]) -> None:
        """Make the integers inside a freshly copied dict or plain object remember where they stand."""
        if id(value) in self.tagged or isinstance(value, nn.Module | torch.Tensor | types.ModuleType):
            return
        self.tagged.add(id(value))
        items = value if type(value) is dict else getattr(value, "__dict__", None)
        if not isinstance(items, dict):
            return
        for key, item in list(items.items()):
            if not isinstance(key, str | int):
                continue
            if type(item) is int or (type(item) in (tuple, list) and any(type(one) is int for one in item)):
                items[key] = self._value(item, module, (*path, key))
            else:
                self._tag(item, module, (*path, key))
