"""The mask itself: a parametrization shared by every layer that holds the tensor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from structprune.errors import InputError
from structprune.masking.targets import Slot, Target

__all__ = ["Mask", "mask_of", "put_mask", "remove_mask"]


class Mask(nn.Module):
    """Zero where `mask` is false, the weight where it is true; both have the weight's shape.

    `where` instead of a product: a removed weight stays zero even if the tensor behind it became infinite,
    and a negative one does not leave a -0.0.
    """

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        return torch.where(self.mask, weight, 0)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return torch.where(self.mask, weight, 0)


def mask_of(target: Target) -> Mask | None:
    """The mask on the target, or None. Raises `InputError` where anything else parametrizes the tensor."""
    found = [mask for slot in target.slots for mask in slot.parametrizations() if isinstance(mask, Mask)]
    for slot in target.slots:
        others = [type(other).__name__ for other in slot.parametrizations() if not isinstance(other, Mask)]
        if others:
            raise InputError(
                f"{slot.name!r} is parametrized by {', '.join(others)}, which no mask goes with; bake "
                "that in first (torch.nn.utils.parametrize.remove_parametrizations), or name it in keep="
            )
    return found[0] if found else None


def put_mask(target: Target, kept: Tensor) -> None:
    """Sets the mask to `kept` [shape of the tensor] in every layer that holds it, and zeros the rest."""
    mask = mask_of(target)
    if mask is None:
        mask = Mask(kept)
    with torch.no_grad():
        mask.mask.copy_(kept)
        target.parameter.masked_fill_(~kept, 0)
    for slot in target.slots:
        if not slot.parametrizations():
            _register(slot, mask)


def remove_mask(slot: Slot) -> None:
    """Leaves the masked values as a plain parameter: the same `Parameter` object, exact zeros."""
    _own_class(slot.module)
    parametrize.remove_parametrizations(slot.module, slot.attribute)
    if isinstance(slot.module, nn.RNNBase) and not parametrize.is_parametrized(slot.module):
        for key, hook in list(slot.module._forward_hooks.items()):
            if hook is _forget_weights:
                del slot.module._forward_hooks[key]


def _register(slot: Slot, mask: Mask) -> None:
    module = slot.module
    _own_class(module)
    parametrize.register_parametrization(module, slot.attribute, mask)
    for held in module.get_submodule("parametrizations").modules():
        held.training = module.training
    if isinstance(module, nn.RNNBase) and _forget_weights not in module._forward_hooks.values():
        module.register_forward_hook(_forget_weights)


def _own_class(module: nn.Module) -> None:
    """Gives a parametrized module a class of its own.

    Torch keeps the masked attributes as properties of a class made for the module; a deepcopy shares that
    class, and a property added or removed for one of the two would change the other.
    """
    if parametrize.is_parametrized(module):
        made = type(module)
        members = {k: v for k, v in vars(made).items() if k not in ("__dict__", "__weakref__")}
        module.__class__ = type(made.__name__, made.__bases__, members)


def _forget_weights(rnn: nn.Module, inputs: Any, output: Any) -> None:
    """Detaches the weights that a recurrent layer remembers: masked ones are graph tensors, which deepcopy
    refuses."""
    assert isinstance(rnn, nn.RNNBase)
    rnn._flat_weights = [None if weight is None else weight.detach() for weight in rnn._flat_weights]
