"""`sweep`: many budgets in one go, so that what each would cost and keep can be seen before one is chosen.

The model is traced, scored and profiled once; each budget is then only a choice of widths. Latencies are those of the
forecast, and nothing is cut, unless the points are measured. No point is proven: `prune` with its budget does that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from torch import nn

from structprune.arguments import typed
from structprune.budget import Budget
from structprune.engines import trace
from structprune.errors import BudgetError, InputError
from structprune.forecast import LatencyForecast, learn
from structprune.graph import DependencyGraph
from structprune.importance import Criterion, Loss, criterion_name, score
from structprune.inputs import batch_size, normalize_inputs
from structprune.latency import Measurement, Ratio, measure_latency, ratio
from structprune.outputs import Outputs
from structprune.plan import PruningPlan
from structprune.runtime_settings import Runtime
from structprune.select import kept_importance, select
from structprune.selection.contract import Prices
from structprune.selection.units import Constraints, candidate_groups
from structprune.selectors import module_names
from structprune.sensitivity import Sensitivity
from structprune.surgery import apply_plan

__all__ = ["SweepPoint", "sweep"]


@dataclass(frozen=True)
class SweepPoint:
    """One budget of a sweep, and what it comes to.

    Attributes:
        budget: what was asked for.
        plan: what it keeps; None where the budget cannot be met, and ``unreachable`` says why.
        importance: the share of the importance that is kept, in (0, 1]: over all groups that may be cut, the harmonic
            mean weighted by the MACs that each governs.
        remaining: shares of the original network's "channels", "params", "macs", "peak_memory" and "file_size".
        forecast: the share of the dense network's latency by the forecast; None without a runtime.
        forecast_ms: the same in milliseconds.
        measured: the latency to the dense network's, timed by turns with it and all other points; None unless asked.
        measurement: the times themselves.
        loss: the loss by the sensitivity's forecast; None without a sensitivity.
    """

    budget: Budget
    plan: PruningPlan | None = None
    importance: float | None = None
    remaining: Mapping[str, float] | None = None
    forecast: float | None = None
    forecast_ms: float | None = None
    measured: Ratio | None = None
    measurement: Measurement | None = None
    unreachable: str = ""
    loss: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """All figures as plain data, for JSON; of the plan the widths, of the measurement median and interval."""
        groups = self.plan.groups if self.plan is not None else ()
        return {
            "budget": {limit.quantity: limit.value for limit in self.budget.limits},
            "importance": self.importance,
            "remaining": dict(self.remaining or {}),
            "forecast": self.forecast,
            "forecast_ms": self.forecast_ms,
            "loss": self.loss,
            "measured": None if self.measured is None else asdict(self.measured),
            "median_ms": None if self.measurement is None else self.measurement.median_ms,
            "interval_ms": None if self.measurement is None else list(self.measurement.interval_ms),
            "widths": {group.name: [group.size, group.count] for group in groups},
            "unreachable": self.unreachable,
        }


@typed
def sweep(
    model: nn.Module,
    example_inputs: Any,
    budgets: Iterable[Budget],
    criterion: str | Criterion = "l2",
    *,
    data: Iterable[Any] | None = None,
    loss: Loss | None = None,
    runtime: str | Runtime | None = None,
    measure: bool = False,
    scope: str | None = None,
    multiple_of: int | None = None,
    min_channels: int | Mapping[str, int] = 1,
    max_pruned: float | Mapping[str, float] = 1.0,
    keep: str | nn.Module | Iterable[str | nn.Module] = (),
    only: str | nn.Module | Iterable[str | nn.Module] = (),
    seed: int | None = None,
    engine: str = "structprune",
    engine_options: Mapping[str, Any] | None = None,
    ragged: bool = True,
    outputs: Outputs = None,
    sensitivity: Sensitivity | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[SweepPoint, ...]:
    """Return one point for each budget, in their order: the importance it keeps, its MACs and the rest, its latency.

    Scores and profiles are computed once. ``runtime`` is where latencies are forecast; it is that of the budgets where
    these bound a latency, and without either there is none. A budget of milliseconds or throughput is taken as a share
    of the dense network's latency as the profiles have it. With ``measure=True`` all networks are cut and timed by
    turns with the dense one. With ``sensitivity`` widths are those of least forecast loss, and points have it. A budget
    that cannot be met is a point that says so. The other arguments are those of
    `prune`; the model stays as it is.

    Raises:
        InputError: for no budgets, for budgets on several runtimes, and ``measure=True`` without a runtime.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 2))
    >>> for point in sweep(net, torch.zeros(1, 4), [Budget(macs=share) for share in (0.75, 0.25)]):
    ...     print(f"{point.budget}: {point.remaining['params']:.2f} of the parameters")
    macs=0.75: 0.75 of the parameters
    macs=0.25: 0.25 of the parameters
    """
    asked = _listed(budgets)
    used = _runtime(asked, runtime)
    if measure and used is None:
        raise InputError("measure=True needs to know where: give runtime=, as runtime='onnxruntime'")
    example_inputs = normalize_inputs(example_inputs)
    keep, only = module_names(model, keep), module_names(model, only)
    graph = trace(model, example_inputs, engine, engine_options, outputs)
    if sensitivity is not None:
        sensitivity.require(model)
    options: dict[str, Any] = {} if seed is None else {"seed": seed}
    scores = score(model, graph, criterion, data=data, loss=loss, **options)
    choose = partial(
        select,
        graph,
        scores,
        scope=scope,
        multiple_of=multiple_of,
        min_channels=min_channels,
        max_pruned=max_pruned,
        keep=keep,
        only=only,
        criterion=criterion_name(criterion),
        ragged=ragged,
        sensitivity=sensitivity,
    )
    forecast = None if used is None else learn(graph, model, example_inputs, used, progress)
    candidates = candidate_groups(graph.groups, Constraints(keep=keep, only=only))
    points = []
    for budget in asked:
        try:
            plan = choose(budget, prices=_prices(budget, forecast, example_inputs))
        except BudgetError as error:
            points.append(SweepPoint(budget, unreachable=str(error)))
            continue
        kept = kept_importance(graph, scores, graph.counts(plan), candidates=candidates, ragged=ragged)
        point = _point(graph, plan, budget, kept, forecast)
        points.append(point if sensitivity is None else replace(point, loss=sensitivity.forecast(plan)))
    return _measured(model, example_inputs, points, used) if measure and used is not None else tuple(points)


def _listed(budgets: Iterable[Budget]) -> tuple[Budget, ...]:
    several = isinstance(budgets, Iterable) and not isinstance(budgets, Budget)
    found: tuple[Any, ...] = tuple(budgets) if several else (budgets,)
    wrong = [one for one in found if not isinstance(one, Budget)]
    if wrong or not found:
        raise InputError(
            f"budgets is {wrong[0] if wrong else found!r}; write for example [Budget(macs=0.5), Budget(macs=0.25)]"
        )
    return found


def _runtime(budgets: Sequence[Budget], runtime: str | Runtime | None) -> Runtime | None:
    """The one runtime of the sweep; None where none is named."""
    named = [Runtime.of(budget.runtime) for budget in budgets if budget.timed]
    named += [] if runtime is None else [Runtime.of(runtime)]
    different = list(dict.fromkeys(named))
    if len(different) > 1:
        raise InputError(
            f"a sweep is on one runtime, and {' and '.join(f'({one})' for one in different)} are named: sweep each"
        )
    return different[0] if different else None


def _prices(budget: Budget, forecast: LatencyForecast | None, example_inputs: Any) -> Prices | None:
    """What the budget's latency is chosen by; None where it bounds none."""
    asked = budget.time
    if asked is None or forecast is None:
        return None
    share = asked.value
    if asked.quantity != "latency":
        batch = Runtime.of(budget.runtime).batch or batch_size(example_inputs)
        milliseconds = 1e3 * batch / asked.value if asked.quantity == "throughput" else asked.value
        share = milliseconds / forecast.dense_ms
    return forecast.prices(share if share < 1 else np.inf)


def _point(
    graph: DependencyGraph,
    plan: PruningPlan,
    budget: Budget,
    importance: float,
    forecast: LatencyForecast | None,
) -> SweepPoint:
    point = SweepPoint(budget, plan, importance, plan.remaining)
    if forecast is None:
        return point
    ms = forecast(graph.counts(plan))
    return replace(point, forecast=ms / forecast.dense_ms, forecast_ms=ms)


def _measured(
    model: nn.Module, example_inputs: Any, points: Sequence[SweepPoint], runtime: Runtime
) -> tuple[SweepPoint, ...]:
    """The points with their networks timed by turns with the dense one."""
    cut = [apply_plan(model, point.plan) for point in points if point.plan is not None]
    dense, *times = measure_latency((model, *cut), example_inputs, runtime=runtime)
    left = iter(times)
    found = []
    for point in points:
        if point.plan is not None:
            time = next(left)
            point = replace(point, measured=ratio(time, dense), measurement=time)
        found.append(point)
    return tuple(found)
