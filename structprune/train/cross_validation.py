"""Cross-validation: how strong a penalty, and how far to cut, chosen on data that the network was not trained on."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset, Subset

from structprune.arguments import typed
from structprune.budget import Budget
from structprune.engines import trace
from structprune.errors import InputError
from structprune.graph import DependencyGraph
from structprune.importance import Criterion, criterion_name, score
from structprune.plan import PruningPlan
from structprune.select import select
from structprune.surgery import apply_plan
from structprune.train.candidates import Candidate, CrossValidation, Trial
from structprune.train.evaluation import Metric, evaluate, measured
from structprune.train.folds import Splitter, folds_of
from structprune.train.hooks import Hook, listed
from structprune.train.loop import finetune
from structprune.train.penalties import GroupLasso
from structprune.train.zeros import zero_plan

__all__ = ["cross_validate"]

MakePenalty = Callable[[DependencyGraph, float], Hook]


@typed
def cross_validate(
    model: nn.Module,
    data: Dataset[Any],
    example_inputs: Any,
    *,
    strengths: Iterable[float],
    thresholds: Iterable[float] = (),
    budgets: Iterable[Budget] = (),
    penalty: MakePenalty = GroupLasso,
    folds: int | Splitter | Iterable[tuple[Any, Any]] = 5,
    criterion: str | Criterion = "l2",
    cut: dict[str, Any] | None = None,
    metric: Metric = evaluate,
    epochs_after: int = 0,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    **training: Any,
) -> CrossValidation:
    """A table of how every strength of a penalty does together with every threshold or budget, on data held out.

    For each fold and strength a copy of `model` is trained by `finetune(**training)` (`epochs=`, `lr=`, ...) on the
    other folds, with `penalty(graph, strength)` as a hook (none at strength 0). It is then cut at each of `thresholds`
    (by `zero_plan`) or to each of `budgets` (by `select`; one of the two is to be given), with `criterion` and the
    options `cut` of these functions, trained for `epochs_after` more epochs without penalty, and judged on the fold by
    `metric(model, dataset)`, of which more is better. `.best` has the highest mean; `.chosen` is the smallest network
    whose mean is within one standard error of it (Breiman, Friedman, Olshen, Stone: Classification and Regression
    Trees, 1984, section 3.4.3).

    `data` yields `(input, target)` and knows its length. `folds` is a number (stratified by class where the targets
    are integers, else at random, drawn from `seed`), a splitter of scikit-learn, or pairs of indices. All candidates
    see the same folds and the same `seed`; the model given and torch's random state stay as they are.

    Raises InputError for a bad argument, for a metric that is not a finite number, at the first fold where it is none,
    and if scikit-learn is missing; what `finetune`, `select` and `zero_plan` do.
    """
    strengths, thresholds = list(map(float, strengths)), list(map(float, thresholds))
    cuts: list[float | Budget] = [*thresholds, *budgets]
    if not cuts or 0 < len(thresholds) < len(cuts):
        raise InputError("give thresholds= or budgets=, at least one and not both")
    if not strengths or len(set(strengths)) < len(strengths):
        raise InputError(f"{strengths=}: expected at least one, each once")
    if wrong := [threshold for threshold in thresholds if not 0 <= threshold < float("inf")]:
        raise InputError(f"thresholds: {wrong[0]} is not a finite number of 0 or more")
    graph = trace(model, example_inputs)
    work = _Work(
        model, data, graph, penalty, criterion, cut or {}, metric, epochs_after, {**training, "seed": seed}
    )
    parts = folds_of(data, folds, seed)
    trials: dict[tuple[float, int], list[Trial]] = {}
    tasks = [(fold, strength) for fold in parts for strength in strengths]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for done, (fold, strength) in enumerate(tasks, start=1):
            where = f"fold {(done - 1) // len(strengths) + 1} of {len(parts)}"
            for number, trial in enumerate(work.trials(strength, cuts, *fold, where)):
                trials.setdefault((strength, number), []).append(trial)
            if progress is not None:
                progress(done, len(tasks))
    return CrossValidation(
        tuple(Candidate(strength, cuts[number], tuple(found)) for (strength, number), found in trials.items())
    )


@dataclass(frozen=True)
class _Work:
    """What is the same for all candidates."""

    model: nn.Module
    data: Dataset[Any]
    graph: DependencyGraph
    penalty: MakePenalty
    criterion: str | Criterion
    cut: dict[str, Any]
    metric: Metric
    epochs_after: int
    training: dict[str, Any] = field(default_factory=dict)

    def trials(
        self,
        strength: float,
        cuts: Sequence[float | Budget],
        inside: np.ndarray,
        outside: np.ndarray,
        where: str,
    ) -> list[Trial]:
        """One network trained with the penalty, and what each cut makes of it."""
        model = copy.deepcopy(self.model)
        train, held = Subset(self.data, inside.tolist()), Subset(self.data, outside.tolist())
        hooks = [*listed(self.training.get("hooks", ()))]
        hooks += [self.penalty(self.graph, strength)] if strength else []
        finetune(model, train, **{**self.training, "hooks": hooks})
        found = []
        for cut in cuts:
            plan = self.plan(model, cut)
            small = apply_plan(model, plan)
            if self.epochs_after:
                finetune(small, train, **{**self.training, "epochs": self.epochs_after, "hooks": ()})
            worth = self.worth(small, held, f"on {where}, strength {strength:g}, cut {cut}")
            left = plan.remaining
            found.append(Trial(worth, left.get("params", 1.0), left.get("macs", 1.0)))
        return found

    def worth(self, model: nn.Module, held: Dataset[Any], where: str) -> float:
        """The metric on what was held out; means and deviations need it finite."""
        worth = measured(self.metric(model, held), f"what metric= returns {where}")
        if not math.isfinite(worth):
            raise InputError(
                f"metric= returns {worth} {where}: candidates cannot be compared by it; train with a lower lr=, give "
                "milder strengths or cuts, or a metric= that is finite for every network"
            )
        return worth

    def plan(self, model: nn.Module, cut: float | Budget) -> PruningPlan:
        if not isinstance(cut, Budget):
            return zero_plan(self.graph, model, cut, criterion=self.criterion, **self.cut)
        scores = score(model, self.graph, self.criterion)
        return select(self.graph, scores, cut, criterion=criterion_name(self.criterion), **self.cut)
