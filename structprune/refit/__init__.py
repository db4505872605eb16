"""What calibration data wins back after a cut: constants folded, consumers refitted, statistics estimated anew."""

from __future__ import annotations

from structprune.refit.batches import readable_again
from structprune.refit.refitting import STEPS, refit, steps_of, transfer
from structprune.refit.report import LayerRefit, RefitReport, StepReport

__all__ = [
    "STEPS",
    "LayerRefit",
    "RefitReport",
    "StepReport",
    "readable_again",
    "refit",
    "steps_of",
    "transfer",
]
