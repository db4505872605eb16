"""One trained network, cut by torch-pruning and by structprune to the same latency and to the same MACs.

Each of torch-pruning's cuts is the nearest that it has to the share that is asked for, and is measured beside the dense
network. structprune's own is what `prune` makes of a budget of the share that was *measured*: whatever torch-pruning's
rounding leaves it with, ours is given as much. All are measured once more, by turns in one call. The cut at equal MACs
is structprune's choice by latency, at the least latency at which it has as many MACs as torch-pruning's or more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor, nn

import structprune as sp
from benchmarks.by_torch_pruning import MODES, Cut, Mode, cut, nearest, plan_of
from structprune.latency import ratio

__all__ = ["Candidate", "Pair", "Workbench"]

_HALVINGS = 9
_BELOW = 0.995  # of the share that was measured: what is measured again differs by as much


@dataclass
class Candidate:
    """A cut, and what became of it; the same plan is one candidate, however often it comes up."""

    plan: sp.PruningPlan
    model: nn.Module
    macs: float  #: share of the dense network's
    importance: dict[str, float]  #: kept shares, by how they are added up
    latency: dict[str, Any] = field(default_factory=dict)
    accuracy: list[float] = field(default_factory=list)  #: after the cut, then after each epoch
    refitted: list[float] = field(default_factory=list)  #: the same, where `refit` came before the epochs


@dataclass(frozen=True)
class Pair:
    """torch-pruning's cut, structprune's at its latency, and structprune's at its MACs; None: out of reach."""

    mode: str
    share: float
    theirs: Candidate
    ours: Candidate | None
    equal_macs: Candidate | None


class Workbench:
    """Makes the candidates of one trained network, each distinct cut once."""

    def __init__(
        self, model: nn.Module, x: Tensor, runtime: sp.Runtime, rounds: int, min_time: float
    ) -> None:
        self.model, self.x, self.runtime = model.eval(), x, runtime
        self.rounds, self.min_time = rounds, min_time
        self.forecast = sp.forecast_latency(self.model, x, runtime=runtime)
        self.graph = self.forecast.graph
        self.scores = sp.score(self.model, self.graph, "l2")
        self.made: dict[Any, Candidate] = {}

    def pairs(self, shares: Sequence[float], modes: Sequence[Mode] = MODES) -> list[Pair]:
        """All pairs, measured by turns in one call at the end."""
        theirs = [(mode, share, self._theirs(mode, share)) for share in shares for mode in modes]
        self._measure()
        distinct = {id(candidate): candidate for _, _, candidate in theirs}
        ours = {place: self._reached(one) for place, one in distinct.items()}
        alike = {place: self._equal_macs(one) for place, one in distinct.items()}
        self._measure()
        return [Pair(mode.name, share, one, ours[id(one)], alike[id(one)]) for mode, share, one in theirs]

    def _theirs(self, mode: Mode, share: float) -> Candidate:
        at = partial(cut, self.model, ((self.x[:1],), {}), mode)
        wanted = share * self.forecast(self.graph.sizes())

        def forecast(made: Cut) -> float:
            return self.forecast(self.graph.counts(plan_of(self.graph, made.history)))

        return self._candidate(plan_of(self.graph, nearest(at, forecast, wanted).history))

    def _reached(self, theirs: Candidate) -> Candidate | None:
        """What `prune` makes of the latency that theirs takes; None where that is out of reach."""
        share = min(theirs.latency["ratio"] * _BELOW, 1.0)
        try:
            found = sp.prune(
                self.model, self.x, sp.Budget(latency=share, runtime=self.runtime), "l2", verify=False
            )
        except sp.BudgetError:
            return None
        return self._candidate(found.plan)

    def _select(self, share: float) -> sp.PruningPlan | None:
        """The plan for a share of the forecast latency; None where no widths are so fast."""
        share = min(share, 1.0)
        budget = sp.Budget(latency=share, runtime=self.runtime)
        try:
            return sp.select(self.graph, self.scores, budget, prices=self.forecast.prices(share))
        except sp.BudgetError:
            return None

    def _equal_macs(self, theirs: Candidate) -> Candidate | None:
        low, high, found = 0.0, 1.0, None
        for _ in range(_HALVINGS):
            share = (low + high) / 2
            plan = self._select(share)
            if plan is None:
                low = share
                continue
            if self._macs(plan) >= theirs.macs:
                high, found = share, plan
            else:
                low = share
        return None if found is None else self._candidate(found)

    def _candidate(self, plan: sp.PruningPlan) -> Candidate:
        key = tuple((group.name, group.keep) for group in plan.groups)
        if key not in self.made:
            model = sp.apply_plan(self.model, plan)
            self.made[key] = Candidate(plan, model, self._macs(plan), self._kept(plan))
        return self.made[key]

    def _macs(self, plan: sp.PruningPlan) -> float:
        whole = self.graph.price("macs", self.graph.sizes())
        return float(self.graph.price("macs", self.graph.counts(plan)) / whole)

    def _kept(self, plan: sp.PruningPlan) -> dict[str, float]:
        """Kept importance: of all channels, each group's scores over their mean; and as the mean over groups that
        `select` looks for, harmonic and weighted by MACs. (Networks chosen for the first are the less accurate ones.)
        """
        keep = {group.name: np.array(group.keep, dtype=np.int64) for group in plan.groups}
        governed = self.graph.governed("macs")
        sizes, shares, weights = [], [], []
        for group, weight in zip(self.graph.groups, governed, strict=True):
            if group.frozen is None:
                scores = self.scores[group.name]
                kept = scores[keep[group.name]] if group.name in keep else scores
                sizes.append(group.size)
                shares.append(kept.sum() / scores.sum())
                weights.append(weight)
        return {
            "channels": float(np.average(shares, weights=sizes)),
            "harmonic": float(1 / np.average(1 / np.array(shares), weights=weights)),
        }

    def _measure(self) -> None:
        candidates = list(self.made.values())
        models = {"dense": self.model} | {str(n): one.model for n, one in enumerate(candidates)}
        measured = sp.measure_latency(
            models, self.x, runtime=self.runtime, repeats=self.rounds, min_time=self.min_time
        )
        for number, candidate in enumerate(candidates):
            own = measured[str(number)]
            compared = ratio(own, measured["dense"])
            candidate.latency = {
                "ratio": compared.value,
                "interval": [compared.low, compared.high],
                "median_ms": own.median_ms,
                "times_ms": [round(ms, 6) for ms in own.times_ms],
                "unstable": own.unstable,
            }
