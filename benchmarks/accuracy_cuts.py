"""One trained network, cut to a share of its MACs by both tools, and what becomes of each cut.

structprune's cuts are what `sp.prune` makes by default (its steps one by one, so that a network is traced and scored
once): at most the share. torch-pruning's are the nearest that
bisection over its `pruning_ratio` finds, widths not rounded, so a little above or below; each row says where it stands.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import structprune as sp
from benchmarks.by_torch_pruning import Cut, Mode, cut, nearest
from structprune.train import evaluate, finetune

__all__ = ["MEASURED", "OURS", "STEPS", "THEIRS", "Bench", "mean_gradients", "square_gradients"]

OURS = (
    *("random", "l1", "l2", "linf", "bn_scale", "fpgm", "lamp"),
    *("wanda", "obs", "taylor", "snip", "fisher", "hessian"),
)
MEASURED = ("l2", "taylor")
"""Criteria with which widths are chosen by sensitivity as well."""
STEPS = ("bn", "fold", "all")
Row = dict[str, Any]
Batches = list[tuple[Tensor, Tensor]]


def mean_gradients(model: nn.Module, batches: Batches) -> dict[str, Tensor]:
    """The gradient of the mean loss: what torch-pruning's Taylor criterion reads."""
    own = copy.deepcopy(model).eval().requires_grad_(True)
    for inputs, targets in batches:
        torch.autograd.backward(F.cross_entropy(own(inputs), targets))
    return {name: parameter.grad for name, parameter in own.named_parameters() if parameter.grad is not None}


def square_gradients(model: nn.Module, batches: Batches) -> dict[str, Tensor]:
    """The mean square of each sample's gradient: what torch-pruning's Hessian criterion stands for.

    Its own `accumulate_grad` (1.6.1) keeps the last sample's alone, since it looks parameters up by name and stores
    them by identity; the sum is made here for it.
    """
    own = copy.deepcopy(model).eval().requires_grad_(True)
    parameters, count = dict(own.named_parameters()), sum(len(inputs) for inputs, _ in batches)
    sums = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    for inputs, targets in batches:
        for one, target in zip(torch.split(inputs, 1), torch.split(targets, 1), strict=True):
            found = torch.autograd.grad(F.cross_entropy(own(one), target), list(parameters.values()))
            for total, gradient in zip(sums.values(), found, strict=True):
                total += gradient.square() / count
    return sums


THEIRS: Mapping[str, tuple[Callable[[], Any], Callable[[nn.Module, Batches], dict[str, Tensor]] | None]] = {
    "random": (tp.importance.RandomImportance, None),
    "l1": (partial(tp.importance.GroupMagnitudeImportance, p=1), None),
    "l2": (partial(tp.importance.GroupMagnitudeImportance, p=2), None),
    "bn_scale": (tp.importance.BNScaleImportance, None),
    "fpgm": (tp.importance.FPGMImportance, None),
    "lamp": (tp.importance.LAMPImportance, None),
    "taylor": (tp.importance.GroupTaylorImportance, mean_gradients),
    "hessian": (tp.importance.GroupHessianImportance, square_gradients),
}
"""torch-pruning's criteria by our names (its Hessian is a Fisher diagonal), and the gradients that they read."""

_MODES = (Mode("uniform", False, 1), Mode("global", True, 1))
_FAR = 0.05


