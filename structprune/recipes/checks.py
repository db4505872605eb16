"""What a recipe asks for, tried before its first step: hours of training shall not end in a name that is misspelt."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

from structprune.budget import Budget
from structprune.engines import trace
from structprune.errors import InputError
from structprune.graph import DependencyGraph
from structprune.importance import CRITERIA, needs_of, score
from structprune.importance.batches import told as shown
from structprune.inputs import normalize_inputs, tensors_in
from structprune.masking.targets import choose
from structprune.observe import Twin
from structprune.recipes.cuts import Cutting, Prune, PruneGradually
from structprune.recipes.data import Data
from structprune.recipes.fields import did_you_mean, names
from structprune.recipes.functions import function, functions_in
from structprune.recipes.places import told_at
from structprune.recipes.recipe import Recipe
from structprune.recipes.steps import Measure, Sparsify, trainings
from structprune.recipes.training import Training
from structprune.runtimes import require_known
from structprune.select import select
from structprune.sensitivity import Sensitivity
from structprune.train.batches import forward
from structprune.train.losses import BatchLoss, pair_of

__all__ = ["require_possible"]


def require_possible(recipe: Recipe, model: nn.Module, example: Any, data: Data | None) -> None:
    """Raises InputError, TraceError or BudgetError, with the place in the recipe, where a step names what there is not,
    the network does not take the inputs or the data, or its first cut is out of reach.

    What the recipe's own files register is there by now.
    """
    _require_inputs(recipe, model, example)
    for number, step in enumerate(recipe.steps):
        _require_functions(recipe, number, step)
        _require_named(recipe, model, number, step)
    if data is not None:
        for number, step in enumerate(recipe.steps):
            for place, training in trainings(step):
                _require_samples(recipe, model, data.train, training, ("steps", number, *place))
    _Graphs(recipe, model, example).require_cuts()


def _require_inputs(recipe: Recipe, model: nn.Module, example: Any) -> None:
    args, kwargs = normalize_inputs(example)
    try:
        Twin(model).run(*args, **kwargs)
    except Exception as error:
        raise InputError(
            f"{recipe.at('input')}: the network's forward failed on inputs of these sizes: "
            f"{type(error).__name__}: {error}"
        ) from error


def _require_functions(recipe: Recipe, number: int, step: Any) -> None:
    for place, name in functions_in(step):
        with told_at(recipe.at("steps", number, *place)):
            found = function(name, recipe.base, place[-1])
            if place == ("criterion",) and needs_of(found) and step.data is None and step.calibration is None:
                raise InputError(f"{name} is worked out on data: say data: {{batches: 8}}, or calibration:")


def _require_named(recipe: Recipe, model: nn.Module, number: int, step: Any) -> None:
    """Raises InputError where a step names a runtime, a layer, a tensor or a file that there is not."""
    at = functools.partial(recipe.at, "steps", number)
    if isinstance(step, Cutting):
        with told_at(at("budget", "runtime")):
            require_known(step.budget.make().runtime)
    if isinstance(step, Prune) and isinstance(step.sensitivity, str):
        with told_at(at("sensitivity")):
            Sensitivity.load(recipe.base / step.sensitivity)
    if isinstance(step, Measure):
        with told_at(at("runtime")):
            require_known(step.on())
    if isinstance(step, Sparsify):
        with told_at(at()):
            choose(model, names(step.only), names(step.keep))
    for place, training in trainings(step):
        if training.distillation is not None:
            _require_layers(model, training.distillation.layers, at(*place, "distillation", "features"))


def _require_layers(model: nn.Module, layers: Iterable[str], place: str) -> None:
    known = [name for name, _ in model.named_modules() if name]
    for layer in layers:
        if layer not in known:
            raise InputError(f"{place}: the network has no layer {layer!r}; {did_you_mean(layer, known)}")


def _require_samples(
    recipe: Recipe, model: nn.Module, data: Dataset[Any], training: Training, place: tuple[str | int, ...]
) -> None:
    """Tries the network and the loss on the first example of the training data."""
    with told_at(recipe.at("data")):
        inputs, targets = pair_of(next(iter(DataLoader(Subset(data, [0])))), "a batch of the training data")
        try:
            output = forward(Twin(model).run, inputs)
        except Exception as error:
            raise InputError(
                f"the network's forward failed on a batch of the training data ("
                f"{', '.join(map(shown, tensors_in((inputs,))))}): {type(error).__name__}: {error}"
            ) from error
    with told_at(recipe.at(*place) if training.loss is None else recipe.at(*place, "loss")):
        BatchLoss(training.own_loss(recipe.base))(output, targets, "a batch of the training data")


class _Graphs:
    """The network's graphs, one for each way in which the steps trace it."""

    def __init__(self, recipe: Recipe, model: nn.Module, example: Any) -> None:
        self.recipe, self.model, self.example = recipe, model, example
        self._known: dict[tuple[str, str], DependencyGraph] = {}

    def of(self, engine: str = "structprune", outputs: Any = None) -> DependencyGraph:
        """The graph of this engine and of these outputs."""
        key = engine, repr(outputs)  # the output 1 is another than "1"
        if key not in self._known:
            self._known[key] = trace(self.model, self.example, engine, None, outputs)
        return self._known[key]

    def require_cuts(self) -> None:
        """Tries what each step would cut, and the budget of the first that does."""
        with told_at(self.recipe.at("model")):
            self.of()
        cut = False
        for number, step in enumerate(self.recipe.steps):
            with told_at(self.recipe.at("steps", number)):
                if isinstance(step, Cutting):
                    self._try(step, None if cut or not _is_one(step) else step.budget.make())
                    cut = True
                for _, training in trainings(step):
                    self._try_penalty(training)

    def _try(self, step: Cutting, budget: Budget | None) -> None:
        """Chooses widths as the step would: which groups may be cut, and how far, is no matter of scores."""
        graph = self.of(step.engine, step.outputs)
        scores = score(self.model, graph, CRITERIA["l2"])
        select(graph, scores, Budget(channels=1.0), "layer", **step.widths())
        if budget is not None and not budget.timed:
            select(graph, scores, budget, step.scope, **step.widths())

    def _try_penalty(self, training: Training) -> None:
        if training.penalty is not None:
            training.penalty.by(self.of()).zeros(self.model)


def _is_one(step: Cutting) -> bool:
    """Whether the step's budget is met by one cut; bounds of how much may go are of each step of a gradual one."""
    return not isinstance(step, PruneGradually) or step.max_pruned == 1
