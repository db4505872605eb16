"""The steps of `select`: match names, join constraints into units, rank their steps, search the budget.

Everything here is numbers: counts of channels, scores, and the graph's price for a vector of counts.
"""

from __future__ import annotations

from structprune.selection.contract import Prices
from structprune.selection.knapsack import most_valuable
from structprune.selection.units import Unit

__all__ = ["Prices", "Unit", "most_valuable"]
