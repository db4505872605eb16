"""Fine-tuning and evaluation of networks, masks or not (`pip install structprune[train]`)."""

from __future__ import annotations

from structprune.importance import Loss
from structprune.train.callbacks import lightning_callback, transformers_callback
from structprune.train.candidates import Candidate, CrossValidation, Trial
from structprune.train.checkpoints import TrainingCheckpoint, load_checkpoint, save_checkpoint
from structprune.train.cross_validation import cross_validate
from structprune.train.distillation import Distillation
from structprune.train.evaluation import Metric, evaluate
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
from structprune.train.hooks import Hook, Metrics, Run
from structprune.train.loop import finetune
from structprune.train.optimizer_state import cut_optimizer
from structprune.train.options import TrainOptions
from structprune.train.penalties import L1, L2, GroupLasso, GrowingL2, Penalty, Slimming
from structprune.train.records import JsonLines, ProgressBar
from structprune.train.session import Session
from structprune.train.stopping import EarlyStopping
from structprune.train.zeros import zero_plan

__all__ = [
    "L1",
    "L2",
    "Candidate",
    "CrossValidation",
    "Cubic",
    "Distillation",
    "EarlyStopping",
    "GradualResult",
    "GradualRun",
    "GradualStep",
    "GroupLasso",
    "GrowingL2",
    "Hook",
    "Iterative",
    "JsonLines",
    "Loss",
    "Metric",
    "Metrics",
    "OneShot",
    "Penalty",
    "ProgressBar",
    "Run",
    "Schedule",
    "Session",
    "Slimming",
    "TrainOptions",
    "TrainingCheckpoint",
    "Trial",
    "cross_validate",
    "cut_optimizer",
    "evaluate",
    "finetune",
    "lightning_callback",
    "load_checkpoint",
    "prune_gradually",
    "save_checkpoint",
    "sparsify_gradually",
    "transformers_callback",
    "zero_plan",
]
