"""Every tensor a model holds, under one name each: what a trace, a plan and a fingerprint all speak of.

A model keeps tensors in three places: parameters, buffers, and plain attributes (also inside lists, dicts and
objects). All three are found here, once, as *slots*: the places where a tensor lies. A tied tensor lies in
several slots and goes by the name of the first.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import json
import types
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from structprune.errors import InputError, PlanError

__all__ = [
    "CONSTANTS",
    "Slot",
    "aliases",
    "built",
    "fingerprint",
    "is_plain",
    "like",
    "named_tensors",
    "require_module",
    "shapes_fingerprint",
    "slots",
    "stored_slots",
    "weights_digest",
    "widened",
]

_OWN = frozenset(vars(nn.Module()))  # what every module has: hooks, flags, and the three registries
_NUMBERS = frozenset((bool, int, float, str, type(None)))  # most of what modules hold
_ATOMS = (
    *(str, bytes, int, float, complex, bool, type(None), type, enum.Enum, set, frozenset, range),
    *(types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType, functools.partial),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format, torch.fx.Graph, weakref.ref),
)

CONSTANTS = "structprune_constants"
"""The attribute of a module that names those of its buffers that were plain attributes before it was rewritten: they
are state, though no state_dict has them."""


@dataclass(frozen=True)
class Slot:
    """A place that holds a tensor; `path` leads from `module` to it: an attribute, then keys or indices."""

    name: str
    module: nn.Module
    kind: str  # "parameter", "buffer" (persistent), "cache" (a buffer that is not) or "attribute"
    path: tuple[str | int, ...]
    tensor: torch.Tensor


def named_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Name -> tensor for every tensor of the model, each once, under its first name.

    Parameters come first, named as in `named_parameters()`, then buffers (persistent or not), then tensors in
    plain attributes ("block.table", "block.cache.0"). Left out is what a hook computes before each forward.

    >>> sorted(named_tensors(nn.Linear(2, 3)))
    ['bias', 'weight']
    """
    first: dict[int, Slot] = {}
    for slot in slots(model):
        first.setdefault(id(slot.tensor), slot)
    return {slot.name: slot.tensor for slot in first.values()}


def aliases(model: nn.Module) -> dict[str, str]:
    """Every name of every tensor -> the name that `named_tensors` gives it; a shared module has several."""
    first: dict[int, str] = {}
    for slot in slots(model):
        first.setdefault(id(slot.tensor), slot.name)
    known = {slot.name: first[id(slot.tensor)] for slot in slots(model)}
    for listed in (
        model.named_parameters(remove_duplicate=False),
        model.named_buffers(remove_duplicate=False),
    ):
        known.update({name: first[id(tensor)] for name, tensor in listed})
    return known


def fingerprint(model: nn.Module) -> str:
    """The sha256 (hex) over the sorted names and shapes of the parameters and persistent buffers.

    Values, dtypes and devices have no say in it, nor have caches, whose shapes may change with every forward.
    Raises PlanError where a lazy module has no shapes yet.
    """
    first: dict[int, Slot] = {}
    for slot in slots(model):
        if slot.kind in ("parameter", "buffer"):
            first.setdefault(id(slot.tensor), slot)
    for slot in first.values():
        if nn.parameter.is_lazy(slot.tensor):
            raise PlanError(
                f"tensor {slot.name!r} has no shape yet: run the model once, then trace and prune it"
            )
    return shapes_fingerprint({slot.name: slot.tensor.shape for slot in first.values()})


def shapes_fingerprint(shapes: Mapping[str, Sequence[int]]) -> str:
    """The sha256 (hex) over sorted names and shapes: the `fingerprint` of the model whose state has them."""
    named = sorted((name, list(shape)) for name, shape in shapes.items())
    return hashlib.sha256(json.dumps(named).encode()).hexdigest()