@dataclass
class Bench:
    """A trained network with its data, the recipe of fine-tuning, and the images that cuts are worked out on."""

    model: nn.Module
    train: TensorDataset
    test: TensorDataset
    calibration: Batches
    recipe: Mapping[str, Any] | None  #: None: nothing is fine-tuned
    seed: int
    quantity: str = "macs"  #: what is cut to a share
    only: tuple[str, ...] = ()  #: kinds that are cut
    scores: dict[str, Any] = field(default_factory=dict)
    losses: dict[str, sp.Sensitivity] = field(default_factory=dict)
    gradients: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    ratios: dict[float, float] = field(default_factory=dict)  #: of uniform cuts, whatever the criterion

    @property
    def example(self) -> Tensor:
        return self.test.tensors[0][:1].clone()

    @cached_property
    def graph(self) -> sp.DependencyGraph:
        return sp.trace(self.model, self.example)

    def ours(self, share: float, criterion: str, mode: str = "default") -> Iterator[Row]:
        """structprune's cut after each step; none where the network has nothing that the criterion reads.

        The mode says how widths are chosen: by `select`'s defaults, or by "sensitivity".
        """
        scores = self._scores(criterion)
        if scores is None:
            return
        alike = self.quantity == "channels" and mode == "default"  # each group by itself keeps the share
        budget = sp.Budget(channels=share) if alike else sp.Budget(macs=share)
        losses = self._sensitivity(criterion, scores) if mode == "sensitivity" else None
        plan = sp.select(self.graph, scores, budget, only=self.only, criterion=criterion, sensitivity=losses)
        stages = {"cut": sp.apply_plan(self.model, plan)}
        for step in STEPS:
            stages[step] = copy.deepcopy(stages["cut"])
            sp.refit(self.model, stages[step], plan, [inputs for inputs, _ in self.calibration], step)
        found = {name: evaluate(model, self.test) for name, model in stages.items()}
        for name in ("cut", "all") if self.recipe is not None else ():
            found[f"{name}, tuned"] = self._tuned(stages[name])
        yield self._row(mode, stages["cut"]) | found

    def theirs(self, share: float, criterion: str) -> Iterator[Row]:
        """torch-pruning's cuts, uniform and global; those that come within 5 % of the share."""
        make, collect = THEIRS[criterion]
        if collect is not None and criterion not in self.gradients:
            self.gradients[criterion] = collect(self.model, self.calibration)
        for mode in _MODES:
            at = partial(self._cut, mode, make, self.gradients.get(criterion))
            if mode.global_pruning or share not in self.ratios:
                found = nearest(at, lambda made: self._macs(made.model), share)
            else:
                found = at(self.ratios[share])
            row = self._row(mode.name, found.model)
            if abs(row["macs"] - share) > _FAR * share:
                continue  # nothing that it can rank makes up for that much
            if not mode.global_pruning:
                self.ratios[share] = found.pruning_ratio
            yield row | {"cut": evaluate(found.model, self.test), "cut, tuned": self._tuned(found.model)}

    def _scores(self, criterion: str) -> Any:
        if criterion not in self.scores:
            options: dict[str, Any] = {"seed": self.seed} if criterion in ("random", "hessian") else {}
            try:
                found = sp.score(self.model, self.graph, criterion, data=self.calibration, **options)
            except sp.InputError as error:
                if "no free group of this model has one" not in str(error):
                    raise
                found = None
            self.scores[criterion] = found
        return self.scores[criterion]

    def _sensitivity(self, criterion: str, scores: Any) -> sp.Sensitivity:
        """Measured on the calibration images, without their labels."""
        if criterion not in self.losses:
            inputs = [inputs for inputs, _ in self.calibration]
            self.losses[criterion] = sp.sensitivity(self.model, self.graph, scores, inputs, only=self.only)
        return self.losses[criterion]

    def _cut(
        self, mode: Mode, make: Callable[[], Any], gradients: dict[str, Tensor] | None, ratio: float
    ) -> Cut:
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(self.seed)
            return cut(self.model, ((self.example,), {}), mode, ratio, make(), gradients)

    def _macs(self, model: nn.Module) -> float:
        return sp.count_macs(model, self.example) / self.graph.price("macs", self.graph.sizes())

    def _row(self, mode: str, model: nn.Module) -> Row:
        return {"mode": mode, "macs": self._macs(model)}

    def _tuned(self, model: nn.Module) -> float:
        tuned = copy.deepcopy(model)
        finetune(tuned, self.train, seed=self.seed, **(self.recipe or {}))
        return evaluate(tuned, self.test)
