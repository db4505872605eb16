"""Importance criteria, which say how much each channel matters: pure functions of a group and its tensors."""

from __future__ import annotations

from structprune.importance.batches import Batch
from structprune.importance.calibration import Calibration, Loss, Sums
from structprune.importance.chance import random
from structprune.importance.gradients import fisher, hessian, snip
from structprune.importance.groups import Combination, GroupTensors, MemberTensor
from structprune.importance.inputs import wanda
from structprune.importance.magnitude import l1, l2, linf
from structprune.importance.reconstruction import obs
from structprune.importance.reductions import Reduction, abs_max, abs_sum, plain_sum, square_sum
from structprune.importance.redundancy import fpgm, lamp
from structprune.importance.registry import (
    CRITERIA,
    Collector,
    Criterion,
    Needs,
    criterion,
    draws,
    needs_of,
    options_of,
)
from structprune.importance.scaling import bn_scale
from structprune.importance.scoring import criterion_name, score
from structprune.importance.slopes import taylor

__all__ = [
    "CRITERIA",
    "Batch",
    "Calibration",
    "Collector",
    "Combination",
    "Criterion",
    "GroupTensors",
    "Loss",
    "MemberTensor",
    "Needs",
    "Reduction",
    "Sums",
    "abs_max",
    "abs_sum",
    "bn_scale",
    "criterion",
    "criterion_name",
    "draws",
    "fisher",
    "fpgm",
    "hessian",
    "l1",
    "l2",
    "lamp",
    "linf",
    "needs_of",
    "obs",
    "options_of",
    "plain_sum",
    "random",
    "score",
    "snip",
    "square_sum",
    "taylor",
    "wanda",
]
