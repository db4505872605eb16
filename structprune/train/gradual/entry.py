"""`prune_gradually` and `sparsify_gradually`: a schedule of cuts with training between them, in one call."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from typing import Any

from torch import nn
from torch.utils.data import Dataset

from structprune.arguments import typed
from structprune.budget import Budget
from structprune.history import History, fill, model_state
from structprune.importance import Criterion
from structprune.masking.ranking import Criterion as WeightCriterion
from structprune.masking.targets import Patterns
from structprune.train.evaluation import Metric
from structprune.train.gradual.checkpoint import held
from structprune.train.gradual.cuts import BudgetCuts, Cuts, MaskCuts
from structprune.train.gradual.floor import Floor
from structprune.train.gradual.rounds import Hooks, Rounds
from structprune.train.gradual.run import GradualResult, GradualRun, GradualStep
from structprune.train.gradual.schedules import Cubic, Iterative, Schedule
from structprune.train.options import TrainOptions

__all__ = ["prune_gradually", "sparsify_gradually"]


@typed
def prune_gradually(
    model: nn.Module,
    example_inputs: Any,
    budget: Budget,
    train_data: Dataset[Any],
    options: TrainOptions,
    *,
    schedule: Schedule | None = None,
    criterion: str | Criterion = "l2",
    data: Iterable[Any] | None = None,
    calibration: Iterable[Any] | None = None,
    validation: Dataset[Any] | None = None,
    metric: Metric | None = None,
    floor: float | None = None,
    max_drop: float | None = None,
    final_epochs: int | None = None,
    rewind: int | None = None,
    carry: bool | None = None,
    hooks: Hooks = (),
    pruning: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: Callable[[GradualStep], None] | None = None,
    inplace: bool = False,
) -> GradualResult:
    """A network that is cut to the budget in steps and trained after each, and what each step gave.

    ``schedule`` says how far each step goes: ``OneShot()``, ``Iterative(0.1)`` (the default: 10 % of what is left,
    train, repeat), ``Iterative(steps=5)`` or ``Cubic(8)``. All are shares of the original network, as the budget is; a
    ``latency`` is a share of the given network's, measured in each step beside the network that it cuts. After each
    step the network is trained for ``options.epochs`` epochs (``final_epochs`` after the last). Cubic's training goes
    on from step to step, with one learning-rate schedule over all of them and the optimiser's state cut along; for the
    others each step begins anew. ``carry`` says otherwise. With ``rewind=n``, the number of epochs the network was
    trained for with ``options``, each step repeats the learning rates of the last of these (Renda et al. 2020).

    After each step ``metric(model, validation)`` (accuracy, if left out) is taken. Where it is below ``floor``, or more
    than ``max_drop`` below what the network given has, the run stops, and the result is the last network that was not:
    the one given, as a copy, if the first step already is.

    ``criterion``, ``data``, ``calibration`` and what is in ``pruning`` go to `prune` in each step, ``hooks`` and what
    is in ``training`` (``loss``, ``accelerator``) to `finetune`. Hooks that belong to one network, as penalties do, are
    given by a function that makes them for each: ``lambda net: [GroupLasso(trace(net, x), 1e-3)]``. ``checkpoint``
    names a file that is written after each step, and from which the same call goes on to the same result if it was
    interrupted. One of another run is refused, also where only the values of the data are others (some examples are
    looked up for that) or the hooks' options (`Hook.describe`; a function is asked for those of the network given), and
    one that another process is at: a lock lies beside it (``.lock``), which ends with the process. ``model`` stays as
    it is unless ``inplace=True``; equal seeds give equal results.

    Raises BudgetError, before any training, for a budget that no steps lead to (a latency is found out by cutting);
    InputError, StorageError for a checkpoint of another run, in use, or that cannot be written, and what `prune` and
    `finetune` raise.

    >>> import torch
    >>> from torch.utils.data import TensorDataset
    >>> from structprune.train import Iterative, TrainOptions
    >>> net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 4))
    >>> data = TensorDataset(torch.eye(4), torch.arange(4))
    >>> result = prune_gradually(net, torch.zeros(1, 4), Budget(params=0.25), data, TrainOptions(epochs=1, lr=0.1),
    ...                          schedule=Iterative(steps=2))
    >>> [step.asked for step in result.steps], result.model[0].weight.shape, len(result.plans)
    ([{'params': 0.5}, {'params': 0.25}], torch.Size([3, 4]), 2)
    """
    schedule = Iterative() if schedule is None else schedule
    cuts = BudgetCuts(model, example_inputs, budget, schedule, criterion, data, calibration, pruning or {})
    goes_on = schedule.trains_on if carry is None else carry
    rounds = Rounds(train_data, options, cuts.count, final_epochs, rewind, goes_on, hooks, training or {})
    return _finished(
        cuts,
        rounds,
        Floor(validation, metric, floor, max_drop),
        checkpoint,
        progress,
        model if inplace else None,
    )


@typed
def sparsify_gradually(
    model: nn.Module,
    sparsity: float,
    train_data: Dataset[Any],
    options: TrainOptions,
    *,
    schedule: Schedule | None = None,
    scope: str = "global",
    criterion: WeightCriterion = "l1",
    keep: Patterns = (),
    only: Patterns = (),
    validation: Dataset[Any] | None = None,
    metric: Metric | None = None,
    floor: float | None = None,
    max_drop: float | None = None,
    final_epochs: int | None = None,
    rewind: int | None = None,
    carry: bool | None = None,
    hooks: Hooks = (),
    training: Mapping[str, Any] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: Callable[[GradualStep], None] | None = None,
    inplace: bool = False,
) -> GradualResult:
    """A network whose weights are masked to ``sparsity`` in steps, with training after each, as `prune_gradually` does
    it with channels.

    ``schedule`` is ``Cubic(10)`` if left out. ``scope``, ``criterion``, ``keep`` and ``only`` are those of `sparsify`,
    which extends the masks in each step: what is zero stays zero, and counts. `finalize` bakes the masks in.

    Raises InputError for values out of range, StorageError for a checkpoint of another run, and what `sparsify` and
    `finetune` raise.
    """
    schedule = Cubic(10) if schedule is None else schedule
    chosen = {"scope": scope, "criterion": criterion, "keep": keep, "only": only, "seed": options.seed}
    cuts = MaskCuts(model, sparsity, schedule, chosen)
    goes_on = schedule.trains_on if carry is None else carry
    rounds = Rounds(train_data, options, cuts.count, final_epochs, rewind, goes_on, hooks, training or {})
    return _finished(
        cuts,
        rounds,
        Floor(validation, metric, floor, max_drop),
        checkpoint,
        progress,
        model if inplace else None,
    )


def _finished(
    cuts: Cuts,
    rounds: Rounds,
    floor: Floor,
    checkpoint: str | os.PathLike[str] | None,
    progress: Callable[[GradualStep], None] | None,
    target: nn.Module | None,
) -> GradualResult:
    """The result of all steps; with a `target`, the user's model, it becomes the network of the result."""
    with nullcontext() if checkpoint is None else held(checkpoint):
        run = GradualRun(cuts, rounds, floor)
        if checkpoint is not None:
            run.resume(checkpoint)
        while not run.done:
            done = run.step()
            if checkpoint is not None:
                run.save(checkpoint)
            if progress is not None:
                progress(done)
    result = run.result()
    if target is None:
        return result
    history = History.of(result.model, result.plans)
    fill(history.build(target), model_state(result.model), history)
    return dataclasses.replace(result, model=target)
