"""A pruned network on disk: `plan.json` and its safetensors. Nothing is pickled, nothing is half written.

`save` writes both files beside the old ones and then renames them, the weights first. The weights carry the
digest of their plan, and the new plan lies in `plan.json.new` until it is renamed, so wherever a save is
interrupted the folder holds one whole network, old or new. `load` takes the plan that the weights name.

Stored are parameters, persistent buffers, and tensors in plain attributes. A buffer that is not persistent is
the model's to make again, as torch has it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from structprune.archive import distinct_memory, sync
from structprune.arguments import typed
from structprune.checkpoint import WEIGHTS, Checkpoint, open_checkpoint
from structprune.errors import InputError, PlanError, StorageError
from structprune.plan import PruningPlan, plan_digest, plans_from_json, plans_to_json
from structprune.replica import recompute, replica
from structprune.surgery import apply_plan, replace_tensors
from structprune.tensors import built, is_plain, like, named_tensors, require_module, stored_slots

__all__ = ["PLAN", "load", "load_plans", "plans_of", "save"]

PLAN = "plan.json"


@typed
def save(
    directory: str | os.PathLike[str], model: nn.Module, plan: PruningPlan | Sequence[PruningPlan]
) -> None:
    """Writes the pruned model and its plan into the directory, over what an earlier save left there.

    A network that was pruned several times takes its plans in order, since `load` begins at the original.
    Raises StorageError where the model is not what the plans make, or the files cannot be written.
    """
    plans = (plan,) if isinstance(plan, PruningPlan) else tuple(plan)
    _require_match(model, plans)
    folder = Path(directory)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder, model, plans)
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        raise StorageError(f"{folder}: cannot save the model: {error}") from error


@typed
def load_plans(directory: str | os.PathLike[str]) -> tuple[PruningPlan, ...]:
    """The plans of a saved network, in the order in which they were applied.

    Raises StorageError for a folder that is incomplete or damaged, PlanError for a file that is no plan.
    """
    return plans_of(open_checkpoint(directory))


def plans_of(weights: Checkpoint) -> tuple[PruningPlan, ...]:
    """The plans that lie beside weights and belong to them; raises as `load_plans` does."""
    folder, wanted = weights.folder, weights.shared("plan")
    for name in (PLAN, f"{PLAN}.new"):
        path = folder / name
        if not path.is_file():
            continue
        try:
            plans = plans_from_json(path.read_bytes())
        except PlanError as error:
            raise PlanError(f"{path}: {error}") from None
        if plan_digest(plans) == wanted:
            return plans
    if not (folder / PLAN).is_file():
        raise StorageError(
            f"{folder}: there is no {PLAN}; a saved network is its plan and its weights together"
        )
    raise StorageError(
        f"{folder}: {PLAN} is not the plan that {weights.label} was saved with; take all files from one save"
    )


@typed
def load(
    directory: str | os.PathLike[str],
    build_model: Callable[[], nn.Module],
    device: torch.device | str | None = None,
) -> nn.Module:
    """The saved network: `build_model()` makes the original architecture, which is then cut and filled.

    Tensors go to `device`, or to where `build_model` put theirs; dtypes are those that were saved. Under
    `empty_weights()` `build_model` takes no memory for weights that are about to be replaced. Raises InputError where
    `build_model` builds no module or torch knows no such device, StorageError for files that are missing, damaged or of
    another model, PlanError for a plan that is no plan or does not fit the model.
    """
    folder, place = Path(directory), None if device is None else _device(device)
    plans = load_plans(folder)
    model = built(build_model)
    devices = {name: slot.tensor.device for name, slot in stored_slots(model).items()}
    model = replica(model, _emptied(model))  # what build_model returned may be in use
    for plan in plans:
        model = apply_plan(model, plan, inplace=True)
    _fill(model, open_checkpoint(folder), {name: place or old for name, old in devices.items()})
    if place is not None:
        model.to(place)
    recompute(model)
    return model


def _device(device: torch.device | str) -> torch.device:
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise InputError(f"{device=}: {str(error).splitlines()[0]}") from None


def _require_match(model: nn.Module, plans: Sequence[PruningPlan]) -> None:
    """Raises StorageError unless the plans follow upon each other and the model is what they make."""
    if not plans:
        raise StorageError("save needs the plan, or the plans in order, that made the model")
    require_module(model)
    for name, module in model.named_modules():
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            raise StorageError(f"layer {name!r} keeps extra state that is no tensor; only tensors are stored")
    shapes: dict[str, tuple[int, ...]] = {}
    for number, plan in enumerate(plans, 1):
        for name, shape in plan.shapes.items():
            if shapes.get(name, shape) != shape:
                before = list(shapes[name])
                raise StorageError(
                    f"plan {number} takes {name!r} as {list(shape)}, its forerunner makes it {before}"
                )
            shapes[name] = plan.new_shape(name)
    present, state = named_tensors(model), stored_slots(model)
    for name, slot in state.items():
        if not is_plain(slot.tensor):
            raise StorageError(
                f"tensor {name!r} is a {type(slot.tensor).__name__}, of which this process may hold a part: save the "
                "model with whole tensors, as it is before it is cut into shards"
            )
    for name, shape in shapes.items():
        found = tuple(present[name].shape) if name in present else None
        if found is None or (name in state and found != shape):
            what = "no such tensor" if found is None else f"shape {list(found)}"
            raise StorageError(
                f"tensor {name!r}: the plan makes it {list(shape)}, the model has {what}; "
                "save the pruned model with the plan that made it (several steps: all their plans, in order)"
            )


def _write(folder: Path, model: nn.Module, plans: Sequence[PruningPlan]) -> None:
    stored = stored_slots(model)
    attributes = [name for name, slot in stored.items() if slot.kind == "attribute"]
    metadata = {"format": "pt", "plan": plan_digest(plans), "attributes": "\n".join(attributes)}
    _finish_interrupted(folder)
    new_plan, new_weights = folder / f"{PLAN}.new", folder / f"{WEIGHTS}.new"
    try:
        new_plan.write_text(plans_to_json(plans), encoding="utf-8", newline="\n")
        save_file(
            distinct_memory({name: slot.tensor for name, slot in stored.items()}), new_weights, metadata
        )
        new_weights.chmod(new_plan.stat().st_mode)  # as the user's umask has it
        sync(new_plan, new_weights)
    except BaseException:
        new_plan.unlink(missing_ok=True)
        new_weights.unlink(missing_ok=True)
        raise
    os.replace(new_weights, folder / WEIGHTS)  # from here on the new network is the one that is loaded
    os.replace(new_plan, folder / PLAN)
    sync(folder)


def _finish_interrupted(folder: Path) -> None:
    """Renames the plan of a save that was interrupted between its two renames, before it is written over."""
    new_plan = folder / f"{PLAN}.new"
    if not (new_plan.is_file() and (folder / WEIGHTS).is_file()):
        return
    try:
        wanted = open_checkpoint(folder / WEIGHTS).shared("plan")
        if plan_digest(plans_from_json(new_plan.read_bytes())) == wanted:
            os.replace(new_plan, folder / PLAN)
    except (PlanError, StorageError):
        return  # what is there is no network, and nothing is lost by writing over it


def _emptied(model: nn.Module) -> dict[int, torch.Tensor]:
    """id(tensor) -> a stand-in of its shape without memory, for the tensors that the file will supply."""
    return {
        id(slot.tensor): like(slot.tensor, slot.tensor.new_zeros(()).expand(slot.tensor.shape))
        for slot in stored_slots(model).values()
        if slot.kind != "attribute"
    }


def _fill(model: nn.Module, weights: Checkpoint, devices: Mapping[str, torch.device]) -> None:
    stored = stored_slots(model)
    own = {name: first for name, first in weights.names(model).items() if first in stored}
    optional = {name for name, slot in stored.items() if slot.kind == "attribute"}
    missing = sorted(stored.keys() - optional - set(own.values()))
    attributes = {
        name for each in weights.metadata.values() for name in each.get("attributes", "").split("\n")
    }
    extra = sorted(weights.entries.keys() - own.keys() - attributes)
    if missing or extra:
        raise StorageError(
            f"{weights.label} is of another model: it lacks {missing[:5]}, the model lacks {extra[:5]}"
        )
    wanted = {}
    for name, first in own.items():
        shape, needed = weights.entries[name].shape, tuple(stored[first].tensor.shape)
        if shape == needed:
            wanted[name] = first
        elif first not in optional:  # a cache of another length: the fresh model's own is as good
            raise StorageError(
                f"{weights.label}: {name!r} has shape {list(shape)}, the model needs {list(needed)}"
            )
    new = {}
    for name, data in weights.tensors(wanted):
        old = stored[wanted[name]].tensor
        if data.is_floating_point() != old.is_floating_point() or data.is_complex() != old.is_complex():
            raise StorageError(
                f"{weights.label}: {name!r} is {data.dtype}, the model needs a dtype like {old.dtype}"
            )
        target = devices[wanted[name]]
        new[id(old)] = like(old, data.to(target if target.type != "meta" else torch.device("cpu")))
    replace_tensors(model, new)
    _require_values(model)


def _require_values(model: nn.Module) -> None:
    absent = [name for name, tensor in named_tensors(model).items() if tensor.is_meta]
    if absent:
        raise StorageError(
            f"build_model leaves {absent[:5]} without values (meta device), and they are not stored; build under "
            "structprune.empty_weights() in place of torch.device('meta')"
        )
