"""What a cut costs before it is made: the loss against the width of each group, and a forecast of it for any plan."""

from __future__ import annotations

from structprune.sensitivity.curves import Curve, Joint
from structprune.sensitivity.losses import LOSSES
from structprune.sensitivity.measuring import sensitivity
from structprune.sensitivity.result import Sensitivity

__all__ = ["LOSSES", "Curve", "Joint", "Sensitivity", "sensitivity"]
