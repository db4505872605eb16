"""The scale of normalisation layers as importance."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from structprune.errors import InputError
from structprune.importance.groups import GroupTensors, MemberTensor
from structprune.importance.magnitude import l2
from structprune.importance.reductions import abs_sum
from structprune.importance.registry import criterion

__all__ = ["bn_scale", "is_scale"]

_NORMS: tuple[type[nn.Module], ...] = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
)


@criterion()
def bn_scale(group: GroupTensors) -> NDArray[np.float64]:
    """The sum of |scale| over the normalisation layers of each channel: float64 [size].

    Liu, Li, Shen, Huang, Yan, Zhang: Learning Efficient Convolutional Networks through Network Slimming, ICCV
    2017 (arXiv:1708.06519). Best after training with an L1 penalty on the scales.

    A group without a normalisation layer (the hidden linear layers behind a convolutional trunk) has no
    scale: its channels are ranked by l2, divided by the group's mean, which puts them around 1, where a scale
    starts. Raises InputError where no free group of the model has a normalisation layer.
    """
    scales = _scales(group)
    if scales:
        return group.total(abs_sum, scales)
    if not any(_scales(peer) for peer in group.peers):
        raise InputError(
            "criterion 'bn_scale' ranks channels by the scale of their normalisation layers, and no free "
            "group of this model has one: use 'l2' or 'l1'"
        )
    norms = l2(group)
    mean = float(norms.mean()) if norms.size else 0.0
    return norms / mean if mean > 0 else norms


def _scales(group: GroupTensors) -> list[MemberTensor]:
    """The per-channel scales among the members; also those kept as buffers (frozen BatchNorm)."""
    return [member for member in group.members if member.role == "affine" and is_scale(member)]


def is_scale(member: MemberTensor) -> bool:
    """A `weight` of a torch norm, of a module with running statistics, or of a class named a norm
    (LlamaRMSNorm).
    """
    owner, leaf = member.owner, member.name.rpartition(".")[2]
    if owner is None or leaf != "weight":
        return False
    return (
        isinstance(owner, _NORMS)
        or isinstance(getattr(owner, "running_var", None), torch.Tensor)
        or "norm" in type(owner).__name__.lower()
    )
