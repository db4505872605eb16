"""Sparsity training: penalties on the channels of a traced network, as hooks of the training loop.

A cut costs what the removed channels said. Training with a penalty on them makes that little, or nothing: the proximal
steps leave channels of which every weight is exactly zero, and `zero_plan` removes these without any change of what
the network computes.
"""

from __future__ import annotations

from structprune.train.penalties.base import Penalty
from structprune.train.penalties.elementwise import L1, L2, GrowingL2
from structprune.train.penalties.lasso import GroupLasso, Slimming

__all__ = ["L1", "L2", "GroupLasso", "GrowingL2", "Penalty", "Slimming"]
