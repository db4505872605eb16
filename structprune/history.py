"""What was done to a network's structure, in order: plans and masks, so that it can be built again from its beginning.

A plan changes shapes, a mask gives a tensor another name (torch's parametrizations do). Weights that were stored fit
only a network that has the same behind it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn

from structprune.errors import InputError, PlanError, StorageError
from structprune.masking import sparsify
from structprune.masking.mask import Mask
from structprune.masking.targets import all_targets
from structprune.plan import PruningPlan, plans_from_json
from structprune.replica import recompute
from structprune.surgery import apply_plan
from structprune.tensors import Slot, fingerprint, require_module, slots

__all__ = ["History", "Masks", "fill", "masked", "model_state"]


@dataclass(frozen=True)
class Masks:
    """The tensors, by name, that got masks."""

    names: tuple[str, ...]


Step: TypeAlias = "PruningPlan | Masks"


@dataclass(frozen=True)
class History:
    """The plans and masks that lead from the network that a factory builds to the one that it is now."""

    steps: tuple[Step, ...] = ()

    @staticmethod
    def of(model: nn.Module, plans: PruningPlan | Sequence[PruningPlan]) -> History:
        """The history of a network of these plans; its masks, if any, come before the first plan that knows them."""
        given = (plans,) if isinstance(plans, PruningPlan) else tuple(plans)
        for plan in given:
            if not isinstance(plan, PruningPlan):
                raise InputError(f"plans: expected a PruningPlan, or several in order, got {plan!r}")
        names = masked(model)
        first = next((n for n, plan in enumerate(given) if _knows(plan, names)), len(given))
        masks = (Masks(names),) if names else ()
        return History((*given[:first], *masks, *given[first:]))

    @property
    def plans(self) -> tuple[PruningPlan, ...]:
        """The plans alone, in order."""
        return tuple(step for step in self.steps if isinstance(step, PruningPlan))

    def then(self, *steps: Step) -> History:
        """This history and what comes after it; masks on what has masks already are nothing new."""
        has = {name for step in self.steps if isinstance(step, Masks) for name in step.names}
        new = [step for step in steps if not isinstance(step, Masks) or set(step.names) - has]
        return History((*self.steps, *new))

    def build(self, model: nn.Module) -> nn.Module:
        """The model after all of it, its weights yet to be filled in; the given one is cut in place.

        Raises PlanError where a plan does not fit the model.
        """
        for step in self.steps:
            if isinstance(step, PruningPlan):
                model = apply_plan(model, step, inplace=True)
            else:
                sparsify(model, 0.0, only=step.names, inplace=True)
        return model

    def require(self, model: nn.Module) -> None:
        """Passes if the shapes of the model are those that the plans make.

        Raises StorageError that names the first that is not, and says so where the model is the one that was never
        pruned: what a training script builds that is started anew.
        """
        shapes: dict[str, tuple[int, ...]] = {}
        for step in self.steps:
            if isinstance(step, PruningPlan):
                shapes.update({name: step.new_shape(name) for name in step.shapes})
            else:
                shapes = {_behind(name, step.names): shape for name, shape in shapes.items()}
        present = {slot.name: tuple(slot.tensor.shape) for slot in slots(model) if slot.kind != "cache"}
        caches = {slot.name for slot in slots(model) if slot.kind == "cache"}
        for name, shape in shapes.items():
            if present.get(name) != shape and name not in caches:
                raise StorageError(self.difference(model, name, shape, present.get(name)))

    def difference(
        self, model: nn.Module, name: str, wanted: tuple[int, ...] | None, found: tuple[int, ...] | None
    ) -> str:
        """What is wrong with a model that does not fit, and what to do."""
        what = "no such tensor" if found is None else f"shape {list(found)}"
        text = f"tensor {name!r}: " + (
            f"the model has {what}, expected {list(wanted)}" if wanted is not None else "not expected"
        )
        if self.plans and fingerprint(model) == self.plans[0].fingerprint:
            return (
                f"{text}. This is the network as it was before pruning, in full size: build the pruned one through "
                "its plans, with load_checkpoint(path).build(build_model), and make the optimizer after that"
            )
        return f"{text}. The model must be what the plans make of the original: load_checkpoint(path).build makes it"

    def to_tree(self) -> list[dict[str, Any]]:
        """The history as plain data."""
        return [
            {"plan": step.to_json()} if isinstance(step, PruningPlan) else {"masks": list(step.names)}
            for step in self.steps
        ]

    @staticmethod
    def from_tree(tree: Sequence[Mapping[str, Any]]) -> History:
        """What `to_tree` gave; raises PlanError where it is no history."""
        steps: list[Step] = []
        for entry in tree:
            if "plan" in entry:
                steps += plans_from_json(entry["plan"])
            elif "masks" in entry:
                steps.append(Masks(tuple(entry["masks"])))
            else:
                raise PlanError(f"the history has an entry that is neither a plan nor masks: {list(entry)}")
        return History(tuple(steps))


def masked(model: nn.Module) -> tuple[str, ...]:
    """The names of the tensors that have masks."""
    return tuple(
        target.name
        for target in all_targets(model)
        if any(isinstance(held, Mask) for slot in target.slots for held in slot.parametrizations())
    )


def model_state(model: nn.Module) -> dict[str, dict[str, torch.Tensor]]:
    """Every tensor of the model by its first name: parameters, buffers, and what may be made again (caches, plain
    attributes)."""
    for name, module in model.named_modules():
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            raise StorageError(f"layer {name!r} keeps extra state that is no tensor; only tensors are stored")
    state: dict[str, dict[str, torch.Tensor]] = {"state": {}, "optional": {}}
    for name, slot in _first_slots(model).items():
        state["state" if slot.kind in ("parameter", "buffer") else "optional"][name] = slot.tensor
    return state


@torch.no_grad()
def fill(
    model: nn.Module, state: Mapping[str, Mapping[str, torch.Tensor]], history: History | None = None
) -> None:
    """Writes the tensors that `model_state` gave into the model's own; all is checked before any is written.

    Raises StorageError where names, shapes or dtypes are not the model's.
    """
    require_module(model)
    own, history = _first_slots(model), history or History()
    needed = {name: slot.tensor for name, slot in own.items() if slot.kind in ("parameter", "buffer")}
    for name in [*state["state"], *needed]:
        stored, tensor = state["state"].get(name), needed.get(name)
        if stored is None or tensor is None or stored.shape != tensor.shape:
            shapes = [None if each is None else tuple(each.shape) for each in (stored, tensor)]
            raise StorageError(history.difference(model, name, *shapes))
        if stored.dtype != tensor.dtype:
            raise StorageError(f"tensor {name!r} is {stored.dtype} in the file, {tensor.dtype} in the model")
    for name, stored in state["state"].items():
        needed[name].copy_(stored)
    for name, stored in state["optional"].items():
        if name in own and own[name].tensor.shape == stored.shape and own[name].tensor.dtype == stored.dtype:
            own[name].tensor.copy_(stored)
    recompute(model)


def _first_slots(model: nn.Module) -> dict[str, Slot]:
    first: dict[int, Slot] = {}
    for slot in slots(model):
        first.setdefault(id(slot.tensor), slot)
    return {slot.name: slot for slot in first.values()}


def _knows(plan: PruningPlan, names: Sequence[str]) -> bool:
    return any(_behind(name, names) in plan.shapes for name in names)


def _behind(name: str, names: Sequence[str]) -> str:
    """The name under which torch keeps a tensor once it has a mask."""
    if name not in names:
        return name
    path, _, attribute = name.rpartition(".")
    return f"{path}.parametrizations.{attribute}.original".lstrip(".")
