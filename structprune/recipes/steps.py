"""The steps of a recipe: what each takes, checked when it is read. What they do is in `work.py`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import Field, field_validator, model_validator
from torch import nn

from structprune.budget import Budget
from structprune.importance import CRITERIA, needs_of
from structprune.plan import PruningPlan
from structprune.recipes.data import Samples
from structprune.recipes.fields import Derived, Strict, derived, did_you_mean
from structprune.runtime_settings import Runtime
from structprune.train.distillation import Distillation
from structprune.train.gradual import Cubic, Iterative, OneShot
from structprune.train.options import TrainOptions
from structprune.train.stopping import EarlyStopping

__all__ = [
    "Cutting",
    "Distill",
    "Evaluate",
    "Export",
    "Measure",
    "Penalize",
    "Prune",
    "PruneGradually",
    "Sparsify",
    "Step",
    "StopEarly",
    "Train",
]

if TYPE_CHECKING:
    _BudgetFields: TypeAlias = Derived
    _TrainFields: TypeAlias = Derived
    _DistillFields: TypeAlias = Derived
    _StopFields: TypeAlias = Derived
    _RuntimeFields: TypeAlias = Derived
    _OneShot: TypeAlias = Derived
    _Iterative: TypeAlias = Derived
    _Cubic: TypeAlias = Derived
else:
    _BudgetFields = derived(Budget, "_BudgetFields")
    _TrainFields = derived(TrainOptions, "_TrainFields", seed=(int | None, None))
    _DistillFields = derived(
        Distillation,
        "_DistillFields",
        leave_out=("teacher", "compare", "plan"),
        outputs=(str | int | list[str | int] | None, None),
        features=(list[str], []),
    )
    _StopFields = derived(
        EarlyStopping,
        "_StopFields",
        leave_out=("lower",),
        metric=(Literal["accuracy", "loss"], "accuracy"),
    )
    _OneShot, _Iterative, _Cubic = (
        derived(kind, f"_{kind.__name__}") for kind in (OneShot, Iterative, Cubic)
    )
    _RuntimeFields = derived(Runtime, "_RuntimeFields", leave_out=("name",))

Names = str | list[str]


class Limits(_BudgetFields):
    """What may remain, as `structprune.Budget` takes it."""

    @model_validator(mode="after")
    def _possible(self) -> Limits:
        self.make()
        return self


class Training(_TrainFields):
    """The options of `structprune.train.finetune`; `seed` is the recipe's if left out."""

    @model_validator(mode="after")
    def _possible(self) -> Training:
        self.options(0)
        return self

    def options(self, seed: int) -> TrainOptions:
        """The options, with the recipe's seed where there is none."""
        own = self.seed  # type: ignore[attr-defined]
        return self.make(seed=seed if own is None else own)  # type: ignore[no-any-return]


class Penalize(Strict):
    """A penalty on the channels that can be cut, as those of `structprune.train`: channels become exactly zero."""

    kind: Literal["l1", "l2", "group_lasso", "slimming"]
    strength: Annotated[float, Field(ge=0)]
    only: Names = Field(default_factory=list)
    keep: Names = Field(default_factory=list)
    proximal: bool = True
    growth: Annotated[float, Field(ge=0, le=1)] = 0.0


class Distill(_DistillFields):
    """What the network before its first cut teaches, as `structprune.train.Distillation`: the channels that were kept
    of the results of `features`, names of layers, and the outputs."""

    @model_validator(mode="after")
    def _possible(self) -> Distill:
        self.by(nn.Identity())
        return self

    @property
    def layers(self) -> list[str]:
        """The names of the layers whose results are compared."""
        return self.features  # type: ignore[attr-defined,no-any-return]

    def by(self, teacher: nn.Module, plans: Sequence[PruningPlan] = ()) -> Distillation:
        """The hook; `plans` lead from the teacher to the network that is trained."""
        return self.make(teacher=teacher, plan=plans)  # type: ignore[no-any-return]


class StopEarly(_StopFields):
    """Training ends when the accuracy on the validation data no longer rises (or the training loss no longer falls),
    and the best weights come back, as `structprune.train.EarlyStopping` does it."""

    @model_validator(mode="after")
    def _possible(self) -> StopEarly:
        self.hook()
        return self

    @property
    def by_accuracy(self) -> bool:
        """Whether it goes by the accuracy on the validation data."""
        return bool(self.metric == "accuracy")  # type: ignore[attr-defined]

    def hook(self) -> EarlyStopping:
        """The hook, at its beginning."""
        return self.make(lower=not self.by_accuracy)  # type: ignore[no-any-return]


