"""Magnitude criteria: the norm of all parameters that leave the network together with a channel."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from structprune.importance.groups import GroupTensors
from structprune.importance.reductions import abs_max, abs_sum, square_sum
from structprune.importance.registry import criterion

__all__ = ["l1", "l2", "linf"]


@criterion()
def l1(group: GroupTensors) -> NDArray[np.float64]:
    """The sum of absolute values of all parameters of each channel: float64 [size].

    A weight with the channels in several dims counts in each: of a square one, w[c, c] twice for channel c, so in `l2`.

    Li, Kadav, Durdanovic, Samet, Graf: Pruning Filters for Efficient ConvNets, ICLR 2017 (arXiv:1608.08710),
    there over the producing filter alone; here over every member of the group, as in Fang, Ma, Song, Mi,
    Wang: DepGraph, CVPR 2023 (arXiv:2301.12900).
    """
    return group.total(abs_sum)


@criterion()
def l2(group: GroupTensors) -> NDArray[np.float64]:
    """The Euclidean norm of all parameters of each channel: float64 [size].

    He, Kang, Dong, Fu, Yang: Soft Filter Pruning, IJCAI 2018 (arXiv:1808.06866), there over the producing
    filter alone; here over every member of the group, as in DepGraph (arXiv:2301.12900).
    """
    return np.sqrt(group.total(square_sum))


@criterion()
def linf(group: GroupTensors) -> NDArray[np.float64]:
    """The largest absolute value among all parameters of each channel: float64 [size].

    The p -> infinity member of the norms that Li et al. compare for filters (arXiv:1608.08710, section 4.4).
    """
    return group.peak(abs_max)
