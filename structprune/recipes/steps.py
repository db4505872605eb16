"""The steps of a recipe, those that cut channels aside (`cuts.py`): what each takes, checked when it is read.

What they do is in `work.py`.
"""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import Field, field_validator, model_validator

from structprune.recipes.cuts import Prune, PruneGradually
from structprune.recipes.fields import Derived, Names, Seed, Strict, derived
from structprune.recipes.functions import Function
from structprune.recipes.training import Training
from structprune.runtime_settings import Runtime

__all__ = [
    "Evaluate",
    "Export",
    "Measure",
    "Sparsify",
    "Step",
    "Train",
    "kind_of",
    "trainings",
]

if TYPE_CHECKING:
    _RuntimeFields: TypeAlias = Derived
else:
    _RuntimeFields = derived(Runtime, "_RuntimeFields", leave_out=("name",))


class Train(Training):
    """Training or fine-tuning, with a penalty, a teacher and an early end where they are named."""

    step: Literal["train", "finetune"]


class Sparsify(Strict):
    """Single weights set to zero behind masks that hold in all later steps, as `structprune.sparsify` does it."""

    step: Literal["sparsify"]
    sparsity: Annotated[float, Field(ge=0, lt=1)] | None = None
    threshold: Annotated[float, Field(ge=0)] | None = None
    scope: Literal["layer", "global"] = "layer"
    criterion: Literal["l1", "l2", "random"] = "l1"
    keep: Names = Field(default_factory=list)
    only: Names = Field(default_factory=list)
    seed: Seed | None = None

    @model_validator(mode="after")
    def _one(self) -> Sparsify:
        if (self.sparsity is None) == (self.threshold is None):
            raise ValueError("give one of sparsity and threshold")
        return self


class Evaluate(Strict):
    """The accuracy on the test set, or on another; or a metric of one's own, a function of (network, data set)."""

    step: Literal["evaluate"]
    data: Literal["test", "train", "validation"] = "test"
    metric: Function = None
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


def kind_of(step: Any) -> str:
    """The word by which a recipe names the step."""
    return str(step.step)


def trainings(step: Any) -> list[tuple[tuple[str, ...], Training]]:
    """The training that a step does, with its place in the step; none where it does not train."""
    if isinstance(step, Train):
        return [((), step)]
    return [(("train",), step.train)] if isinstance(step, PruneGradually) else []
