"""What cross-validation found: candidates, their scores, and the choice among them."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Any

from structprune.budget import Budget

__all__ = ["Candidate", "CrossValidation", "Trial"]


@dataclass(frozen=True)
class Trial:
    """One fold: the metric on what was held out, and the shares of parameters and MACs that were left."""

    metric: float
    params: float
    macs: float


@dataclass(frozen=True)
class Candidate:
    """A strength of the penalty and a cut, with one trial for each fold."""

    strength: float
    cut: float | Budget  #: a threshold, or a budget
    trials: tuple[Trial, ...]

    @property
    def mean(self) -> float:
        """The metric's mean over the folds."""
        return statistics.fmean(trial.metric for trial in self.trials)

    @property
    def std(self) -> float:
        """The metric's standard deviation between folds, of a sample."""
        return statistics.stdev(trial.metric for trial in self.trials)

    @property
    def error(self) -> float:
        """The standard error of the mean. Folds share training data, so it is an estimate from below."""
        return self.std / math.sqrt(len(self.trials))

    @property
    def params(self) -> float:
        """The share of the parameters that is left, mean over the folds."""
        return statistics.fmean(trial.params for trial in self.trials)

    @property
    def macs(self) -> float:
        """The share of the MACs that is left, mean over the folds."""
        return statistics.fmean(trial.macs for trial in self.trials)


@dataclass(frozen=True)
class CrossValidation:
    """The candidates of a cross-validation, in the order in which they were given; prints as a table."""

    candidates: tuple[Candidate, ...]

    @property
    def best(self) -> Candidate:
        """The candidate with the highest mean; of equal ones the smallest network."""
        return max(self.candidates, key=lambda one: (one.mean, -one.params, -one.macs))

    @property
    def chosen(self) -> Candidate:
        """The smallest network, by its parameters, whose mean is within one standard error of the best one's."""
        least = self.best.mean - self.best.error
        near = [one for one in self.candidates if one.mean >= least]
        return min(near, key=lambda one: (one.params, one.macs, -one.mean))

    def rows(self) -> list[dict[str, Any]]:
        """One plain dict for each candidate: what JSON, or a data frame, is made of."""
        best, chosen = self.best, self.chosen
        return [
            {
                "strength": one.strength,
                "cut": str(one.cut) if isinstance(one.cut, Budget) else one.cut,
                "mean": one.mean,
                "std": one.std,
                "error": one.error,
                "params": one.params,
                "macs": one.macs,
                "metrics": [trial.metric for trial in one.trials],
                "best": one is best,
                "chosen": one is chosen,
            }
            for one in self.candidates
        ]

    def __str__(self) -> str:
        width = max(len("cut"), *(len(_cut(one)) for one in self.candidates))
        lines = [f"{'strength':>9}  {'cut':<{width}}  {'mean':>7} {'std':>7}  {'params':>7} {'MACs':>7}"]
        for one in self.candidates:
            marks = [word for word, found in (("best", self.best), ("chosen", self.chosen)) if one is found]
            line = f"{one.strength:>9.3g}  {_cut(one):<{width}}  {one.mean:>7.4f} {one.std:>7.4f}  "
            lines.append(f"{line}{one.params:>7.1%} {one.macs:>7.1%}  {', '.join(marks)}".rstrip())
        return "\n".join(lines)


def _cut(candidate: Candidate) -> str:
    return str(candidate.cut) if isinstance(candidate.cut, Budget) else f"{candidate.cut:g}"
