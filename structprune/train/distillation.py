"""Knowledge distillation: the dense network as the teacher of the one that was cut out of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from structprune.arguments import typed
from structprune.errors import InputError, StructpruneError
from structprune.features import Index, kept_features
from structprune.gathering import take
from structprune.importance.batches import told
from structprune.importance.calibration import one_number
from structprune.inputs import tensors_in
from structprune.outputs import Outputs, chosen_outputs
from structprune.plan import PruningPlan
from structprune.tensors import widened
from structprune.train.batches import forward
from structprune.train.hooks import Hook, Run
from structprune.train.layer_results import LayerResults, require_layers
from structprune.train.surroundings import as_found

__all__ = ["Distillation", "soft_cross_entropy"]

Compare = Callable[[Any, Any], Tensor]
Plans = PruningPlan | Sequence[PruningPlan] | None


def soft_cross_entropy(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Kullback-Leibler divergence of the two networks' softened classes, times the temperature's square.

    Classes are in dim 1, as for cross-entropy; the mean is over everything else. The square keeps the gradient's size
    independent of the temperature. Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, 2015.

    >>> logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    >>> float(soft_cross_entropy(logits, logits, 4.0))
    0.0
    """
    given = F.log_softmax(widened(student).movedim(1, -1) / temperature, -1).flatten(0, -2)
    wanted = F.log_softmax(widened(teacher).movedim(1, -1) / temperature, -1).flatten(0, -2)
    return F.kl_div(given, wanted, reduction="batchmean", log_target=True) * temperature**2


class Distillation(Hook):
    """Makes the loss `(1 - weight) * loss + weight * (what the outputs differ) + feature_weight * (the features)`.

    `teacher` is the dense network; it runs in eval mode, without gradients, on the batches of the training. By default
    the outputs differ by `soft_cross_entropy` at `temperature`; `compare(student output, teacher output)`, a scalar,
    takes its place for networks that give no logits `[batch, classes, ...]`. `outputs` names the part of what they
    return that is compared, such as "logits" (as in `trace`).

    `features` are names of layers, blocks too. Their results shall be the teacher's: the mean over the layers of the
    squared error's sum, as a share of the teacher's own sum of squares. Where `plan` (several, if the network was
    pruned several times) cut a layer, its result is compared with the channels of the teacher's that were kept, so no
    projection has to be learnt (FitNets, Romero et al. 2015, need one). `plan` leads to the network given; what is cut
    of it while it trains, by `Session.prune` or in the steps of `prune_gradually`, comes to that by itself.

    Raises `InputError` for values out of range, and, before the first step of the training, for a teacher that does not
    take the network's inputs or gives something else than the network does, for layers that do not exist, give no
    tensor, or differ in shape, and where `compare` fails or gives no number; `PlanError` where `plan` is not one of the
    teacher's.
    """

    @typed
    def __init__(
        self,
        teacher: nn.Module,
        *,
        temperature: float = 4.0,
        weight: float = 0.5,
        outputs: Outputs = None,
        compare: Compare | None = None,
        features: Iterable[str] = (),
        feature_weight: float = 1.0,
        plan: Plans = None,
    ) -> None:
        if not 0 < temperature < float("inf"):
            raise InputError(f"{temperature=}: must be greater than 0")
        if not 0 <= weight <= 1:
            raise InputError(f"{weight=}: must be in [0, 1]")
        if not 0 <= feature_weight < float("inf"):
            raise InputError(f"{feature_weight=}: must be 0 or more")
        self.teacher, self.temperature, self.weight = teacher, temperature, weight
        self.outputs, self.compare, self.feature_weight = outputs, compare, feature_weight
        self.features = (features,) if isinstance(features, str) else tuple(features)
        self.plans = () if plan is None else (plan,) if isinstance(plan, PruningPlan) else tuple(plan)
        self._own = self._known = LayerResults(teacher, ())
        self._kept: Mapping[str, tuple[Index, ...]] = {}
        self._cuts: tuple[PruningPlan, ...] = ()

    def describe(self) -> dict[str, Any]:
        names = ("teacher", "temperature", "weight", "outputs", "compare", "features", "feature_weight")
        return {name: getattr(self, name) for name in names}

    def on_start(self, run: Run) -> None:
        if self.teacher in (run.model, run.original):
            raise InputError("the teacher is the network that is trained: give the dense one")
        require_layers(run.model, self.features, "the network that is trained")
        teacher = ExitStack()
        teacher.enter_context(as_found(self.teacher))
        run.at_exit(teacher.close)
        require_layers(self.teacher, self.features, "the teacher")
        self._own, self._known = LayerResults(run.model, self.features, run), LayerResults(self.teacher, ())
        self._cuts, self._kept = (), {}
        self.teacher.to(run.device).eval()

    def before_step(self, run: Run, inputs: Any, targets: Any) -> None:
        self._own.taken()

    def on_loss(self, run: Run, loss: Tensor, inputs: Any, output: Any, targets: Any) -> Tensor:
        own = self._own.taken()
        if self.features and not self._kept:
            self._find(inputs, run)
        with run.precision(), torch.no_grad():
            wanted = _taught(self.teacher, inputs)
        if self.weight:
            loss = (1 - self.weight) * loss + self.weight * self._outputs(output, wanted)
        if self.features:
            loss = loss + self.feature_weight * self._distance(run, own, self._known.taken(), self._kept)
        return loss

    def after_cut(self, run: Run, plan: PruningPlan) -> None:
        self._cuts, self._kept = (*self._cuts, plan), {}

    def _find(self, inputs: Any, run: Run) -> None:
        """What the plans keep of the teacher's features; the teacher is traced before it is listened to."""
        self._known.close()
        example = tuple(inputs) if isinstance(inputs, list) else inputs
        plans = (*self.plans, *run.plans, *self._cuts)
        self._kept = kept_features(self.teacher, plans, example, self.features)
        self._known = LayerResults(self.teacher, self.features, run)

    def _outputs(self, student: Any, teacher: Any) -> Tensor:
        if self.outputs is not None:
            student, teacher = (_lone(chosen_outputs(output, self.outputs)) for output in (student, teacher))
        if self.compare is not None:
            return _compared(self.compare, student, teacher)
        if not isinstance(student, Tensor) or not isinstance(teacher, Tensor) or student.ndim < 2:
            raise InputError(
                f"distillation compares logits [batch, classes, ...]; the network returns {told(student)}, its teacher "
                f"{told(teacher)}: name the logits in outputs=, or give compare=, a function of the student's output "
                "and the teacher's"
            )
        if student.shape != teacher.shape:
            raise InputError(
                f"the network returns {list(student.shape)}, its teacher {list(teacher.shape)}: give the network that "
                "it was cut out of, or another with outputs of this shape, or compare="
            )
        return soft_cross_entropy(student, teacher, self.temperature)

    def _distance(
        self,
        run: Run,
        own: Mapping[str, list[Tensor]],
        wanted: Mapping[str, list[Tensor]],
        kept: Mapping[str, tuple[Index, ...]],
    ) -> Tensor:
        for layer in self.features:
            times = len(own.get(layer, ())), len(wanted.get(layer, ()))
            if times[0] != times[1] or not times[0]:
                raise InputError(
                    f"features: layer {layer!r} ran {times[0]} times in the network, {times[1]} times in its teacher"
                )
        pairs = [
            _squares(layer, student, teacher, kept[layer])
            for layer in self.features
            for student, teacher in zip(own[layer], wanted[layer], strict=True)
        ]
        errors, sizes = (torch.stack(part) for part in zip(*pairs, strict=True))
        return (errors / run.mean(sizes).clamp_min(torch.finfo(torch.float32).tiny)).mean()


