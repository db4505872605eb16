"""Which tensors are masked: found by layer kind, chosen by name, glob, module or kind."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized

from structprune.errors import InputError

__all__ = ["Pattern", "Patterns", "Slot", "Target", "all_targets", "as_patterns", "choose"]

Pattern: TypeAlias = str | nn.Module | type[nn.Module]
Patterns: TypeAlias = Pattern | Sequence[Pattern]

# The layers that contract their input with a weight of two or more dimensions, and what they call it.
CONTRACTIONS: tuple[tuple[type[nn.Module], tuple[str, ...]], ...] = (
    (nn.Linear, ("weight",)),
    (_ConvNd, ("weight",)),
    (nn.Bilinear, ("weight",)),
    (nn.MultiheadAttention, ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")),
    (nn.RNNBase, ("weight_*",)),
    (nn.RNNCellBase, ("weight_ih", "weight_hh")),
)


@dataclass(frozen=True)
class Slot:
    """One place that holds a tensor: a module's attribute."""

    path: str
    module: nn.Module
    attribute: str

    @property
    def name(self) -> str:
        return f"{self.path}.{self.attribute}" if self.path else self.attribute

    def parametrizations(self) -> tuple[nn.Module, ...]:
        held = _parametrized(self.module)
        return tuple(held[self.attribute].children()) if self.attribute in held else ()

    def value(self) -> Tensor:
        """The tensor that the layer computes with, detached; the mask applied if there is one."""
        with torch.no_grad():
            value: Tensor = getattr(self.module, self.attribute)
        return value.detach()

    def contracts(self) -> bool:
        """Whether this is the weight of a layer that contracts its input."""
        return any(
            isinstance(self.module, kind) and any(fnmatchcase(self.attribute, name) for name in names)
            for kind, names in CONTRACTIONS
        )


@dataclass(frozen=True)
class Target:
    """One parameter and every slot that holds it (several where weights are tied)."""

    parameter: Tensor
    slots: tuple[Slot, ...]

    @property
    def name(self) -> str:
        return self.slots[0].name

    def by_default(self) -> bool:
        return (is_lazy(self.parameter) or self.parameter.ndim >= 2) and any(
            slot.contracts() for slot in self.slots
        )


def all_targets(model: nn.Module) -> list[Target]:
    """Every parameter of the model in order, tied ones once, also those behind a parametrization."""
    slots: dict[int, list[Slot]] = {}
    parameters: dict[int, Tensor] = {}
    for slot, parameter in _slots(model):
        slots.setdefault(id(parameter), []).append(slot)
        parameters[id(parameter)] = parameter
    return [Target(parameters[key], tuple(held)) for key, held in slots.items()]


def choose(model: nn.Module, only: Patterns, keep: Patterns) -> list[Target]:
    """The targets that `only` names (all contraction weights if it is empty) less those that `keep` names.

    A pattern is a layer's or tensor's name, a glob over names, a module, or a kind of module; naming a
    container names what is in it. A tensor's full name takes any floating parameter. Raises `InputError` for
    a pattern that names nothing, for a weight that a hook computes, and where nothing is left.
    """
    wanted, spared, targets = as_patterns(only), as_patterns(keep), all_targets(model)
    _refuse_hooked(model, wanted, spared)
    for pattern in spared:
        if not any(_names(pattern, slot) for target in targets for slot in target.slots):
            raise InputError(f"keep={_spell(pattern)} names no parameter of the model")
    chosen = [target for target in targets if target.by_default()]
    if wanted:
        chosen = [t for t in targets if any(_takes(pattern, t) for pattern in wanted)]
        for pattern in wanted:
            if not any(_takes(pattern, target) for target in targets):
                raise InputError(
                    f"only={_spell(pattern)} names no weight of a linear, convolution, attention or "
                    "recurrent layer; any other parameter is taken by its full name"
                )
    chosen = [t for t in chosen if not any(_names(pattern, slot) for pattern in spared for slot in t.slots)]
    if not chosen:
        raise InputError(
            "nothing to sparsify: the model has no weights of two or more dimensions that are not kept"
        )
    for target in chosen:
        _check_values(target)
    return chosen


def as_patterns(patterns: Patterns) -> tuple[Pattern, ...]:
    if isinstance(patterns, (str, nn.Module, type)):
        return (patterns,)
    for pattern in patterns:
        if not (
            isinstance(pattern, (str, nn.Module))
            or (isinstance(pattern, type) and issubclass(pattern, nn.Module))
        ):
            raise InputError(f"{pattern!r} is no name, module or kind of module (in only= or keep=)")
    return tuple(patterns)


def _slots(model: nn.Module) -> Iterator[tuple[Slot, Tensor]]:
    for path, module in model.named_modules():
        if isinstance(module, ParametrizationList):
            continue
        for attribute, parameter in module._parameters.items():
            if parameter is not None:
                yield Slot(path, module, attribute), parameter
        for attribute, held in _parametrized(module).items():
            original = next(held.parameters(), None)
            if original is not None:
                yield Slot(path, module, attribute), original


def _parametrized(module: nn.Module) -> nn.ModuleDict:
    """What torch's parametrize holds for the module, by attribute; empty where it holds nothing."""
    held = getattr(module, "parametrizations", None)
    return held if isinstance(held, nn.ModuleDict) and is_parametrized(module) else nn.ModuleDict()


def _takes(pattern: Pattern, target: Target) -> bool:
    if any(pattern == slot.name for slot in target.slots):
        return True
    return target.by_default() and any(_names(pattern, slot) for slot in target.slots)


def _names(pattern: Pattern, slot: Slot) -> bool:
    if isinstance(pattern, nn.Module):
        return any(slot.module is module for module in pattern.modules())
    if isinstance(pattern, type):
        return isinstance(slot.module, pattern)
    parts = slot.name.split(".")
    return any(fnmatchcase(".".join(parts[:length]), pattern) for length in range(1, len(parts) + 1))


def _refuse_hooked(model: nn.Module, wanted: Iterable[Pattern], spared: Iterable[Pattern]) -> None:
    for path, module in model.named_modules():
        slot = Slot(path, module, "weight")
        if not slot.contracts() or not isinstance(module.__dict__.get("weight"), Tensor):
            continue
        named = not wanted or any(_names(pattern, slot) for pattern in wanted)
        if named and not any(_names(pattern, slot) for pattern in spared):
            raise InputError(
                f"{slot.name!r} is no parameter but computed by a hook (old weight_norm, spectral_norm or "
                "torch.nn.utils.prune); remove that first, or leave the layer out with keep="
            )


def _check_values(target: Target) -> None:
    where, parameter = repr(target.name), target.parameter
    if is_lazy(parameter):
        raise InputError(f"{where} has no values yet; run the model once on an example first")
    if parameter.is_meta:
        raise InputError(f"{where} is on the meta device and has no values to rank; load the weights first")
    if not parameter.is_floating_point():
        raise InputError(f"{where} has dtype {parameter.dtype}; only real floating-point weights are masked")


def _spell(pattern: Pattern) -> str:
    return repr(pattern) if isinstance(pattern, str) else getattr(pattern, "__name__", type(pattern).__name__)
