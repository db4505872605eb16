"""Early stopping: training ends when nothing gets better, and the best weights come back."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import takewhile
from typing import Any

from torch import Tensor

from structprune.arguments import typed
from structprune.errors import InputError
from structprune.plan import PruningPlan
from structprune.train.hooks import Hook, Metrics, Run

__all__ = ["EarlyStopping"]

_LOWER = ("loss", "error", "perplexity")  # how names of metrics end that are better the lower they are


class EarlyStopping(Hook):
    """Ends the run after `patience` epochs without a better `metric`, and hands back the weights of the best epoch.

    `metric` is a name in the epoch's metrics: "accuracy" (what `finetune` measures on `validation`), "metric" (a
    measure of your own), "loss", or what another hook adds. A name that ends in "loss", "error" or "perplexity"
    ("eval_loss", say) is better lower, any other higher; `lower=True` or `False` says it of any name. By less than
    `min_delta` does not count, and NaN is worse than any number. Of equal epochs the first is the best. `best_epoch`
    and `best` tell it afterwards (0 and None where all were NaN: the last weights stay then). With `restore=False` the
    last weights stay. After a cut it begins anew. Raises `InputError` for values out of range, and where there is no
    such metric: before the first step of `finetune` where nothing can give it, else after the epoch that lacks it.
    """

    @typed
    def __init__(
        self,
        patience: int,
        *,
        metric: str = "accuracy",
        lower: bool | None = None,
        min_delta: float = 0.0,
        restore: bool = True,
    ) -> None:
        if patience < 1:
            raise InputError(f"{patience=}: must be at least 1")
        if not min_delta >= 0:
            raise InputError(f"{min_delta=}: must be 0 or more")
        self.patience, self.metric = patience, metric
        self.lower = metric.lower().endswith(_LOWER) if lower is None else lower
        self.min_delta, self.restore = min_delta, restore
        self._begin()

    def _begin(self) -> None:
        self.best: float | None = None
        self.best_epoch = 0
        self._waited = 0
        self._weights: dict[str, Tensor] = {}

    def describe(self) -> dict[str, Any]:
        names = ("patience", "metric", "lower", "min_delta", "restore")
        return {name: getattr(self, name) for name in names}

    def on_start(self, run: Run) -> None:
        if run.epoch == 0:  # else the run goes on from a state, and so does this
            self._begin()
        if run.measures and not self._may_be_given(run):
            self._require(run.measures)

    def _may_be_given(self, run: Run) -> bool:
        """Whether a hook that comes before this one does anything after an epoch: it may add the metric."""
        first = takewhile(lambda hook: hook is not self, run.hooks)
        return any(getattr(hook.after_epoch, "__func__", None) is not Hook.after_epoch for hook in first)

    def _require(self, metrics: Iterable[str]) -> None:
        if self.metric not in metrics:
            raise InputError(
                f"early stopping by {self.metric!r}: the epoch has {', '.join(metrics)}; give finetune validation=, "
                "or name one of these"
            )

    def after_epoch(self, run: Run, metrics: Metrics) -> None:
        self._require(metrics)
        value = -metrics[self.metric] if self.lower else metrics[self.metric]
        best = None if self.best is None else -self.best if self.lower else self.best
        if not math.isnan(value) and (best is None or value > best + self.min_delta):
            self.best, self.best_epoch, self._waited = metrics[self.metric], run.epoch, 0
            if self.restore:
                self._weights = {name: t.detach().clone() for name, t in run.model.state_dict().items()}
            return
        self._waited += 1
        if self._waited >= self.patience:
            run.stop()

    def after_cut(self, run: Run, plan: PruningPlan) -> None:
        self._begin()  # weights of other shapes cannot come back, and the smaller network is another one

    def on_end(self, run: Run) -> None:
        if self._weights and run.epoch != self.best_epoch:
            run.model.load_state_dict(self._weights)
        self._weights = {}

    def state_dict(self) -> dict[str, Any]:
        told = {"best": self.best, "best_epoch": self.best_epoch, "waited": self._waited}
        return {**told, "weights": dict(self._weights)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.best, self.best_epoch, self._waited = state["best"], state["best_epoch"], state["waited"]
        self._weights = {name: tensor.clone() for name, tensor in state["weights"].items()}
