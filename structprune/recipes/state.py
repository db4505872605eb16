"""The network of a run as it is now, and how it came to be so: what a state file holds, and brings back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from structprune.errors import StorageError
from structprune.history import History, Masks, fill, masked, model_state
from structprune.masking import finalize
from structprune.plan import PruningPlan

__all__ = ["Network"]


@dataclass
class Network:
    """The live network of a run; `build` makes the original anew, weights not yet trained.

    Plans speak of plain networks: masks are taken off for a cut and put on again, so they come last in the history.
    """

    build: Callable[[], nn.Module]
    model: nn.Module
    plans: tuple[PruningPlan, ...] = ()
    records: list[dict[str, Any]] = field(default_factory=list)
    step: int = 0
    """The index of the step that is next, or under way."""

    @property
    def cut(self) -> bool:
        """Whether anything was cut or masked yet."""
        return bool(self.plans or masked(self.model))

    def plain(self) -> nn.Module:
        """A copy with the masks baked in; the model itself where it has none."""
        return finalize(self.model) if masked(self.model) else self.model

    def to_tree(self, run: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """All of it in plain data and tensors, with the state of a training run that is under way."""
        names = masked(self.model)
        history = History((*self.plans, *((Masks(names),) if names else ())))
        return {
            "step": self.step,
            "run": run,
            "records": self.records,
            "history": history.to_tree(),
            "model": model_state(self.model),
        }

    def load_tree(self, tree: Mapping[str, Any]) -> None:
        """Brings back what `to_tree` gave; raises StorageError, or PlanError, where `build` makes another network."""
        try:
            history = History.from_tree(tree["history"])
            model = history.build(self.build())
            fill(model, tree["model"], history)
            self.model, self.plans, self.step = model, history.plans, int(tree["step"])
            self.records[:] = tree["records"]
        except (KeyError, TypeError) as error:
            raise StorageError(f"the state of the run is not as it should be: {error!r}") from error

    def dense(self, state: Mapping[str, Any]) -> nn.Module:
        """The network before its first cut, of the weights that were kept then."""
        model = self.build()
        fill(model, state)
        return model
