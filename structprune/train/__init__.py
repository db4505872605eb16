"""Fine-tuning and evaluation of classifiers, masks or not (`pip install structprune[train]`)."""

from __future__ import annotations

from structprune.train.evaluation import evaluate
from structprune.train.loop import finetune

__all__ = ["evaluate", "finetune"]
