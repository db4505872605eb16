"""Hooks for tests of training that is interrupted: one keeps the state of a run, one goes on from it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from structprune.train import Hook, Run

__all__ = ["Continue", "Keep"]


class Keep(Hook):
    """Keeps a copy of the state after one epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.state: dict[str, Any] = {}

    def after_epoch(self, run: Run, metrics: dict[str, float]) -> None:
        if run.epoch == self.epoch:
            self.state = copy.deepcopy(run.state_dict())


class Continue(Hook):
    """Begins a run with a state; in its hooks it takes the place of the one that kept it."""

    def __init__(self, state: Mapping[str, Any]) -> None:
        self.state = state

    def on_start(self, run: Run) -> None:
        run.load_state_dict(self.state)
