"""`run_recipe`: the steps in order, each begun where the folder says that the run is."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from structprune.arguments import typed
from structprune.assembly import trace
from structprune.by_name import model_factory
from structprune.errors import InputError
from structprune.inputs import parse_inputs
from structprune.plan import PruningPlan
from structprune.randomness import seeded
from structprune.recipes.checks import require_possible
from structprune.recipes.data import Data
from structprune.recipes.folder import RunFolder
from structprune.recipes.functions import beside
from structprune.recipes.places import told_at
from structprune.recipes.recipe import Recipe
from structprune.recipes.state import Network
from structprune.recipes.steps import kind_of
from structprune.recipes.told import told
from structprune.recipes.work import Work
from structprune.rewriting import rewrite
from structprune.storage import save
from structprune.tensors import weights_digest

__all__ = ["Progress", "RecipeResult", "run_recipe"]

MODEL = "model"
"""The folder in a run's folder that holds the network at the end, as `structprune.save` writes it."""


@dataclass(frozen=True)
class Progress:
    """How far a run is: the step under way, of how many, and how much of it is done (training steps, profiles)."""

    step: int
    steps: int
    name: str
    done: int = 0
    total: int = 0


@dataclass(frozen=True)
class RecipeResult:
    """The network at the end of a recipe, the plans that made it, and what each step has to report.

    `folder` holds the network in `model`, the files that were exported, and `results.json` with the records. `notes`
    say which files were found damaged; `resumed` is the number of steps that were done before this call.
    """

    model: nn.Module
    plans: tuple[PruningPlan, ...]
    records: tuple[dict[str, Any], ...]
    folder: Path
    weights: str
    """The sha256 of the network's weights: the same for every run of the recipe on a machine, stopped or not."""
    notes: tuple[str, ...] = ()
    resumed: int = 0

    def __str__(self) -> str:
        return "\n".join(f"{number}. {told(record)}" for number, record in enumerate(self.records, 1))


@typed
def run_recipe(
    recipe: Recipe | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    progress: Callable[[Progress], None] | None = None,
) -> RecipeResult:
    """The network that a recipe makes, with all it reports; `recipe` is one, or the file that it is in.

    The folder `out` holds the state after every epoch and every step. Stopped at any moment, killed too, the same call
    goes on from there, and ends with the same weights, bit for bit on the same machine with as many threads (but for
    budgets of latency, which are measured). A run that is done is not done again. Random state is as it was afterwards.

    Raises InputError where the folder is of another recipe or in use, where the model or the data cannot be built, and
    what the steps raise: BudgetError, VerificationError, ExportError. StorageError where the state of the run is
    damaged.
    """
    if not isinstance(recipe, Recipe):
        recipe = Recipe.load(recipe)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("a recipe runs in one process: start it without torchrun or accelerate launch")
    folder = RunFolder(out)
    work = _prepared(recipe, folder)
    with folder.opened(recipe):
        resumed, steps = _resumed(work), len(recipe.steps)
        for number in range(resumed, steps):
            step = recipe.steps[number]
            work.progress = partial(_tell, progress, number, steps, kind_of(step))
            work.progress(0, 0)
            with (
                seeded(recipe.seed),
                told_at(f"{recipe.at('steps', number)} ({kind_of(step)})", recipe.files()),
            ):
                record = {"step": kind_of(step), **work.do(step)}
            work.network.records.append(_plain(record))
            work.network.step = number + 1
            folder.keep(work.network.to_tree())
            folder.end_gradual(number)
            folder.write_results(_results(work.network, done=False))
        return _finish(work, resumed)


def _prepared(recipe: Recipe, folder: RunFolder) -> Work:
    """The run at its beginning: all that the recipe names is looked up and built before anything is written."""
    example = parse_inputs(recipe.input, recipe.seed)
    build, data = partial(_built, recipe, example), None
    with told_at(recipe.at("model")):
        network = Network(build, build())
    with seeded(recipe.seed):
        if recipe.data is not None:
            with told_at(recipe.at("data")):
                data = Data(*recipe.data.load(recipe.base), recipe.validation, recipe.seed)
        require_possible(recipe, network.model, example, data)
    return Work(recipe, network, folder, example, data, lambda done, total: None)


def _resumed(work: Work) -> int:
    """The number of steps that the folder has done; the run is then as it was after them."""
    state = work.folder.newest()
    work.folder.lines.drop_after(work.folder.begun(state))
    if state is not None:
        work.network.load_tree(state)
        work.run = state["run"]
    return work.network.step


def _plain(record: dict[str, Any]) -> dict[str, Any]:
    """The record as JSON has it: lists for tuples, and None for what is no number."""
    text = json.dumps(record)
    return dict(json.loads(text, parse_constant=lambda _: None))


def _built(recipe: Recipe, example: Any) -> nn.Module:
    with seeded(recipe.seed):
        model = copy.deepcopy(model_factory(beside(recipe.model, recipe.base))())
        return rewrite(model, example) if recipe.rewrite else model


def _finish(work: Work, resumed: int) -> RecipeResult:
    network, folder = work.network, work.folder
    plain = network.plain()
    plans = network.plans or (trace(plain, work.example).plan({}),)
    save(folder.path / MODEL, plain, plans)
    folder.write_results(_results(network, done=True))
    return RecipeResult(
        model=plain,
        plans=network.plans,
        records=tuple(network.records),
        folder=folder.path,
        weights=weights_digest(plain),
        notes=tuple(folder.notes),
        resumed=resumed,
    )


def _results(network: Network, *, done: bool) -> dict[str, Any]:
    digest = {"weights_sha256": weights_digest(network.plain())} if done else {}
    return {"done": done, **digest, "steps": network.records}


def _tell(
    progress: Callable[[Progress], None] | None, step: int, steps: int, name: str, done: int, total: int
) -> None:
    if progress is not None:
        progress(Progress(step, steps, name, done, total))
