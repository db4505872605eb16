"""The scale of each channel, as of normalisation layers, as importance."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from structprune.errors import InputError
from structprune.importance.groups import GroupTensors, MemberTensor
from structprune.importance.magnitude import l2
from structprune.importance.reductions import abs_sum
from structprune.importance.registry import criterion

__all__ = ["bn_scale", "is_scale"]


@criterion()
def bn_scale(group: GroupTensors) -> NDArray[np.float64]:
    """The sum of |scale| over the scales of each channel, which are those of normalisation layers: float64 [size].

    Liu, Li, Shen, Huang, Yan, Zhang: Learning Efficient Convolutional Networks through Network Slimming, ICCV
    2017 (arXiv:1708.06519). Best after training with an L1 penalty on the scales.

    A scale is a tensor with one number for each channel, by which the channels are multiplied as they pass, as
    the trace sees it: of any norm, whatever its class, and a layer scale too. A group without one (the hidden
    linear layers behind a convolutional trunk) is ranked by l2, divided by the group's mean, which puts it
    around 1, where a scale starts. Raises InputError where no free group of the model has a scale.
    """
    scales = _scales(group)
    if scales:
        return group.total(abs_sum, scales)
    if not any(_scales(peer) for peer in group.peers):
        raise InputError(
            "criterion 'bn_scale' ranks channels by their scales, those of normalisation layers, and no free "
            "group of this model has one: use 'l2' or 'l1'"
        )
    norms = l2(group)
    mean = float(norms.mean()) if norms.size else 0.0
    return norms / mean if mean > 0 else norms


def _scales(group: GroupTensors) -> list[MemberTensor]:
    """The per-channel scales among the members; also those kept as buffers (frozen BatchNorm)."""
    return [member for member in group.members if is_scale(member)]


def is_scale(member: MemberTensor) -> bool:
    """Whether the tensor holds one number for each channel, by which it is multiplied."""
    return member.role == "scale"
