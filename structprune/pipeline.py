"""`prune`: the whole way from a model and a budget to a smaller network with its proof."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from structprune.arguments import typed
from structprune.budget import Budget
from structprune.changes import Change, told
from structprune.engines import trace
from structprune.errors import InputError
from structprune.graph import DependencyGraph
from structprune.importance import Criterion, Loss, criterion_name, score
from structprune.inputs import normalize_inputs
from structprune.latency_target import LatencyReport, reach
from structprune.outputs import Outputs
from structprune.plan import PruningPlan
from structprune.refit import RefitReport, readable_again, refit, steps_of, transfer
from structprune.rewriting import rewrite
from structprune.runtime_settings import Runtime
from structprune.runtimes import require_known
from structprune.select import select
from structprune.selection.contract import Prices
from structprune.selectors import module_names
from structprune.sensitivity import Sensitivity, sensitivity
from structprune.subnormals import count_subnormals
from structprune.summary import KindCut, QuantityCut, changes_of, cuts_by_kind, left_whole, quantity_cuts
from structprune.surgery import apply_plan
from structprune.verify import VerifyReport, verify

__all__ = ["LossForecast", "PruneReport", "PruneResult", "prune"]


@dataclass(frozen=True)
class LossForecast:
    """The loss that was forecast for the cut before it was made, and that of the whole network: see `Sensitivity`."""

    loss: str
    whole: float
    cut: float

    def __str__(self) -> str:
        return f"{self.loss} forecast to rise from {self.whole:.4g} to {self.cut:.4g}"


@dataclass(frozen=True)
class PruneReport:
    """What a cut did: params and MACs before and after, what was proven, and what was left whole and why.

    ``kinds`` says how much of each kind (heads, MLP widths, ...) stays; ``changes`` which statistics (norms, softmax,
    means) are taken over fewer channels than before; ``frozen`` names groups that could not be cut, with the reason:
    also those that were asked for, but keep as many channels as one that was not. ``quantities`` are those of the
    budget that are counted, before and after. ``subnormal_weights`` of the pruned network slow many CPUs: they are kept
    as they were, and `flush_subnormals` sets them to zero. ``forecast`` is the loss that was expected of the cut, where
    widths were chosen by it.
    """

    params_before: int
    params_after: int
    macs_before: int
    macs_after: int
    groups_cut: int
    kinds: tuple[KindCut, ...]
    changes: tuple[Change, ...]
    frozen: tuple[tuple[str, str], ...]
    unused: tuple[str, ...]
    verify: VerifyReport | None
    latency: LatencyReport | None = None
    quantities: tuple[QuantityCut, ...] = ()
    refit: RefitReport | None = None
    subnormal_weights: int = 0
    forecast: LossForecast | None = None

    def __str__(self) -> str:
        lines = [
            f"params {self.params_before:,} -> {self.params_after:,} ({self.params_after / self.params_before:.1%})",
            f"MACs   {self.macs_before:,} -> {self.macs_after:,} ({self.macs_after / max(self.macs_before, 1):.1%})",
            *(str(cut) for cut in self.quantities if cut.quantity not in ("params", "macs")),
            f"{self.groups_cut} groups cut, {len(self.frozen)} left whole for a reason",
            str(self.verify) if self.verify else "not verified",
        ]
        if self.kinds:
            lines.insert(-1, "kept   " + "; ".join(map(str, self.kinds)))
        if self.changes:
            lines.append(f"statistics over fewer channels: {told(self.changes)}")
        if self.latency:
            lines.append(str(self.latency))
        if self.forecast:
            lines.append(str(self.forecast))
        if self.refit:
            lines.append(str(self.refit))
        if self.subnormal_weights:
            lines.append(
                f"{self.subnormal_weights:,} weights are subnormal, which slows many CPUs several times: "
                "structprune.flush_subnormals(model) sets them to zero"
            )
        if self.unused:
            lines.append(_unused(self.unused))
        return "\n".join(lines)


def _unused(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return (
        f"not reached by this forward, and left as they are: {', '.join(names[:3])}{more}. Where other inputs or "
        "training reach them, they may no longer fit: trace with inputs that do, or keep= the layers that feed them"
    )


@dataclass(frozen=True)
class PruneResult:
    """A pruned model, the plan that made it, the report, and the sensitivity that widths were chosen by, if any."""

    model: nn.Module
    plan: PruningPlan
    report: PruneReport
    sensitivity: Sensitivity | None = None


@typed
def prune(
    model: nn.Module,
    example_inputs: Any,
    budget: Budget,
    criterion: str | Criterion = "l2",
    *,
    data: Iterable[Any] | None = None,
    loss: Loss | None = None,
    scope: str | None = None,
    multiple_of: int | None = None,
    min_channels: int | dict[str, int] = 1,
    max_pruned: float | dict[str, float] = 1.0,
    keep: str | nn.Module | Iterable[str | nn.Module] = (),
    only: str | nn.Module | Iterable[str | nn.Module] = (),
    seed: int | None = None,
    inplace: bool = False,
    verify: bool = True,
    engine: str = "structprune",
    engine_options: Mapping[str, Any] | None = None,
    ragged: bool = True,
    rewrite: bool = False,
    outputs: Outputs = None,
    calibration: Iterable[Any] | None = None,
    refit: str | Sequence[str] | None = None,
    sensitivity: Sensitivity | bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> PruneResult:
    """Return a smaller network that is proven to compute what the masked original computes.

    ``budget`` is a share of the original network's channels, params, MACs, peak memory or bytes, or several of these:
    of ``model``'s own, or, for a model that was pruned before, of the one it began as. A budget of latency is met by
    measurement on its runtime, beside ``model``; the kernels are profiled first, once for each network and machine, and
    ``progress(done, total)`` is called after each profile. ``keep`` and ``only`` take layer or group names, globs,
    modules, and kinds: ``only="heads"``, ``keep=["residual", "mlp"]`` (`structprune.KINDS`). A layer or group of that
    very name comes first; ``"kind:mlp"`` is the kind all the same. ``verify=False`` skips the proof; with
    ``inplace=True`` the model itself is cut, once the proof holds. Each head and each group of a convolution keeps its
    own channels, as many in all of them; with ``ragged=False`` the same in all. ``engine``, ``engine_options`` and
    ``outputs`` (the parts of the forward's result that count, such as "logits") are those of `trace`. With
    ``rewrite=True`` the model is first made a graph that computes the same (see `rewrite`), where widths that only the
    code ties come free; the result is that graph, pruned.

    ``calibration`` is an iterable of inputs, without labels, on which the pruned network is brought closer to the
    original after the proof, by the steps ``refit`` (see `refit`; all, if left out, and ``()`` for none). ``data`` (the
    same, if left out) and ``loss`` are what criteria from data are worked out on (see `score`); ``seed`` is for those
    that draw, "random" and "hessian".

    ``sensitivity`` chooses the widths of least forecast loss (see `sensitivity`): one that was measured for the same
    scores, or True, to measure it here on ``calibration``, or else ``data``, with ``loss`` or, without it, by how far
    the outputs are from the original's. The result has it, to be saved and used again.

    Raises BudgetError, with the reachable range, TraceError and VerificationError; the model given is then as it was.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> result = prune(net, torch.zeros(1, 4), Budget(channels=0.5))
    >>> result.model[0].weight.shape, result.report.params_after
    (torch.Size([4, 4]), 30)
    """
    if not isinstance(budget, Budget):
        raise InputError(f"budget is {budget!r}; write for example Budget(macs=0.5)")
    require_known(Runtime.of(budget.runtime))
    if rewrite and inplace:
        raise InputError("rewrite=True makes a new module: it cannot be pruned in place")
    example_inputs = normalize_inputs(example_inputs)
    steps = steps_of("all" if refit is None else refit)
    if refit is not None and steps and calibration is None:
        raise InputError(f"{refit=} needs calibration=, the inputs on which the pruned network is refitted")
    if data is calibration:
        data = None  # scores are then worked out on calibration
    if calibration is not None:
        calibration = readable_again(calibration)
    if sensitivity is True and data is not None:  # scores are worked out on it as well
        data = readable_again(data, "data")
    keep, only = module_names(model, keep), module_names(model, only)
    if rewrite:
        model = _rewrite(model, example_inputs)
    graph = trace(model, example_inputs, engine, engine_options, outputs)
    if graph.unused:
        warnings.warn(_unused(graph.unused), stacklevel=3)  # beside what checks the arguments
    options: dict[str, Any] = {} if seed is None else {"seed": seed}
    scores = score(model, graph, criterion, data=calibration if data is None else data, loss=loss, **options)

    losses = _losses(
        sensitivity,
        model,
        graph,
        scores,
        data if calibration is None else calibration,
        loss,
        criterion=criterion,
        keep=keep,
        only=only,
        outputs=outputs,
        progress=progress,
    )

    def choose(prices: Prices | None) -> PruningPlan:
        return select(
            graph,
            scores,
            budget,
            scope,
            multiple_of,
            min_channels,
            max_pruned,
            keep,
            only,
            criterion=criterion_name(criterion),
            ragged=ragged,
            prices=prices,
            sensitivity=losses,
        )

    timed: LatencyReport | None = None
    if budget.timed:
        plan, small, timed = reach(graph, model, example_inputs, budget, choose, progress)
    else:
        plan = choose(None)
        small = apply_plan(model, plan)
    proof = _verify(model, small, plan, example_inputs, outputs) if verify else None
    recovery = None
    if calibration is not None and steps:
        recovery = _refit(model, small, plan, calibration, steps, outputs=outputs)
    expected = None if losses is None else LossForecast(losses.loss, losses.whole, losses.forecast(plan))
    report = _report(
        graph,
        plan,
        left_whole(graph.groups, keep, only),
        proof,
        timed,
        recovery,
        count_subnormals(small),
        expected,
    )
    if not inplace:
        return PruneResult(small, plan, report, losses)
    apply_plan(model, plan, inplace=True)
    if recovery is not None:
        transfer(small, model)
    return PruneResult(model, plan, report, losses)


_verify = verify
_refit = refit
_rewrite = rewrite
_sensitivity = sensitivity


def _losses(
    given: Sensitivity | bool,
    model: nn.Module,
    graph: DependencyGraph,
    scores: dict[str, NDArray[np.float64]],
    data: Iterable[Any] | None,
    loss: Loss | None,
    **options: Any,
) -> Sensitivity | None:
    """The sensitivity that widths are chosen by: the one that is given, or measured here where that is asked for."""
    if isinstance(given, Sensitivity):
        given.require(model)
        return given
    if not given:
        return None
    if data is None:
        raise InputError("sensitivity=True is measured on data: give calibration= or data=")
    return _sensitivity(model, graph, scores, data, loss=loss or "outputs", **options)


def _report(
    graph: DependencyGraph,
    plan: PruningPlan,
    whole: tuple[tuple[str, str], ...],
    proof: VerifyReport | None,
    timed: LatencyReport | None,
    recovery: RefitReport | None,
    subnormals: int,
    expected: LossForecast | None,
) -> PruneReport:
    before = graph.sizes()
    after = graph.counts(plan)
    return PruneReport(
        params_before=round(graph.price("params", before)),
        params_after=round(graph.price("params", after)),
        macs_before=round(graph.price("macs", before)),
        macs_after=round(graph.price("macs", after)),
        groups_cut=int((after < before).sum()),
        kinds=cuts_by_kind(graph.groups, after.tolist()),
        changes=changes_of(graph.groups, after.tolist()),
        frozen=whole,
        unused=graph.unused,
        verify=proof,
        latency=timed,
        quantities=() if plan.budget is None else quantity_cuts(graph, plan.budget, after),
        refit=recovery,
        subnormal_weights=subnormals,
        forecast=expected,
    )
