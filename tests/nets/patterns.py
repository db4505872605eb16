"""Every pattern of networks that broke other tools, gathered from the families."""

from __future__ import annotations

from tests.nets import attention, contracts, convs, gates, parameters, splits
from tests.nets.case import Case

__all__ = ["PATTERNS"]

PATTERNS: list[Case] = [
    case for family in (splits, convs, gates, parameters, attention, contracts) for case in family.CASES
]
