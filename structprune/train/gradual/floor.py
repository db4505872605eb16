"""The least that a network may measure after a step of gradual pruning."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from structprune.errors import InputError
from structprune.train.evaluation import Metric, evaluate, measured

__all__ = ["Floor"]


@dataclass(frozen=True)
class Floor:
    """What is measured after each step, and the least that it may be: `least`, and at most `drop` below the network
    given.
    """

    data: Dataset[Any] | None = None
    metric: Metric | None = None
    least: float | None = None
    drop: float | None = None

    def __post_init__(self) -> None:
        if self.data is None and (self.least, self.drop, self.metric) != (None, None, None):
            raise InputError("floor=, max_drop= and metric= need validation=, the data to measure on")
        if self.least is not None and not (math.isfinite(self.least) and self._possible(self.least)):
            raise InputError(
                f"floor={self.least!r}: must be a finite number, and a share of 1 where it is of accuracy"
            )
        if self.drop is not None and not 0 <= self.drop < math.inf:
            raise InputError(f"max_drop={self.drop!r}: must be 0 or more")

    def _possible(self, least: float) -> bool:
        return self.metric is not None or 0 <= least <= 1

    def measure(self, model: nn.Module) -> float | None:
        """The metric, or None where there is no data for it."""
        if self.data is None:
            return None
        with torch.random.fork_rng():  # a DataLoader draws, and a metric may
            return measured((self.metric or evaluate)(model, self.data), "what metric= returns")

    def limit(self, before: float | None) -> float | None:
        """The least that a step may measure, where the network given measures `before`."""
        assert before is not None or self.data is None
        if before is not None and math.isnan(before) and (self.least, self.drop) != (None, None):
            raise InputError(
                "the network given measures nan before any cut, which no floor= or max_drop= can be held to: check the "
                "metric, the validation data and the model's weights"
            )
        given = [] if self.least is None else [self.least]
        if self.drop is not None and before is not None:
            given.append(before - self.drop)
        limit = max(given, default=None)
        if limit is not None and before is not None and not before >= limit:
            raise InputError(
                f"floor={limit:g}, but the network measures {before:.4f} before any cut: ask for less, or train it"
            )
        return limit
