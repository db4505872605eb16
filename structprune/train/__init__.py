"""Fine-tuning and evaluation of classifiers, masks or not (`pip install structprune[train]`)."""

from __future__ import annotations

from structprune.train.candidates import Candidate, CrossValidation, Trial
from structprune.train.checkpoints import TrainingCheckpoint, load_checkpoint, save_checkpoint
from structprune.train.cross_validation import cross_validate
from structprune.train.evaluation import evaluate
from structprune.train.gradual import (
    Cubic,
    GradualResult,
    GradualRun,
    GradualStep,
    Iterative,
    OneShot,
    Schedule,
    prune_gradually,
    sparsify_gradually,
)
from structprune.train.hooks import Hook, Run
from structprune.train.loop import finetune
from structprune.train.optimizer_state import cut_optimizer
from structprune.train.options import TrainOptions
from structprune.train.penalties import L1, L2, GroupLasso, GrowingL2, Penalty, Slimming
from structprune.train.zeros import zero_plan

__all__ = [
    "L1",
    "L2",
    "Candidate",
    "CrossValidation",
    "Cubic",
    "GradualResult",
    "GradualRun",
    "GradualStep",
    "GroupLasso",
    "GrowingL2",
    "Hook",
    "Iterative",
    "OneShot",
    "Penalty",
    "Run",
    "Schedule",
    "Slimming",
    "TrainOptions",
    "TrainingCheckpoint",
    "Trial",
    "cross_validate",
    "cut_optimizer",
    "evaluate",
    "finetune",
    "load_checkpoint",
    "prune_gradually",
    "save_checkpoint",
    "sparsify_gradually",
    "zero_plan",
]
