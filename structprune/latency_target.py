"""A latency budget, met by measurement: choose by the forecast, measure the whole network, correct, choose again.

A forecast adds up kernels; what counts is how long the whole pruned network takes beside the dense one, by turns, on
the runtime that was named. Each measurement corrects the forecast, until the measured share is at or under the one
that was asked for, and near it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from structprune.budget import Budget
from structprune.errors import BudgetError
from structprune.forecast import LatencyForecast, learn, profile
from structprune.graph import DependencyGraph
from structprune.interleaved import Bench, Ready
from structprune.latency import Measurement, Ratio, ratio
from structprune.plan import PruningPlan
from structprune.runtime_settings import Runtime
from structprune.selection.contract import Prices
from structprune.surgery import apply_plan

__all__ = ["LatencyReport", "LayerLatency", "Turn", "reach"]

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
class LayerLatency:
    """One kernel's milliseconds: in the dense network, forecast for the pruned one, and measured there.

    NaN where it was not measured: the runtime may take another path at other widths, or says nothing of its kernels.
    """

    dense_ms: float
    forecast_ms: float
    measured_ms: float


@dataclass(frozen=True)
class LatencyReport:
    """How a latency budget was met: both networks measured by turns, and the choices on the way.

    ``ratio`` is what the pruned network took of the dense one's latency, ``forecast`` what was expected.
    """

    budget: Budget
    dense: Measurement
    pruned: Measurement
    ratio: Ratio
    forecast: float
    turns: tuple[Turn, ...]
    forecast_error: float
    layers: dict[str, LayerLatency]
    """By the runtime's name of the kernel, the dense network's order."""

    def __str__(self) -> str:
        return (
            f"latency {self.dense.median_ms:.3f} -> {self.pruned.median_ms:.3f} ms, {self.ratio} of the dense "
            f"network's (asked: {self.budget}; forecast: {self.forecast:.3f}; {len(self.turns)} choices measured)"
        )


@dataclass(frozen=True)
class _Choice:
    """A plan, and the network that it makes beside the dense one."""

    plan: PruningPlan
    model: nn.Module
    dense: Measurement
    pruned: Measurement
    turn: Turn

    @property
    def share(self) -> float:
        return self.turn.measured.value


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
        BudgetError: where every measured choice, the fastest among them, is above the budget, or another limit cannot
            be met; with what can be reached.
    """
    on = Runtime.of(budget.runtime)
    forecast = learn(graph, model, example_inputs, on, progress)
    bench = Bench(example_inputs, on)
    tried: list[_Choice] = []
    with bench.ready(apply_plan(model, graph.plan({}))) as whole:  # a copy: it is in eval mode until the end
        share = _asked(bench, whole, budget)
        for plan in _plans(graph, forecast, budget, share, choose, tried):
            small = apply_plan(model, plan)
            with bench.ready(small) as cut:
                dense, pruned = bench.time((whole, cut), repeats=_ROUNDS, min_time=_SECONDS)
            turn = Turn(forecast(graph.counts(plan)) / forecast.dense_ms, ratio(pruned, dense))
            tried.append(_Choice(plan, small, dense, pruned, turn))
    met = [one for one in tried if one.share <= share or share >= 1]
    if not met:
        raise BudgetError(_missed(budget, tried))
    best = max(met, key=lambda one: one.share)
    layers = _layers(forecast, graph.counts(best.plan), best.model, example_inputs, on)
    turns = tuple(one.turn for one in tried)
    evidence = LatencyReport(
        budget, best.dense, best.pruned, best.turn.measured, best.turn.forecast, turns, forecast.error, layers
    )
    return best.plan, best.model, evidence


