"""Checkpoints for a training loop of one's own: one file, written whole or not at all, nothing pickled.

A network that is cut while it trains has another shape than the one that the script builds when it is started again.
So a checkpoint holds the plans as well, and builds the network through them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.optim import Optimizer

from structprune.archive import read_archive, write_archive
from structprune.arguments import typed
from structprune.errors import InputError, StorageError
from structprune.history import History, fill, model_state
from structprune.plan import PruningPlan
from structprune.randomness import random_state, set_random_state
from structprune.replica import replica
from structprune.tensors import built, is_plain, named_tensors, require_module

__all__ = ["TrainingCheckpoint", "load_checkpoint", "save_checkpoint"]

Stateful = Any
"""What has `state_dict()` and `load_state_dict()`: a learning-rate schedule, a gradient scaler."""


@typed
def save_checkpoint(
    path: str | os.PathLike[str],
    model: nn.Module,
    plans: PruningPlan | Sequence[PruningPlan] = (),
    *,
    optimizer: Optimizer | None = None,
    state: Any = None,
    **parts: Stateful,
) -> None:
    """Writes one file with the model, the plans that made it, the optimizer's state, the random state, and `state`:
    whatever else is to be kept (an epoch, a best accuracy), in plain values and tensors.

    `parts` takes further objects with a `state_dict()`: `schedule=`, `scaler=`. Masks that `sparsify` put on are kept.
    Until the new file is complete the old one of that name stays. Of several processes one is to write it (`run.main`).

    Raises StorageError where the model is not what the plans make, which is so if a script built it anew in full size,
    where the optimizer holds other parameters than the model's, and where the file cannot be written; InputError for
    what is neither plain nor a tensor.

    >>> import tempfile
    >>> net, folder = nn.Linear(2, 1), tempfile.TemporaryDirectory()
    >>> save_checkpoint(f"{folder.name}/last.safetensors", net, state={"epoch": 3})
    >>> load_checkpoint(f"{folder.name}/last.safetensors").state
    {'epoch': 3}
    """
    require_module(model)
    for name, tensor in named_tensors(model).items():
        if not is_plain(tensor):
            raise InputError(
                f"{name!r} is a {type(tensor).__name__}, of which this process may hold a part: a checkpoint is of "
                "whole tensors; save the model after training, or its shards with torch.distributed.checkpoint"
            )
    history = History.of(model, plans)
    history.require(model)
    content = {
        "history": history.to_tree(),
        "model": model_state(model),
        "optimizer": None if optimizer is None else optimizer.state_dict(),
        "kind": None if optimizer is None else type(optimizer).__name__,
        "parameters": None if optimizer is None else _parameters(model, optimizer),
        "parts": {name: part.state_dict() for name, part in parts.items()},
        "random": random_state(),
        "state": state,
    }
    write_archive(path, content)


@dataclass(frozen=True)
class TrainingCheckpoint:
    """What a checkpoint holds: the plans, the `state` that was given, and what `build` and `restore` bring back; these
    raise StorageError and more where the model, the optimizer or the parts are not those that were saved.
    """

    path: str
    plans: tuple[PruningPlan, ...]
    state: Any
    _content: Mapping[str, Any] = field(repr=False)

    def build(self, build_model: Callable[[], nn.Module]) -> nn.Module:
        """The network as it was saved: a copy of the original, which `build_model()` makes, cut, masked and filled.

        Raises InputError for what is no function that builds a module (a module itself is none), PlanError or
        StorageError where the original is another than the one that was pruned.
        """
        model = self._history.build(replica(built(build_model), {}))
        self._fill(model)
        return model

    def restore(
        self,
        model: nn.Module,
        optimizer: Optimizer | None = None,
        *,
        random: bool = True,
        **parts: Stateful,
    ) -> None:
        """Writes what was saved into the model, the optimizer and the parts, and sets the random state (unless
        `random=False`), so that training goes on as if it had not stopped.

        Raises StorageError, with nothing changed, where the model has other shapes (so the one that was never pruned is
        refused: `build` makes the right one), where the optimizer was made for other parameters, and for a part that
        was not saved; InputError for an optimizer of another class.
        """
        if optimizer is not None and self._content["optimizer"] is None:
            raise StorageError(f"{self.path} was saved without optimizer=")
        if unknown := sorted(parts.keys() - self._content["parts"].keys()):
            raise StorageError(f"{self.path} was saved without {unknown[0]}=")
        if optimizer is not None:
            kind, saved = type(optimizer).__name__, self._content.get("kind")
            if saved is not None and kind != saved:
                raise InputError(f"{self.path} has the state of {saved}, not of {kind}: give it a {saved}")
            self._require_parameters(model, optimizer)
        self._fill(model)
        if optimizer is not None:
            optimizer.load_state_dict(self._content["optimizer"])
        for name, part in parts.items():
            part.load_state_dict(self._content["parts"][name])
        if random:
            set_random_state(self._content["random"])

    @property
    def _history(self) -> History:
        return History.from_tree(self._content["history"])

    def _fill(self, model: nn.Module) -> None:
        try:
            fill(model, self._content["model"], self._history)
        except StorageError as error:
            raise StorageError(f"{self.path}: {error}") from None

    def _require_parameters(self, model: nn.Module, optimizer: Optimizer) -> None:
        ours, saved = _parameters(model, optimizer), self._content["parameters"]
        for number, (here, there) in enumerate(zip(ours, saved, strict=False)):
            if here != there:
                text = "groups of other sizes" if len(here) != len(there) else "other parameters"
                odd = next(((a, b) for a, b in zip(here, there, strict=False) if a != b), None)
                detail = "" if odd is None else f": {odd[0]} where {odd[1]} was"
                raise StorageError(f"{self.path}: group {number} of the optimizer holds {text}{detail}")
        if len(ours) != len(saved):
            raise StorageError(f"{self.path}: the optimizer has {len(ours)} groups, {len(saved)} were saved")


@typed
def load_checkpoint(path: str | os.PathLike[str]) -> TrainingCheckpoint:
    """What `save_checkpoint` wrote, read and checked; no model is touched before `build` or `restore`.

    Raises StorageError for a file that is missing, damaged or no checkpoint.
    """
    content = read_archive(path)
    if isinstance(content, Mapping) and {"of", "samples"} <= content.keys():
        raise StorageError(
            f"{path} is of another kind: a gradual run, which the same call of prune_gradually or sparsify_gradually "
            "goes on with (checkpoint=)"
        )
    try:
        plans = History.from_tree(content["history"]).plans
        return TrainingCheckpoint(str(path), plans, content["state"], content)
    except (KeyError, TypeError) as error:
        raise StorageError(f"{path} is no checkpoint of a training: it has no {error}") from None


def _parameters(model: nn.Module, optimizer: Optimizer) -> list[list[str]]:
    """The names of the parameters in each group of the optimizer; raises StorageError for one that is none of the
    model's."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if id(parameter) not in names:
                raise StorageError(
                    f"the optimizer holds a parameter of shape {list(parameter.shape)} that is none of the model's; "
                    "a cut makes new parameters, so the optimizer has to be made, or cut along, after it"
                )
    return [[names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]
