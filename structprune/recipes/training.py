"""What a recipe says of training: the options of `structprune.train.finetune` and the hooks that it can name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from structprune.graph import DependencyGraph
from structprune.plan import PruningPlan
from structprune.recipes.fields import Derived, Names, Seed, Strict, derived, names
from structprune.recipes.functions import Function, NameOrFunction, function, guarded, is_own
from structprune.train.distillation import Distillation
from structprune.train.options import OPTIMIZERS, SCHEDULES, TrainOptions
from structprune.train.penalties import L1, L2, GroupLasso, Penalty, Slimming
from structprune.train.stopping import EarlyStopping

__all__ = ["Distill", "Penalize", "StopEarly", "Training", "metric_of"]

if TYPE_CHECKING:
    _TrainFields: TypeAlias = Derived
    _DistillFields: TypeAlias = Derived
    _StopFields: TypeAlias = Derived
else:
    _TrainFields = derived(
        TrainOptions,
        "_TrainFields",
        seed=(Seed | None, None),
        optimizer=(Annotated[NameOrFunction, Field(examples=[*OPTIMIZERS, "nets.py:optimizer"])], "sgd"),
        schedule=(Annotated[NameOrFunction, Field(examples=[*SCHEDULES, "nets.py:warmup"])], "cosine"),
    )
    _DistillFields = derived(
        Distillation,
        "_DistillFields",
        leave_out=("teacher", "plan"),
        outputs=(str | int | list[str | int] | None, None),
        compare=(Function, None),
        features=(list[str], []),
    )
    _StopFields = derived(
        EarlyStopping,
        "_StopFields",
        metric=(Literal["accuracy", "loss", "metric"], "accuracy"),
    )

_OWN: dict[str, type] = {
    "optimizer": Optimizer,
    "schedule": LRScheduler,
}  # options that may be functions: of what
_PENALTIES = {"l1": L1, "l2": L2, "group_lasso": GroupLasso, "slimming": Slimming}


def metric_of(name: str, base: Path) -> Callable[..., Any]:
    """The metric of this name: a function of (network, data set) that gives a number."""
    return guarded(name, base, "metric", (Real, Tensor))


class Penalize(Strict):
    """A penalty on the channels that can be cut, as those of `structprune.train`: channels become exactly zero."""

    kind: Literal["l1", "l2", "group_lasso", "slimming"]
    strength: Annotated[float, Field(ge=0)]
    only: Names = Field(default_factory=list)
    keep: Names = Field(default_factory=list)
    proximal: bool = True
    growth: Annotated[float, Field(ge=0, le=1)] = 0.0

    def by(self, graph: DependencyGraph) -> Penalty[Any]:
        """The hook, for the network of this graph."""
        kind: Any = _PENALTIES[self.kind]
        bounds = {"only": names(self.only), "keep": names(self.keep)}
        return kind(graph, self.strength, proximal=self.proximal, growth=self.growth, **bounds)  # type: ignore[no-any-return]


class Distill(_DistillFields):
    """What the network before its first cut teaches, as `structprune.train.Distillation`: the channels that were kept
    of the results of `features`, names of layers, and the outputs. `compare` is a function of (student output, teacher
    output)."""

    @model_validator(mode="after")
    def _possible(self) -> Distill:
        self.make(teacher=nn.Identity(), compare=None)
        return self

    @property
    def layers(self) -> list[str]:
        """The names of the layers whose results are compared."""
        return self.features  # type: ignore[attr-defined,no-any-return]

    def by(self, teacher: nn.Module, plans: Sequence[PruningPlan], base: Path) -> Distillation:
        """The hook; `plans` lead from the teacher to the network that is trained."""
        own = self.compare  # type: ignore[attr-defined]
        compare = None if own is None else function(own, base, "compare")
        return self.make(teacher=teacher, plan=plans, compare=compare)  # type: ignore[no-any-return]


class StopEarly(_StopFields):
    """Training ends when the accuracy on the validation data no longer rises, the training loss no longer falls, or the
    training's own `metric` no longer rises (with `lower: true`: falls), and the best weights come back, as
    `structprune.train.EarlyStopping` does it."""

    @model_validator(mode="after")
    def _possible(self) -> StopEarly:
        self.make()
        return self

    @property
    def by(self) -> str:
        """What it goes by: "accuracy" and "metric" are measured on the validation data."""
        return str(self.metric)  # type: ignore[attr-defined]

    def hook(self) -> EarlyStopping:
        """The hook, at its beginning."""
        return self.make()  # type: ignore[no-any-return]


class Training(_TrainFields):
    """The options of `structprune.train.finetune`, with a penalty, a teacher and an early end where they are named.

    `seed` is the recipe's if left out. `optimizer` and `schedule` are names, or functions of one's own (of the network;
    of the optimiser and the number of its steps), as `loss` (of output and target) and `metric` (of the network and
    the validation data, higher for better) are: package.module:function or file.py:function.
    """

    loss: Function = None
    metric: Function = None
    penalty: Penalize | None = None
    distillation: Distill | None = None
    early_stopping: StopEarly | None = None

    @model_validator(mode="after")
    def _possible(self) -> Training:
        self.make(seed=0, **dict.fromkeys(self._functions(), nn.Identity()))
        if self.loss is not None and self.label_smoothing:  # type: ignore[attr-defined]
            raise ValueError("label_smoothing belongs to the default loss; smooth the labels in your own")
        measured = "accuracy" if self.metric is None else "metric"
        if self.early_stopping is not None and self.early_stopping.by not in ("loss", measured):
            instead = "name a metric" if self.metric is None else "say metric: metric there"
            raise ValueError(
                f"early_stopping goes by {self.early_stopping.by}, and what is measured on the validation data is the "
                f"{measured}: {instead}"
            )
        return self

    @property
    def measures(self) -> bool:
        """Whether it needs validation data: for its metric, or to end early by what is measured."""
        return self.metric is not None or (
            self.early_stopping is not None and self.early_stopping.by != "loss"
        )

    def options(self, seed: int, base: Path) -> TrainOptions:
        """The options, with the recipe's seed where there is none."""
        own = self.seed  # type: ignore[attr-defined]
        functions = {
            name: guarded(given, base, name, _OWN[name]) for name, given in self._functions().items()
        }
        return self.make(seed=seed if own is None else own, **functions)  # type: ignore[no-any-return]

    def own_loss(self, base: Path) -> Callable[..., Any] | None:
        """The loss of one's own, where one is named."""
        return None if self.loss is None else function(self.loss, base, "loss")

    def own_metric(self, base: Path) -> Callable[..., Any] | None:
        """The metric of one's own, where one is named."""
        return None if self.metric is None else metric_of(self.metric, base)

    def _functions(self) -> dict[str, str]:
        return {name: given for name in _OWN if is_own(given := getattr(self, name))}
