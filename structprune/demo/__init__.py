"""The demo: train, prune, fine-tune, export and measure on scikit-learn's digits, in about two minutes."""

from __future__ import annotations

from structprune.demo.network import ResNet20, resnet20
from structprune.demo.run import run
from structprune.demo.settings import Settings

__all__ = ["ResNet20", "Settings", "resnet20", "run"]
