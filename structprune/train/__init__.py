"""Fine-tuning and evaluation of classifiers, masks or not (`pip install structprune[train]`)."""

from __future__ import annotations

from structprune.train.checkpoints import TrainingCheckpoint, load_checkpoint, save_checkpoint
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

__all__ = [
    "Cubic",
    "GradualResult",
    "GradualRun",
    "GradualStep",
    "Hook",
    "Iterative",
    "OneShot",
    "Run",
    "Schedule",
    "TrainOptions",
    "TrainingCheckpoint",
    "cut_optimizer",
    "evaluate",
    "finetune",
    "load_checkpoint",
    "prune_gradually",
    "save_checkpoint",
    "sparsify_gradually",
]
