"""The single weights that belong to channels, each once, whatever number of groups it is in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from structprune.train.penalties.channels import Channels

__all__ = ["Weights", "decay_", "half_square_sum", "magnitude_sum", "soft_threshold_", "weights_of"]


@dataclass(frozen=True, eq=False)
class Weights:
    """Those weights of one parameter that are penalised: where `mask` (of a shape that goes with the parameter's) is
    true; None: all.
    """

    parameter: nn.Parameter
    mask: Tensor | None

    @property
    def parameters(self) -> tuple[nn.Parameter, ...]:
        return (self.parameter,)

    def chosen(self, values: Tensor, others: Tensor | float) -> Tensor:
        """`values` where the mask is true, `others` elsewhere."""
        return values if self.mask is None else torch.where(self.mask, values, others)


def weights_of(groups: Sequence[Channels], chosen: Mapping[str, Tensor] | None = None) -> tuple[Weights, ...]:
    """The weights of all channels of these groups, or of those that `chosen` (bool `[count]` by group) is true for."""
    masks: dict[int, Tensor] = {}
    parameters: dict[int, nn.Parameter] = {}
    for channels in groups:
        which = torch.ones(channels.count, dtype=torch.bool) if chosen is None else chosen[channels.name]
        padded = torch.cat([which, which.new_zeros(1)])
        for one in channels.slices:
            mask = one.spread(padded.to(one.index.device))
            key = id(one.parameter)
            masks[key] = masks[key] | mask if key in masks else mask
            parameters[key] = one.parameter
    return tuple(
        Weights(parameters[key], None if bool(mask.all()) else mask)
        for key, mask in masks.items()
        if bool(mask.any())
    )


def magnitude_sum(weights: Weights) -> Tensor:
    """The sum of |w|: a scalar, differentiable; the gradient is zero where the weight is."""
    return weights.chosen(weights.parameter.abs(), 0).sum()


def half_square_sum(weights: Weights) -> Tensor:
    """Half the sum of squares: a scalar whose gradient is the weight itself, as weight decay counts it."""
    values = weights.parameter.abs() if weights.parameter.is_complex() else weights.parameter
    return weights.chosen(values.square(), 0).sum() / 2


@torch.no_grad()
def soft_threshold_(weights: Weights, amount: float) -> None:
    """The proximal operator of `amount * |w|`, in place: nearer to zero by `amount`, and exactly zero within it.

    >>> layer = nn.Parameter(torch.tensor([3.0, -0.5, -2.0]))
    >>> soft_threshold_(Weights(layer, None), 1.0)
    >>> layer.tolist()
    [2.0, 0.0, -1.0]
    """
    weight = weights.parameter
    if weight.is_complex():
        nearer = weight.sgn() * (weight.abs() - amount).clamp_min(0)
    else:
        nearer = nn.functional.softshrink(weight, amount).add_(0.0)  # no -0.0
    weight.copy_(weights.chosen(nearer, weight))


@torch.no_grad()
def decay_(weights: Weights, amount: float) -> None:
    """The proximal operator of `amount / 2 * w ** 2`, in place: `w / (1 + amount)`."""
    weights.parameter.copy_(weights.chosen(weights.parameter / (1 + amount), weights.parameter))
