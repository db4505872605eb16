"""The demo: train, prune, fine-tune, export and measure on scikit-learn's digits, in about two minutes."""

from __future__ import annotations

from structprune.demo.network import resnet20
from structprune.demo.run import run
from structprune.demo.settings import Settings

__all__ = ["Settings", "resnet20", "run"]
