"""Which of a model's tensors scale channels: one number for each, by which what a layer made is multiplied.

That is what the weight of a normalisation layer does, whatever its class is called, and what a layer scale does. It is
told from the operations: a norm's own weight, or a product with activations, where what is multiplied may be a view of
the tensor, a copy in another dtype, or its product with other numbers that belong to the model alone (the variance of a
frozen batch norm). The weight of `1 + weight` is none: the channel is not gone where it is zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from structprune.rules.context import Context, Dims

__all__ = ["SCALE", "factors_of", "follow_scales", "scales"]

SCALE = "scale"  #: the role of such a tensor's dimension

_SAME_VALUES = frozenset(
    (
        *("alias", "clone", "contiguous", "detach", "lift_fresh", "to", "_to_copy"),  # all as it is
        *("expand", "repeat", "permute", "t", "transpose", "squeeze", "unsqueeze"),
        *("reshape", "view", "_reshape_alias", "_unsafe_view"),
    )
)
_PRODUCTS = {"mul": slice(0, 2), "addcmul": slice(1, 3)}  # and which of their tensors they multiply


def factors_of(tensors: Mapping[str, torch.Tensor], named: Mapping[str, Dims]) -> dict[torch.Tensor, Dims]:
    """The tensors of a model that hold one number for each position of one dimension, with that dimension."""
    found: dict[torch.Tensor, Dims] = {}
    for name, tensor in tensors.items():
        wide = tuple(dim for dim in named[name] if dim.size > 1)
        if len(wide) == 1 and tensor.is_floating_point():
            found[tensor] = wide
    return found


def scales(context: Context, by: torch.Tensor | None, what: torch.Tensor) -> None:
    """Note that activations are multiplied by a tensor, position by position."""
    if by is not None and _made(context, what):
        for dim in context.factors.get(by, ()):
            context.roles.setdefault(id(dim), SCALE)


def follow_scales(context: Context, name: str, given: Sequence[torch.Tensor], out: object) -> None:
    """Keep in mind which tensors are products of the model's scales, and note where these meet activations."""
    known = [context.factors.get(tensor, ()) for tensor in given]
    if not any(known) or not isinstance(out, torch.Tensor):
        return
    if name in _SAME_VALUES or (name == "div" and known[0] and not any(_made(context, t) for t in given)):
        context.factors[out] = known[0]
    elif name in _PRODUCTS and len(given) > 1:
        left, right = given[_PRODUCTS[name]]
        scales(context, left, right)
        scales(context, right, left)
    if name == "mul" and not any(_made(context, tensor) for tensor in given):
        context.factors[out] = tuple({id(dim): dim for dims in known for dim in dims}.values())


def _made(context: Context, tensor: torch.Tensor) -> bool:
    """Whether a layer made the values of a tensor."""
    return bool(context.live.get(tensor, 0) | context.derived.get(tensor, 0))
