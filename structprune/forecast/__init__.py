"""What a network's latency would be at other widths: learnt from its own kernels' times on a runtime."""

from __future__ import annotations

from structprune.forecast.forecast import LatencyForecast
from structprune.forecast.learning import forecast_latency, learn, profile
from structprune.forecast.sampling import draw
from structprune.forecast.template import cut_to_counts

__all__ = ["LatencyForecast", "cut_to_counts", "draw", "forecast_latency", "learn", "profile"]
