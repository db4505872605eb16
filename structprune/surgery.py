"""Applying a plan to a model: all is checked first, all new tensors are made next, then they are put in.

By default the result is a new module and the given one keeps every bit. The copy is made with the cut tensors
already in it, so it costs the memory of the smaller network, not that of a second original.

What the new tensors keep: dtype, device, memory layout, requires_grad, class, ties and attributes. What they
do not keep: gradients, and hooks on the tensor itself, whose shapes no longer fit.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from structprune import edits, layers
from structprune.arguments import typed
from structprune.errors import PlanError
from structprune.gathering import take
from structprune.plan import REMAINING, Kept, PruningPlan
from structprune.replica import recompute, replica
from structprune.tensors import Slot, fingerprint, like, named_tensors, slots

__all__ = ["apply_plan", "check_plan", "cut_tensor", "replace_tensors"]

_Truthful = Mapping[str, frozenset[str]]
_OTHER_MODEL = "the plan was made for another model: trace and select for this one, or use the one it is for"


@typed
def apply_plan(model: nn.Module, plan: PruningPlan, inplace: bool = False) -> nn.Module:
    """The pruned network: a new module of the same class, or the given one with `inplace=True`.

    In place, the cut parameters are new Parameter objects. An optimizer holds the old ones until
    `structprune.train.cut_optimizer` puts these in their place; or make a new one. Raises PlanError, with nothing
    changed, where the plan does not fit the model.
    """
    tensors = named_tensors(model)
    check_plan(model, plan, tensors)
    truthful = _truthful(model, {id(tensors[name]) for name in plan.tensors})
    if inplace:
        _apply_inside(model, plan, {name: tensors[name] for name in plan.tensors}, truthful)
        _remember(model, plan)
        return model
    pruned = replica(model, _new_tensors(tensors, plan))
    _require_separate(model, pruned, plan)
    _settle(pruned, plan, truthful, [])
    _remember(pruned, plan)
    return pruned


def _remember(pruned: nn.Module, plan: PruningPlan) -> None:
    """Keep with the network which share of the original it is, for the budgets of later steps."""
    if plan.remaining:
        vars(pruned)[REMAINING] = dict(plan.remaining)


def check_plan(
    model: nn.Module, plan: PruningPlan, tensors: Mapping[str, torch.Tensor] | None = None
) -> None:
    """Passes if the plan was made for this model; raises PlanError that names what differs.

    `tensors` spares a walk where `named_tensors(model)` is at hand.
    """
    if not isinstance(plan, PruningPlan):
        raise PlanError(f"plan is a {type(plan).__name__}; expected a PruningPlan, such as result.plan")
    tensors = named_tensors(model) if tensors is None else tensors
    for name, shape in plan.shapes.items():
        if name not in tensors:
            raise PlanError(f"tensor {name!r} of the plan is not in the model; {_OTHER_MODEL}")
        if nn.parameter.is_lazy(tensors[name]):
            raise PlanError(f"tensor {name!r} has no shape yet: run the model once, then trace and prune it")
        if tuple(tensors[name].shape) != shape:
            found = list(tensors[name].shape)
            raise PlanError(
                f"tensor {name!r} has shape {found}, the plan expects {list(shape)}; {_OTHER_MODEL}"
            )
    for edit in plan.attributes:
        edits.check(model, edit)
    if (own := fingerprint(model)) != plan.fingerprint:
        raise PlanError(
            f"the model's fingerprint (names and shapes of parameters and buffers) is {own[:12]}..., "
            f"that of the plan is {plan.fingerprint[:12]}...; {_OTHER_MODEL}"
        )


def replace_tensors(
    model: nn.Module, new: Mapping[int, torch.Tensor], undo: edits.Undo | None = None
) -> None:
    """Puts `new[id(old)]` wherever the model holds `old`: in tied places, lists and dicts too."""
    changes: edits.Undo = [] if undo is None else undo
    for slot in list(slots(model)):
        if id(slot.tensor) in new:
            _put(slot, new[id(slot.tensor)], changes)


def _put(slot: Slot, tensor: torch.Tensor, undo: edits.Undo) -> None:
    if slot.kind == "attribute":
        edits.write(slot.module, slot.path, tensor, undo)
        return
    registries: Any = (slot.module._parameters, slot.module._buffers)
    registry, name = registries[slot.kind != "parameter"], str(slot.path[0])
    undo.append(lambda: registry.__setitem__(name, slot.tensor))
    registry[name] = tensor


def _apply_inside(
    model: nn.Module, plan: PruningPlan, cut: Mapping[str, torch.Tensor], truthful: _Truthful
) -> None:
    new = _new_tensors(cut, plan)
    undo: edits.Undo = [lambda: recompute(model)]  # undone in reverse: once the old tensors are back
    try:
        replace_tensors(model, new, undo)
        _settle(model, plan, truthful, undo)
    except BaseException:
        for step in reversed(undo):
            step()
        raise


@torch.no_grad()
def cut_tensor(plan: PruningPlan, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """What the plan leaves of the tensor of this name, in fresh memory, laid out like the old: channels last stays
    so. A tensor that the plan leaves whole is returned as it is.

    It needs no model, so the tensors of a file can be cut one after the other. Raises PlanError where the plan
    expects another shape.
    """
    shape = plan.shapes.get(name, tuple(tensor.shape))
    if tuple(tensor.shape) != shape:
        raise PlanError(f"tensor {name!r} has shape {list(tensor.shape)}, the plan expects {list(shape)}")
    index = plan.index(name)
    return take(tensor.detach(), index) if index else tensor


def _new_tensors(tensors: Mapping[str, torch.Tensor], plan: PruningPlan) -> dict[int, torch.Tensor]:
    """id(old tensor) -> its cut copy, or its whole copy where the plan leaves it whole."""
    made: dict[object, torch.Tensor] = {}
    new = {}
    for name, old in tensors.items():
        key = _memory(old, plan.tensors.get(name, {}))
        if key not in made:
            cut = cut_tensor(plan, name, old)
            made[key] = old.detach().clone() if cut is old else cut
        new[id(old)] = like(old, made[key].detach())
    return new


def _memory(tensor: torch.Tensor, dims: Mapping[int, Kept]) -> object:
    """Equal for tensors that are tied by their memory (`a.data = b.data`) and cut alike: they stay tied."""
    if type(tensor) not in (torch.Tensor, nn.Parameter) or tensor.layout != torch.strided or tensor.is_meta:
        return id(tensor)
    if not tensor.numel():
        return id(tensor)
    place = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
    return (*place, tuple(dims.items()))


def _truthful(model: nn.Module, cut: set[int]) -> _Truthful:
    """Layer name -> its attributes that agree with its tensors, for the layers that hold a cut tensor."""
    names = {}
    for name, module in model.named_modules():
        held = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if parametrize.is_parametrized(module):
            chains: Any = module.parametrizations
            held += [*chains.parameters(), *chains.buffers()]
        if any(id(tensor) in cut for tensor in held):
            names[name] = layers.truthful(module)
    return names


def _settle(model: nn.Module, plan: PruningPlan, truthful: _Truthful, undo: edits.Undo) -> None:
    """Makes the model's integers, and what its hooks compute, agree with the tensors that are now in it."""
    try:
        for edit in plan.attributes:
            edits.write(model.get_submodule(edit.module), edit.path, edit.new, undo)
        for edit in plan.attributes:
            edits.keep_in_copies(model.get_submodule(edit.module), edit, undo)
        recompute(model)
        for name, attributes in truthful.items():
            module = model.get_submodule(name)
            for attribute in attributes:
                undo.append(functools.partial(setattr, module, attribute, getattr(module, attribute)))
            layers.refresh(module, attributes)
            if isinstance(module, nn.RNNBase):
                module.flatten_parameters()
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise PlanError(f"the plan's cuts and edits do not fit together in a layer: {error}") from error
    for edit in plan.attributes:
        value = edits.read(model.get_submodule(edit.module), edit.path)
        if value != edit.new:
            raise PlanError(f"{edit}: the layer's tensors, or an edit of the same place, make it {value!r}")


def _require_separate(model: nn.Module, pruned: nn.Module, plan: PruningPlan) -> None:
    """Raises PlanError where an edit of the copy would change the original as well."""
    for edit in plan.attributes:
        old, new = (edits.holders(each.get_submodule(edit.module), edit.path) for each in (model, pruned))
        if any(ours is theirs for ours, theirs in zip(old, new, strict=True)):
            raise PlanError(f"{edit}: the copy shares this object with the original; apply with inplace=True")
