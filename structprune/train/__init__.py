"""Fine-tuning and evaluation of classifiers, masks or not (`pip install structprune[train]`)."""

from __future__ import annotations

from structprune.train.checkpoints import TrainingCheckpoint, load_checkpoint, save_checkpoint
from structprune.train.evaluation import evaluate
from structprune.train.hooks import Hook, Run
from structprune.train.loop import finetune
from structprune.train.optimizer_state import cut_optimizer

__all__ = [
    "Hook",
    "Run",
    "TrainingCheckpoint",
    "cut_optimizer",
    "evaluate",
    "finetune",
    "load_checkpoint",
    "save_checkpoint",
]