class Train(Training):
    """Training or fine-tuning, with a penalty, a teacher and an early end where they are named."""

    step: Literal["train", "finetune"]
    penalty: Penalize | None = None
    distillation: Distill | None = None
    early_stopping: StopEarly | None = None


class Cutting(Strict):
    """How channels are cut, as `structprune.prune` takes it. `data` and `calibration` are drawn from the training data;
    `loss` is package.module:function or file.py:function."""

    budget: Limits
    criterion: str = "l2"
    data: Samples | None = None
    loss: str | None = None
    calibration: Samples | None = None
    refit: Names | None = None
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
    seed: int | None = None

    @field_validator("criterion")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in CRITERIA:
            raise ValueError(f"unknown criterion {name!r}; {did_you_mean(name, CRITERIA)}")
        return name

    @model_validator(mode="after")
    def _has_data(self) -> Cutting:
        if self.data is None and self.calibration is None and needs_of(CRITERIA[self.criterion]) is not None:
            raise ValueError(
                f"criterion {self.criterion!r} is worked out on data: say data: {{batches: 8}}, or calibration:"
            )
        return self


class Prune(Cutting):
    """A cut to a budget, proven."""

    step: Literal["prune"]


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
    it goes on after the last of these steps that was done."""

    step: Literal["prune_gradually"]
    schedule: Annotated[OneShotFields | IterativeFields | CubicFields, Field(discriminator="kind")]
    train: Training
    final_epochs: Annotated[int, Field(ge=1)] | None = None
    rewind: Annotated[int, Field(ge=1)] | None = None
    floor: float | None = None
    max_drop: float | None = None


class Sparsify(Strict):
    """Single weights set to zero behind masks that hold in all later steps, as `structprune.sparsify` does it."""

    step: Literal["sparsify"]
    sparsity: Annotated[float, Field(ge=0, lt=1)] | None = None
    threshold: Annotated[float, Field(ge=0)] | None = None
    scope: Literal["layer", "global"] = "layer"
    criterion: Literal["l1", "l2", "random"] = "l1"
    keep: Names = Field(default_factory=list)
    only: Names = Field(default_factory=list)
    seed: int | None = None

    @model_validator(mode="after")
    def _one(self) -> Sparsify:
        if (self.sparsity is None) == (self.threshold is None):
            raise ValueError("give one of sparsity and threshold")
        return self


class Evaluate(Strict):
    """The accuracy on the test set, or on another."""

    step: Literal["evaluate"]
    data: Literal["test", "train", "validation"] = "test"
    batch_size: Annotated[int, Field(ge=1)] = 256


class Export(Strict):
    """An ONNX file in the run's folder, checked against the network, or no file."""

    step: Literal["export"]
    file: str = "model.onnx"
    opset: int | None = None
    dynamic_batch: bool | Literal["auto"] = "auto"

    @field_validator("file")
    @classmethod
    def _plain(cls, name: str) -> str:
        if PurePath(name).name != name or not name.endswith(".onnx"):
            raise ValueError(
                f"{name!r}: expected a plain name that ends in .onnx; it is written to the run's folder"
            )
        return name


class Measure(_RuntimeFields):
    """The latency on a runtime, and that of the network before its first cut, by turns."""

    step: Literal["measure"]
    runtime: str = "onnxruntime"
    repeats: Annotated[int, Field(ge=1)] = 50
    min_time: Annotated[float, Field(ge=0)] = 0.5

    @model_validator(mode="after")
    def _possible(self) -> Measure:
        self.on()
        return self

    def on(self) -> Runtime:
        """Where it is measured."""
        return self.make(name=self.runtime)  # type: ignore[no-any-return]


Step = Annotated[
    Train | Prune | PruneGradually | Sparsify | Evaluate | Export | Measure, Field(discriminator="step")
]


def names(given: Names) -> list[str]:
    """One name or several, as several."""
    return [given] if isinstance(given, str) else list(given)


def kind_of(step: Any) -> str:
    """The word by which a recipe names the step."""
    return str(step.step)
