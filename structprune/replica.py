"""A copy of a model that shares nothing with it and holds other tensors: what `apply_plan` returns.

`copy.deepcopy` does the work, with its memo filled beforehand: every place that holds a tensor, tied ones
included, gets the one that stands for it, and a tensor that is to be cut is never copied whole. Two things
that deepcopy leaves undone are done here: tensors that hooks compute (deepcopy refuses them) are let through,
and functions that close over a part of the model, which deepcopy shares, are made to close over its copy.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm

from structprune.errors import PlanError
from structprune.tensors import hook_target

__all__ = ["rebind_functions", "recompute", "replica"]


def replica(model: nn.Module, tensors: Mapping[int, torch.Tensor]) -> nn.Module:
    """A new model of the same class; `tensors` maps id(old tensor) -> the tensor that takes its place.

    A tensor that is not in the mapping is copied. What hooks compute still shares memory with the old model
    until `recompute` is called. Raises PlanError if a part of the model cannot be copied.
    """
    memo: dict[int, Any] = dict(tensors)
    for module in model.modules():
        for hook in module._forward_pre_hooks.values():
            name = hook_target(hook)
            if name is not None and name in vars(module):
                memo[id(vars(module)[name])] = vars(module)[name].detach()
    try:
        copied: nn.Module = copy.deepcopy(model, memo)
    except Exception as error:  # a module's own __deepcopy__ may raise anything
        raise PlanError(
            f"the model cannot be copied ({type(error).__name__}: {error}); remove what cannot be copied "
            "from its attributes, or apply the plan with inplace=True"
        ) from error
    for module in copied.modules():
        rebind_functions(module, memo)
    return copied


def recompute(model: nn.Module) -> None:
    """Sets anew what torch.nn.utils hooks (weight_norm, spectral_norm, prune) compute before each forward."""
    for module in model.modules():
        for hook in module._forward_pre_hooks.values():
            name = hook_target(hook)
            if name is not None:
                with torch.no_grad():
                    setattr(module, name, _computed(hook, module))


def _computed(hook: Any, module: nn.Module) -> Any:
    if isinstance(hook, BasePruningMethod):
        return hook.apply_mask(module)  # type: ignore[no-untyped-call]
    if isinstance(hook, SpectralNorm):  # one more iteration would change its state
        return hook.compute_weight(module, do_power_iteration=False)
    return hook.compute_weight(module)


def rebind_functions(module: nn.Module, memo: Mapping[int, Any]) -> None:
    """Let the module's functions and hooks speak of the copies in ``memo`` where their closures hold what
    was copied.
    """
    for name, value in vars(module).items():
        if isinstance(value, types.FunctionType):
            vars(module)[name] = _rebound(value, memo, set())
        elif isinstance(value, dict) and value and name.endswith("_hooks"):
            for key, hook in value.items():
                if isinstance(hook, types.FunctionType):
                    value[key] = _rebound(hook, memo, set())


def _rebound(function: types.FunctionType, memo: Mapping[int, Any], seen: set[int]) -> types.FunctionType:
    """The function itself, or one like it whose closure and defaults hold the copies of what they held."""

    def copied(value: Any) -> Any:
        if isinstance(value, types.MethodType):
            owner = copied(value.__self__)
            return value if owner is value.__self__ else types.MethodType(value.__func__, owner)
        if isinstance(value, types.FunctionType):
            return value if id(value) in seen else _rebound(value, memo, seen)
        return memo.get(id(value), value)

    seen.add(id(function))
    cells, defaults = function.__closure__ or (), function.__defaults__ or ()
    new_cells = tuple(_cell_with(cell, copied) for cell in cells)
    new_defaults = tuple(copied(value) for value in defaults)
    if all(new is old for new, old in zip((*new_cells, *new_defaults), (*cells, *defaults), strict=True)):
        return function
    made = types.FunctionType(
        function.__code__, function.__globals__, function.__name__, new_defaults, new_cells
    )
    made.__kwdefaults__, made.__qualname__ = function.__kwdefaults__, function.__qualname__
    made.__dict__.update(function.__dict__)
    return made


def _cell_with(cell: types.CellType, copied: Callable[[Any], Any]) -> types.CellType:
    try:
        old = cell.cell_contents
    except ValueError:  # a name that is not bound yet
        return cell
    new = copied(old)
    return cell if new is old else types.CellType(new)