def weights_digest(model: nn.Module) -> str:
    """The sha256 (hex) of the names and bytes of all parameters and persistent buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if not isinstance(tensor, torch.Tensor):  # a module's extra state
            continue
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def require_module(model: object) -> None:
    """Raise InputError for what is no module."""
    if not isinstance(model, nn.Module):
        raise InputError(f"model is a {type(model).__name__}; expected a torch.nn.Module")


def built(build_model: Callable[[], nn.Module]) -> nn.Module:
    """What a function makes that builds a model.

    Raises InputError for a module itself, for what cannot be called, and where no module comes of it.
    """
    if isinstance(build_model, nn.Module) or not callable(build_model):
        itself = " itself" if isinstance(build_model, nn.Module) else ""
        raise InputError(
            f"build_model is a {type(build_model).__name__}{itself}: give a function that builds the original, as "
            "lambda: model, or its class"
        )
    model = build_model()
    require_module(model)
    return model


def slots(model: nn.Module) -> Iterator[Slot]:
    """Every place of the model that holds a tensor: parameters first, then buffers, then plain attributes."""
    require_module(model)
    modules = list(model.named_modules())
    for prefix, module in modules:
        for name, parameter in module._parameters.items():
            if parameter is not None:
                yield Slot(_join(prefix, name), module, "parameter", (name,), parameter)
    for prefix, module in modules:
        for name, buffer in module._buffers.items():
            if buffer is not None:
                kind = "cache" if name in module._non_persistent_buffers_set else "buffer"
                if name in vars(module).get(CONSTANTS, ()):
                    kind = "attribute"
                yield Slot(_join(prefix, name), module, kind, (name,), buffer)
    seen = {id(module) for _, module in modules}
    for prefix, module in modules:
        computed = {hook_target(hook) for hook in module._forward_pre_hooks.values()}
        for name, value in list(vars(module).items()):
            if type(value) not in _NUMBERS and name not in _OWN and name not in computed:
                for path, tensor in _inside(value, (name,), seen):
                    yield Slot(_join(prefix, *path), module, "attribute", path, tensor)


def stored_slots(model: nn.Module) -> dict[str, Slot]:
    """First name -> slot of each tensor that is state: all but the buffers that are not persistent."""
    first: dict[int, Slot] = {}
    for slot in slots(model):
        first.setdefault(id(slot.tensor), slot)
    return {slot.name: slot for slot in first.values() if slot.kind != "cache"}


def like(old: torch.Tensor, data: torch.Tensor) -> torch.Tensor:
    """The data as a tensor of the old one's class, with its flags and its attributes (but tensors)."""
    if type(data) is not type(old):
        data = torch.Tensor._make_subclass(type(old), data, old.requires_grad)
    elif old.is_leaf:
        data.requires_grad_(old.requires_grad)
    kept = {name: value for name, value in vars(old).items() if not isinstance(value, torch.Tensor)}
    vars(data).update(kept)
    return data


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether it is a tensor of torch's own kind: not one that computes in its own way, sharded or quantised."""
    return type(tensor).__torch_dispatch__ is torch.Tensor.__torch_dispatch__


def widened(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in float32 at least, in which sums and squares of half precision are safe."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def hook_target(hook: object) -> str | None:
    """The attribute that a hook of torch.nn.utils (weight_norm, spectral_norm, prune) computes anew."""
    if isinstance(hook, (WeightNorm, SpectralNorm)):
        return hook.name
    return hook._tensor_name if isinstance(hook, BasePruningMethod) else None


def _inside(
    value: Any, path: tuple[str | int, ...], seen: set[int]
) -> Iterator[tuple[tuple[str | int, ...], torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield path, value
        return
    if isinstance(value, _ATOMS) or id(value) in seen:
        return
    seen.add(id(value))
    for key, item in _items(value):
        if type(item) not in _NUMBERS:
            yield from _inside(item, (*path, key), seen)


def _items(value: Any) -> list[tuple[str | int, Any]]:
    if isinstance(value, Mapping):
        return [(key, item) for key, item in list(value.items()) if isinstance(key, (str, int))]
    if isinstance(value, (list, tuple)):
        return list(enumerate(value))
    if isinstance(value, nn.Module):  # one that the model does not register: its registries hold its tensors
        registered = {**value._parameters, **value._buffers, **value._modules}
        own = {name: item for name, item in vars(value).items() if name not in _OWN}
        return [(name, item) for name, item in {**registered, **own}.items() if item is not None]
    return list(getattr(value, "__dict__", {}).items())


def _join(*steps: str | int) -> str:
    return ".".join(str(step) for step in steps if step != "")
