"""What a network's latency would be at other widths: learnt from its own kernels' times on a runtime."""

from __future__ import annotations

from structprune.forecast.forecast import LatencyForecast
from structprune.forecast.learning import forecast_latency, learn, profile

__all__ = ["LatencyForecast", "forecast_latency", "learn", "profile"]
