"""What each step of a recipe does: to the network, to the folder, and what it has to report."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import singledispatchmethod
from typing import Any

from torch import nn

from structprune.engines import trace
from structprune.export import export_onnx
from structprune.history import masked, model_state
from structprune.latency import measure_latency, ratio
from structprune.masking import finalize, nonzeros, sparsify
from structprune.masking.mask import put_mask
from structprune.masking.targets import all_targets
from structprune.measure import count_params
from structprune.pipeline import PruneResult, prune
from structprune.recipes.cuts import Cutting, Prune, PruneGradually
from structprune.recipes.data import Data
from structprune.recipes.fields import names
from structprune.recipes.folder import RunFolder
from structprune.recipes.functions import function
from structprune.recipes.keepers import EpochKeeper, StateKeeper
from structprune.recipes.lines import EpochLines
from structprune.recipes.recipe import Recipe
from structprune.recipes.state import Network
from structprune.recipes.steps import Evaluate, Export, Measure, Sparsify, Train, kind_of
from structprune.recipes.training import Distill, Training, metric_of
from structprune.sensitivity import Sensitivity
from structprune.surgery import apply_plan
from structprune.train import (
    Distillation,
    EarlyStopping,
    Hook,
    evaluate,
    finetune,
    prune_gradually,
)
from structprune.train.evaluation import measured

__all__ = ["Work"]

Record = dict[str, Any]


@dataclass
class Work:
    """A run at work: `do` does one step, changes the network, and gives what is to be reported."""

    recipe: Recipe
    network: Network
    folder: RunFolder
    example: Any
    data: Data | None
    progress: Callable[[int, int], None]
    run: Mapping[str, Any] | None = None
    """The state of a training run that was under way; the first step that is done takes it up."""

    @singledispatchmethod
    def do(self, step: Any) -> Record:
        """What the step has to report, once it is done."""
        raise NotImplementedError(type(step))

    @do.register
    def _train(self, step: Train) -> Record:
        options, model = step.options(self.recipe.seed, self.recipe.base), self.network.model
        stopping = None if step.early_stopping is None else step.early_stopping.hook()
        hooks = [
            *self._hooks(step, kind_of(step), model, stopping),
            StateKeeper(self.network, self.folder, self.run),
        ]
        log = finetune(model, self._data.train, **vars(options), **self._training(step), hooks=hooks)
        self.run = None
        return {"epochs": log, **({} if stopping is None else {"best_epoch": stopping.best_epoch})}

    @do.register
    def _prune(self, step: Prune) -> Record:
        self._keep_dense()
        network, masks = self.network, masked(self.network.model)
        plain = network.plain()
        result = prune(
            plain,
            self.example,
            step.budget.make(),
            **self._cutting(step),
            **self._pruning(step),
            sensitivity=self._sensitivity(step),
            progress=self.progress,
        )
        if step.sensitivity is True and result.sensitivity is not None:
            result.sensitivity.save(self.folder.sensitivity(network.step))
        network.model = _masked_again(network.model, plain, result, masks) if masks else result.model
        network.plans = (*network.plans, result.plan)
        return _pruned(result)

    @do.register
    def _prune_gradually(self, step: PruneGradually) -> Record:
        self._keep_dense()
        network, asked, base = self.network, step.train, self.recipe.base
        stopping = None if asked.early_stopping is None else asked.early_stopping.hook()
        keeper = EpochKeeper(self.folder.gradual_epoch(network.step), self.folder.notes)
        result = prune_gradually(
            network.model,
            self.example,
            step.budget.make(),
            self._data.train,
            asked.options(self.recipe.seed, base),
            schedule=step.schedule.make(),
            **self._cutting(step),
            validation=self._data.validation,
            metric=asked.own_metric(base),
            floor=step.floor,
            max_drop=step.max_drop,
            final_epochs=step.final_epochs,
            rewind=step.rewind,
            carry=step.carry,
            hooks=lambda model: [*self._hooks(asked, kind_of(step), model, stopping), keeper],
            pruning={**self._pruning(step), "sensitivity": step.sensitivity},
            training=self._training(asked),
            checkpoint=self.folder.gradual(network.step),
        )
        network.model, network.plans = result.model, (*network.plans, *result.plans)
        return {"reached": result.reached, "cuts": [asdict(each) for each in result.steps]}

    @do.register
    def _sparsify(self, step: Sparsify) -> Record:
        self._keep_dense()
        network = self.network
        network.model = sparsify(
            network.model,
            step.sparsity,
            threshold=step.threshold,
            scope=step.scope,
            criterion=step.criterion,
            keep=names(step.keep),
            only=names(step.only),
            seed=self._seed(step),
        )
        plain = finalize(network.model)
        return {"params": count_params(plain), "nonzeros": nonzeros(plain)}

    @do.register
    def _evaluate(self, step: Evaluate) -> Record:
        model, data = self.network.model, getattr(self._data, step.data)
        if step.metric is None:
            return {"data": step.data, "accuracy": evaluate(model, data, batch_size=step.batch_size)}
        metric = metric_of(step.metric, self.recipe.base)
        return {"data": step.data, "metric": measured(metric(model, data), "what metric: returns")}

    @do.register
    def _export(self, step: Export) -> Record:
        report = export_onnx(
            self.network.model,
            self.example,
            self.folder.path / step.file,
            opset=step.opset,
            dynamic_batch=step.dynamic_batch,
            plan=self.network.plans or None,
        )
        return {"file": step.file, "bytes": report.bytes, "error": max(report.errors.values())}

    @do.register
    def _measure(self, step: Measure) -> Record:
        plain = self.network.plain()
        models = {"now": plain}
        if self.network.cut:
            models = {"dense": self.network.dense(self.folder.dense()), "now": plain}
        times = measure_latency(
            models, self.example, runtime=step.on(), repeats=step.repeats, min_time=step.min_time
        )
        record: Record = {name: time.to_dict() for name, time in times.items()}
        if "dense" in times:
            record["ratio"] = asdict(ratio(times["now"], times["dense"]))
        return record

    def _cutting(self, step: Cutting) -> dict[str, Any]:
        """The criterion, and the batches for it and for refitting."""
        return {
            "criterion": step.by(self.recipe.base),
            "data": self._drawn(step.data, step),
            "calibration": self._drawn(step.calibration, step),
        }

    def _pruning(self, step: Cutting) -> dict[str, Any]:
        """What `prune` takes beside budget, criterion and data."""
        return {
            "loss": None if step.loss is None else function(step.loss, self.recipe.base, "loss"),
            "refit": step.refit,
            "scope": step.scope,
            **step.widths(),
            "seed": self._seed(step) if step.draws(self.recipe.base) else None,
            "verify": step.verify,
            "engine": step.engine,
            "outputs": step.outputs,
        }

    def _sensitivity(self, step: Prune) -> Sensitivity | bool:
        given = step.sensitivity
        return given if isinstance(given, bool) else Sensitivity.load(self.recipe.base / given)

    def _training(self, asked: Training) -> dict[str, Any]:
        """What `finetune` takes beside data, options and hooks."""
        return {
            "loss": asked.own_loss(self.recipe.base),
            "metric": asked.own_metric(self.recipe.base),
            "validation": self._data.validation,
            "progress": self.progress,
            "distillation": None if asked.distillation is None else self._teacher(asked.distillation),
        }

    def _hooks(
        self, asked: Training, name: str, model: nn.Module, stopping: EarlyStopping | None
    ) -> list[Hook]:
        """Penalties for this network, then what writes down and judges what the others have measured."""
        last = [] if stopping is None else [stopping]
        return [
            *self._penalties(asked, model),
            EpochLines(self.folder.lines, self.network.step + 1, name),
            *last,
        ]

    def _penalties(self, asked: Training, model: nn.Module) -> list[Hook]:
        return [] if asked.penalty is None else [asked.penalty.by(trace(model, self.example))]

    def _teacher(self, asked: Distill) -> Distillation:
        dense = self.network.dense(self.folder.dense())
        return asked.by(dense, self.network.plans, self.recipe.base)

    @property
    def _data(self) -> Data:
        assert self.data is not None  # the recipe is checked for that
        return self.data

    def _seed(self, step: Cutting | Sparsify) -> int:
        return self.recipe.seed if step.seed is None else step.seed

    def _drawn(self, samples: Any, step: Cutting) -> Iterable[Any] | None:
        return None if samples is None else samples.draw(self._data.train, self._seed(step))

    def _keep_dense(self) -> None:
        if not self.network.cut:
            self.folder.keep_dense(model_state(self.network.model))


def _masked_again(
    before: nn.Module, plain: nn.Module, result: PruneResult, masks: Iterable[str]
) -> nn.Module:
    """The cut network with the masks of the one before, cut along: what a refit made of removed weights is zero."""
    ones = copy.deepcopy(plain)
    kept = {target.name: target for target in all_targets(before)}
    wanted = set(masks)
    for target in all_targets(ones):
        if target.name in wanted:
            (mask,) = kept[target.name].slots[0].parametrizations()
            target.parameter.data.copy_(mask.mask)  # type: ignore[arg-type]
    cut = {target.name: target for target in all_targets(apply_plan(ones, result.plan, inplace=True))}
    for target in all_targets(result.model):
        if target.name in wanted:
            put_mask(target, cut[target.name].parameter != 0)
    return result.model


def _pruned(result: PruneResult) -> Record:
    report = result.report
    return {
        "params": [report.params_before, report.params_after],
        "macs": [report.macs_before, report.macs_after],
        "remaining": dict(result.plan.remaining),
        "widths": {group.name: [group.size, group.count] for group in result.plan.groups},
        "proof": None if report.verify is None else report.verify.max_error,
        "refit": None if report.refit is None else asdict(report.refit),
        "latency": None if report.latency is None else asdict(report.latency.ratio),
        "forecast": None if report.forecast is None else asdict(report.forecast),
    }
