"""The hooks that write down a training after every epoch, and take it up where it was stopped; they come last."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from structprune.archive import read_archive, write_archive
from structprune.errors import StorageError
from structprune.history import fill, model_state
from structprune.plan import plans_to_json
from structprune.recipes.folder import RunFolder
from structprune.recipes.state import Network
from structprune.train import Hook, Run
from structprune.train.hooks import Metrics

__all__ = ["EpochKeeper", "StateKeeper"]


class StateKeeper(Hook):
    """Writes the state of the whole run after every epoch, and takes up the training that one was in at the start."""

    def __init__(self, network: Network, folder: RunFolder, state: Mapping[str, Any] | None) -> None:
        self.network, self.folder, self.state = network, folder, state

    def on_start(self, run: Run) -> None:
        if self.state is not None:  # the network has its weights already
            run.load_state_dict({**self.state, "model": run.model.state_dict()})

    def after_epoch(self, run: Run, metrics: Metrics) -> None:
        self.folder.keep(self.network.to_tree(_but_the_model(run)))


class EpochKeeper(Hook):
    """Writes the training after the last cut of a gradual step into a file, and takes it up where that was made again.

    Where it was made otherwise (a latency is measured), or the file is damaged, which `notes` then say, the training
    begins anew.
    """

    def __init__(self, path: Path, notes: list[str]) -> None:
        self.path, self.notes = path, notes

    def on_start(self, run: Run) -> None:
        try:
            state = read_archive(self.path) if self.path.exists() else None
        except StorageError as error:
            self.notes.append(f"{error}; training anew after the last cut")
            return
        if state is not None and state["plans"] == plans_to_json(run.plans):
            fill(run.model, state["model"])
            run.load_state_dict({**state["run"], "model": run.model.state_dict()})

    def after_epoch(self, run: Run, metrics: Metrics) -> None:
        plans, model = plans_to_json(run.plans), model_state(run.model)
        write_archive(self.path, {"plans": plans, "model": model, "run": _but_the_model(run)})


def _but_the_model(run: Run) -> dict[str, Any]:
    return {name: value for name, value in run.state_dict().items() if name != "model"}
