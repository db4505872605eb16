"""How a network's latency depends on the width of one group: its stairs are found, not swept."""

from __future__ import annotations

from structprune.staircase.measured import Staircase, busiest, staircase
from structprune.staircase.search import find_stairs
from structprune.staircase.stairs import Point, Stairs, Step

__all__ = ["Point", "Staircase", "Stairs", "Step", "busiest", "find_stairs", "staircase"]
