"""Group lasso: each channel's weights are drawn to zero together, and become exactly zero together."""

from __future__ import annotations

import torch
from torch import Tensor

from structprune.errors import InputError
from structprune.importance.groups import MemberTensor
from structprune.importance.scaling import is_scale
from structprune.train.penalties.base import Penalty
from structprune.train.penalties.channels import Channels

__all__ = ["GroupLasso", "Slimming", "block_soft_threshold_", "norm_sum"]


def norm_sum(channels: Channels) -> Tensor:
    """The sum over channels of sqrt(number of weights) * Euclidean norm: a scalar, differentiable."""
    return (channels.sizes.sqrt() * channels.norms()).sum()


@torch.no_grad()
def block_soft_threshold_(channels: Channels, amount: float) -> None:
    """The proximal operator of `amount * norm_sum`, in place: each channel's weights times
    `max(0, 1 - amount * sqrt(number of weights) / norm)`.

    Exact where the channels have no weight in common; two of one group do only in a matrix that the group cuts on both
    sides (a residual stream's), off its diagonal, where both factors apply.
    """
    norms = channels.norms()
    limits = amount * channels.sizes.sqrt()
    channels.scale_(torch.where(norms > limits, 1 - limits / norms, 0))


class GroupLasso(Penalty[Channels]):
    """The sum over channels of sqrt(number of weights) * Euclidean norm of all weights that go with the channel.

    Yuan, Lin: Model Selection and Estimation in Regression with Grouped Variables, JRSS B 68 (2006), with their weights
    for groups of unequal size; on the structures of a network: Wen, Wu, Wang, Chen, Li: Learning Structured Sparsity in
    Deep Neural Networks, NeurIPS 2016 (arXiv:1608.03665). Here a channel is all that can be cut with it: the rows of
    every layer that makes it, its biases and scales, and the columns of every layer that reads it. So channels come to
    be zero throughout, and can be cut without any change (`zero_plan`).

    A weight from a channel to itself counts once; one to another cut channel belongs to both. The proximal step then
    takes the groups one by one, each exactly: the first sweep of the block coordinate descent by which Jenatton,
    Mairal, Obozinski, Bach: Proximal Methods for Hierarchical Sparse Coding, JMLR 12 (2011) compute such operators.
    Exact zeros stay, and the minimum is approached as the learning rate falls.

    Raises what `Penalty` does.
    """

    def _belongs(self, member: MemberTensor) -> bool:
        return member.is_parameter

    def _parts(self, groups: tuple[Channels, ...]) -> tuple[Channels, ...]:
        return groups

    def _value(self, part: Channels) -> Tensor:
        return norm_sum(part)

    def _shrink(self, part: Channels, amount: float) -> None:
        block_soft_threshold_(part, amount)


class Slimming(Penalty[Channels]):
    """The sum of |scale| over the channels of free groups: the scales of batch norms, of other norms whatever their
    class, and of all that multiplies each channel by one number (`bn_scale`).

    Liu, Li, Shen, Huang, Yan, Zhang: Learning Efficient Convolutional Networks through Network Slimming, ICCV 2017
    (arXiv:1708.06519), there by the subgradient, here by the proximal step, so that scales are exactly zero. Where a
    channel goes through several norms (the streams of a residual network), it can only be cut where all their scales
    are zero: these shrink together, by sqrt(number of scales) * their Euclidean norm, which for one is |scale|.
    A norm's shift says on what a channel of scale zero still sends: `zero_plan(..., criterion="bn_scale")` cuts it all
    the same, and `refit` folds the constant into the layers that read it.

    Raises what `Penalty` does, so where no group has a trainable scale too.
    """

    def _belongs(self, member: MemberTensor) -> bool:
        return member.is_parameter and is_scale(member)

    def _parts(self, groups: tuple[Channels, ...]) -> tuple[Channels, ...]:
        if not groups:
            raise InputError(
                "Slimming acts on the scales of normalisation layers, and no group that it is for has a trainable "
                "one: use GroupLasso"
            )
        return groups

    def _value(self, part: Channels) -> Tensor:
        return norm_sum(part)

    def _shrink(self, part: Channels, amount: float) -> None:
        block_soft_threshold_(part, amount)
