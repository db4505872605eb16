"""A latency budget, met by measurement: choose by the forecast, measure the whole network, correct, choose again.

A forecast adds up kernels; what counts is how long the whole pruned network takes beside the dense one, by turns, on
the runtime that was named. Each measurement corrects the forecast, until the measured share is at or under the one
that was asked for, and near it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from structprune.budget import Budget
from structprune.errors import BudgetError
from structprune.forecast import LatencyForecast, learn
from structprune.graph import DependencyGraph
from structprune.latency import Measurement, Ratio, measure_latency, ratio
from structprune.plan import PruningPlan
from structprune.runtime_settings import Runtime
from structprune.selection.contract import Prices
from structprune.surgery import apply_plan

__all__ = ["LatencyReport", "Turn", "reach"]

_NEAR = 0.97  # of the share that was asked for: a network that takes less gave up more than it had to
_AIM = 0.988  # between the two: where the next choice is aimed at
_TURNS = 8
_TRIES = 60
_STEP = 1.03
_ROUNDS = 40
_SECONDS = 1.0


@dataclass(frozen=True)
class Turn:
    """One choice: its share of the dense network's latency as it was forecast, and as it was measured."""

    forecast: float
    measured: Ratio


@dataclass(frozen=True)
class LatencyReport:
    """How a latency budget was met: both networks measured by turns, and the choices on the way."""

    budget: Budget
    dense: Measurement
    pruned: Measurement
    ratio: Ratio
    turns: tuple[Turn, ...]
    forecast_error: float
    layers: dict[str, tuple[float, float]]

    def __str__(self) -> str:
        return (
            f"latency {self.dense.median_ms:.3f} -> {self.pruned.median_ms:.3f} ms, {self.ratio} of the dense "
            f"network's (asked: {self.budget}; {len(self.turns)} choices measured)"
        )


@dataclass(frozen=True)
class _Reached:
    plan: PruningPlan
    model: nn.Module
    dense: Measurement
    pruned: Measurement
    ratio: Ratio


def reach(
    graph: DependencyGraph,
    model: nn.Module,
    example_inputs: Any,
    budget: Budget,
    choose: Callable[[Prices], PruningPlan],
    progress: Callable[[int, int], None] | None = None,
) -> tuple[PruningPlan, nn.Module, LatencyReport]:
    """Return the plan, the pruned network and the evidence that it takes at most the latency that was asked for.

    ``choose(prices)`` makes the plan that takes at most ``prices.limit`` by the prices.

    Raises:
        BudgetError: where the forecast, or every measured choice, is above the budget; with what was reached.
    """
    forecast = learn(graph, model, example_inputs, Runtime.of(budget.runtime), progress)
    sizes = graph.sizes()
    share, correction = _asked(model, example_inputs, budget), 1.0
    turns: list[Turn] = []
    best: _Reached | None = None
    seen: set[tuple[int, ...]] = set()
    aim = share * _AIM if share < 1 else np.inf
    widest = (
        choose(forecast.prices(np.inf)) if len(budget.limits) > 1 else None
    )  # that the other limits allow
    if widest is not None and forecast(graph.counts(widest)) <= share * forecast.dense_ms:
        aim = np.inf
    for _ in range(_TRIES):
        plan = choose(forecast.prices(aim, correction))
        counts = graph.counts(plan)
        if (
            tuple(counts.tolist()) in seen
        ):  # the widths are coarse: look further where the last one was not near
            aim *= 1 / _STEP if turns[-1].measured.value > share else _STEP
            continue
        seen.add(tuple(counts.tolist()))
        found = _measured(model, plan, example_inputs, budget)
        predicted = forecast(counts) / forecast.dense_ms
        turns.append(Turn(predicted, found.ratio))
        if (found.ratio.value <= share or share >= 1) and (
            best is None or found.ratio.value > best.ratio.value
        ):
            best = found
        if share >= 1 or share * _NEAR <= found.ratio.value <= share or len(turns) == _TURNS:
            break
        if plan == widest and found.ratio.value <= share:
            break
        correction, aim = found.ratio.value / predicted, share * _AIM
    if best is None:
        raise BudgetError(_missed(budget, share, turns))
    layers = _layers(forecast, sizes, graph.counts(best.plan))
    evidence = LatencyReport(
        budget, best.dense, best.pruned, best.ratio, tuple(turns), forecast.error, layers
    )
    return best.plan, best.model, evidence


def _asked(model: nn.Module, example_inputs: Any, budget: Budget) -> float:
    """The budget as a share of the dense network's latency."""
    asked = budget.time
    assert asked is not None
    if asked.quantity == "latency":
        return float(asked.value)
    dense = measure_latency(model, example_inputs, runtime=budget.runtime, min_time=_SECONDS)
    milliseconds = 1e3 * dense.batch / asked.value if asked.quantity == "throughput" else asked.value
    return min(1.0, milliseconds / dense.median_ms)


def _measured(model: nn.Module, plan: PruningPlan, example_inputs: Any, budget: Budget) -> _Reached:
    small = apply_plan(model, plan)
    dense, pruned = measure_latency(
        (model, small),
        example_inputs,
        runtime=budget.runtime,
        repeats=_ROUNDS,
        min_time=_SECONDS,
    )
    return _Reached(plan, small, dense, pruned, ratio(pruned, dense))


def _layers(
    forecast: LatencyForecast, before: np.ndarray, after: np.ndarray
) -> dict[str, tuple[float, float]]:
    dense, small = forecast.layers(before), forecast.layers(after)
    return {name: (ms, small[name]) for name, ms in dense.items()}


def _missed(budget: Budget, share: float, turns: list[Turn]) -> str:
    nearest = min((turn.measured for turn in turns), key=lambda one: one.value, default=None)
    reached = f"the nearest took {nearest}" if nearest is not None else "no choice was left to measure"
    return (
        f"{budget}: {share:.3g} of the dense network's latency was not reached in {len(turns)} measured choices; "
        f"{reached} of it. Ask for more, or run on a quieter machine"
    )
