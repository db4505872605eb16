"""Cuts in steps with training between them: one at once, several alike, or cubic while one training goes on."""

from __future__ import annotations

from structprune.train.gradual.entry import prune_gradually, sparsify_gradually
from structprune.train.gradual.run import GradualResult, GradualRun, GradualStep
from structprune.train.gradual.schedules import Cubic, Iterative, OneShot, Schedule

__all__ = [
    "Cubic",
    "GradualResult",
    "GradualRun",
    "GradualStep",
    "Iterative",
    "OneShot",
    "Schedule",
    "prune_gradually",
    "sparsify_gradually",
]
