"""Fine-tuning and evaluation of classifiers, masks or not (`pip install structprune[train]`)."""

from __future__ import annotations

from structprune.train.evaluation import evaluate
from structprune.train.hooks import Hook, Metrics, Run
from structprune.train.loop import finetune

__all__ = ["Hook", "Metrics", "Run", "evaluate", "finetune"]