def _taught(teacher: nn.Module, inputs: Any) -> Any:
    """What the teacher makes of a batch; raises InputError where it does not take it."""
    try:
        return forward(teacher, inputs)
    except (StructpruneError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # the public boundary around the teacher's forward: any error it can raise
        given = ", ".join(map(told, tensors_in((inputs,))))
        raise InputError(
            f"the teacher, a {type(teacher).__name__}, fails on a batch of the training ({given}): "
            f"{type(error).__name__}: {error}. It has to take what the network that is trained takes"
        ) from error


def _compared(compare: Compare, student: Any, teacher: Any) -> Tensor:
    """How far two outputs are apart; raises InputError where the user's function does not say it."""
    try:
        gap = compare(student, teacher)
    except (StructpruneError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # the public boundary around the user's function: any error it can raise
        raise InputError(
            f"compare= failed on {told(student)} of the network and {told(teacher)} of the teacher: "
            f"{type(error).__name__}: {error}"
        ) from error
    return one_number(gap, "what compare= returns")


def _lone(part: Any) -> Any:
    return part[0] if isinstance(part, list) and len(part) == 1 else part


def _squares(layer: str, own: Tensor, wanted: Tensor, kept: Iterable[Index]) -> tuple[Tensor, Tensor]:
    """The mean squared error of a layer's result, and the mean square of what it should be."""
    whole = wanted.shape
    for index in kept:
        wanted = take(wanted, index)
    if own.shape != wanted.shape:
        raise InputError(
            f"layer {layer!r} gives {list(own.shape)}, in the teacher {list(whole)}, of which {list(wanted.shape)} "
            "stay; give plan=, the plans that lead from the teacher to the network"
        )
    own, wanted = widened(own), widened(wanted)
    return (own - wanted).square().mean(), wanted.square().mean()