def _plans(
    graph: DependencyGraph,
    forecast: LatencyForecast,
    budget: Budget,
    share: float,
    choose: Callable[[Prices], PruningPlan],
    tried: Sequence[_Choice],
) -> Iterator[PruningPlan]:
    """Plans to measure, each aimed by what the ones before took, until one is near enough."""
    aim, correction = share * _AIM if share < 1 else np.inf, 1.0
    # what the other limits allow may be faster than was asked
    widest = choose(forecast.prices(np.inf)) if len(budget.limits) > 1 else None
    if widest is not None and forecast(graph.counts(widest)) <= share * forecast.dense_ms:
        aim = np.inf
    seen: set[tuple[int, ...]] = set()
    finer, finest = 1, max(forecast.alignment.values(), default=1)
    for _ in range(_TRIES):
        try:
            plan, slow = _choice(choose, forecast, aim, correction, finer)
        except BudgetError:
            if tried:  # what was measured may meet the budget all the same
                return
            raise
        counts = tuple(graph.counts(plan).tolist())
        if counts in seen:  # widths are coarse: finer ones, then further off where the last one was not near
            if finer < finest:
                finer *= 2
            elif slow:
                return
            else:
                aim *= 1 / _STEP if tried[-1].share > share else _STEP
            continue
        seen.add(counts)
        yield plan
        last = tried[-1]
        near = share * _NEAR <= last.share <= share
        if near or share >= 1 or len(tried) == _TURNS or (plan == widest and last.share <= share):
            return
        correction, aim = last.share / last.turn.forecast, share * _AIM


def _choice(
    choose: Callable[[Prices], PruningPlan],
    forecast: LatencyForecast,
    aim: float,
    correction: float,
    finer: int,
) -> tuple[PruningPlan, bool]:
    """The plan for the aim; or, where none is forecast to be so fast, the fastest there is, and True: whether it is
    fast enough is for the measurement to say.
    """
    try:
        return choose(forecast.prices(aim, correction, finer)), False
    except BudgetError as error:
        if error.fastest is None:
            raise
        return choose(forecast.prices(error.fastest * (1 + 1e-9), correction, finer)), True


def _asked(bench: Bench, whole: Ready, budget: Budget) -> float:
    """The budget as a share of the dense network's latency."""
    asked = budget.time
    assert asked is not None
    if asked.quantity == "latency":
        return asked.value
    (dense,) = bench.time([whole], repeats=_ROUNDS, min_time=_SECONDS)
    milliseconds = 1e3 * dense.batch / asked.value if asked.quantity == "throughput" else asked.value
    return min(1.0, milliseconds / dense.median_ms)


def _layers(
    forecast: LatencyForecast, counts: np.ndarray, pruned: nn.Module, example_inputs: Any, on: Runtime
) -> dict[str, LayerLatency]:
    expected = forecast.layers(counts)
    dense = {kernel.name: kernel.ms for kernel in forecast.dense.kernels}
    measured = {kernel.name: kernel.ms for kernel in profile(pruned, example_inputs, on).kernels}
    unknown = float("nan")
    return {
        name: LayerLatency(dense.get(name, unknown), ms, measured.get(name, unknown))
        for name, ms in expected.items()
    }


def _missed(budget: Budget, tried: Sequence[_Choice]) -> str:
    """What was asked, and what can be reached as it was measured, in the unit that was asked for."""
    fastest = min(tried, key=lambda one: one.share)
    dense = fastest.dense.median_ms
    least = fastest.share * dense
    samples = sorted(1e3 * fastest.dense.batch / ms for ms in (dense, least))
    shares, times = sorted((fastest.share, 1.0)), sorted((least, dense))
    reach = {
        "latency": f"between {shares[0]:.4g} and {shares[1]:.4g} of the dense network's latency",
        "latency_ms": f"between {times[0]:.4g} and {times[1]:.4g} ms",
        "throughput": f"between {samples[0]:.4g} and {samples[1]:.4g} samples per second",
    }
    asked = budget.time
    assert asked is not None
    return (
        f"{budget} cannot be met: of {len(tried)} measured choices the fastest took {fastest.turn.measured} of the "
        f"dense network's latency, so {reach[asked.quantity]} can be reached. Ask for more, or allow narrower widths"
    )
