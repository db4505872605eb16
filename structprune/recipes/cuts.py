"""The steps of a recipe that cut channels: at once to a budget, or gradually with training after each cut."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import Field, field_validator, model_validator
from torch.utils.data import Dataset, TensorDataset

from structprune.budget import Budget
from structprune.importance import CRITERIA, Criterion, needs_of, options_of
from structprune.recipes.data import Samples
from structprune.recipes.fields import Derived, Names, Seed, Strict, derived, did_you_mean, names
from structprune.recipes.functions import Function, NameOrFunction, function, is_own
from structprune.recipes.training import Training
from structprune.refit import steps_of
from structprune.train.evaluation import evaluate
from structprune.train.gradual import Cubic, Iterative, OneShot, Schedule
from structprune.train.gradual.floor import Floor

__all__ = ["Cutting", "Prune", "PruneGradually"]

if TYPE_CHECKING:
    _BudgetFields: TypeAlias = Derived
    _OneShot: TypeAlias = Derived
    _Iterative: TypeAlias = Derived
    _Cubic: TypeAlias = Derived
else:
    _BudgetFields = derived(Budget, "_BudgetFields")
    _OneShot, _Iterative, _Cubic = (
        derived(kind, f"_{kind.__name__}") for kind in (OneShot, Iterative, Cubic)
    )

_NO_DATA: Dataset[Any] = TensorDataset()


class Limits(_BudgetFields):
    """What may remain, as `structprune.Budget` takes it."""

    @model_validator(mode="after")
    def _possible(self) -> Limits:
        self.make()
        return self


class Cutting(Strict):
    """How channels are cut, as `structprune.prune` takes it. `data` and `calibration` are drawn from the training data;
    `criterion` is a name or a function, `loss` a function: package.module:function or file.py:function."""

    budget: Limits
    criterion: NameOrFunction = "l2"
    data: Samples | None = None
    loss: Function = None
    calibration: Samples | None = None
    refit: Names | None = None
    sensitivity: bool = False
    scope: Literal["layer", "global", "isomorphic", "value"] | None = None
    multiple_of: Annotated[int, Field(ge=1)] | None = None
    min_channels: int | dict[str, int] = 1
    max_pruned: float | dict[str, float] = 1.0
    keep: Names = Field(default_factory=list)
    only: Names = Field(default_factory=list)
    ragged: bool = True
    engine: Literal["structprune", "torch-pruning"] = "structprune"
    outputs: str | int | list[str | int] | None = None
    verify: bool = True
    seed: Seed | None = None

    @field_validator("criterion")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in CRITERIA and not is_own(name):
            raise ValueError(f"unknown criterion {name!r}; {did_you_mean(name, CRITERIA)}")
        return name

    @model_validator(mode="after")
    def _has_data(self) -> Cutting:
        nothing = self.data is None and self.calibration is None
        if nothing and not is_own(self.criterion) and needs_of(CRITERIA[self.criterion]) is not None:
            raise ValueError(
                f"criterion {self.criterion!r} is worked out on data: say data: {{batches: 8}}, or calibration:"
            )
        if nothing and self.sensitivity is True:
            raise ValueError("sensitivity is measured on data: say calibration: {batches: 8}, or data:")
        if self.refit is not None and steps_of(self.refit) and self.calibration is None:
            raise ValueError("refit is done on data: say calibration: {batches: 8}")
        if self.sensitivity and self.scope not in (None, "value"):
            raise ValueError(f"with sensitivity widths are chosen by the loss: leave out scope: {self.scope}")
        return self

    def by(self, base: Path) -> str | Criterion:
        """The criterion: its name, or the function of one's own that is named."""
        return function(self.criterion, base, "criterion") if is_own(self.criterion) else self.criterion

    def widths(self) -> dict[str, Any]:
        """Which widths may be chosen, as `select` takes it beside the budget and the scope."""
        return {
            "multiple_of": self.multiple_of,
            "min_channels": self.min_channels,
            "max_pruned": self.max_pruned,
            "keep": names(self.keep),
            "only": names(self.only),
            "ragged": self.ragged,
        }

    def draws(self, base: Path) -> bool:
        """Whether the criterion draws random numbers, and so takes a seed."""
        found = self.by(base)
        return any(
            "seed" in each for each in options_of(CRITERIA[found] if isinstance(found, str) else found)
        )


class Prune(Cutting):
    """A cut to a budget, proven. With `sensitivity: true` widths are chosen by the forecast of the loss, which is
    measured on the calibration data (or `data`) and kept in the run's folder; with a file beside the recipe by what
    `structprune.Sensitivity` saved there."""

    step: Literal["prune"]
    sensitivity: bool | str = False  # type: ignore[assignment]  # wider than a gradual step's


class OneShotFields(_OneShot):
    """All at once."""

    kind: Literal["one_shot"]


class IterativeFields(_Iterative):
    """The same share each time."""

    kind: Literal["iterative"]


class CubicFields(_Cubic):
    """Much at first, little at the end, while one training goes on."""

    kind: Literal["cubic"]


class PruneGradually(Cutting):
    """Cuts in steps of a schedule with training after each, as `structprune.train.prune_gradually` makes them. Stopped,
    it goes on after the last epoch that was done.

    The `train` of each step has a penalty for its own network; its teacher is the network before the recipe's first
    cut, of which it keeps what all plans so far do; early stopping begins anew in each, whose best weights the next
    one cuts. Where training goes on from step to step (`cubic`, or `carry`), the learning rate is still that of the
    whole schedule, and the optimiser remembers the epochs after the best as well. `floor` and `max_drop` are of the
    accuracy on the validation data, or of the training's own `metric`.
    """

    step: Literal["prune_gradually"]
    schedule: Annotated[OneShotFields | IterativeFields | CubicFields, Field(discriminator="kind")]
    train: Training
    final_epochs: Annotated[int, Field(ge=1)] | None = None
    rewind: Annotated[int, Field(ge=1)] | None = None
    carry: bool | None = None
    floor: float | None = None
    max_drop: float | None = None

    @model_validator(mode="after")
    def _possible(self) -> PruneGradually:
        if self.measures:
            own = None if self.train.metric is None else evaluate  # of which only the presence counts here
            Floor(_NO_DATA, own, self.floor, self.max_drop)
        schedule: Schedule = self.schedule.make()
        if self.rewind is not None:
            if schedule.trains_on if self.carry is None else self.carry:
                raise ValueError("rewind repeats a part of the training in each step, and this one trains on")
            if self.rewind < self.train.epochs:  # type: ignore[attr-defined]
                raise ValueError(
                    f"rewind: {self.rewind} is the number of epochs that the network was trained for, whose last ones "
                    "are repeated: it must be at least the epochs of a step"
                )
        return self

    @property
    def measures(self) -> bool:
        """Whether it has a floor for what is measured on the validation data."""
        return self.floor is not None or self.max_drop is not None
