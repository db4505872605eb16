"""Importance criteria, which say how much each channel matters: pure functions of a group and its tensors."""

from __future__ import annotations

from structprune.importance.chance import random
from structprune.importance.groups import GroupTensors, MemberTensor
from structprune.importance.magnitude import l1, l2, linf
from structprune.importance.reductions import Reduction, abs_max, abs_sum, square_sum
from structprune.importance.scaling import bn_scale
from structprune.importance.scoring import CRITERIA, Criterion, score

__all__ = [
    "CRITERIA",
    "Criterion",
    "GroupTensors",
    "MemberTensor",
    "Reduction",
    "abs_max",
    "abs_sum",
    "bn_scale",
    "l1",
    "l2",
    "linf",
    "random",
    "score",
    "square_sum",
]
