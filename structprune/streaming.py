"""A plan applied to weights on disk, file to file: no network is built, one tensor is in memory at a time.

All is checked before anything is written. The new files are made in a folder beside the target, which gets the
target's name once they are complete: the target is whole or absent, wherever the work is interrupted.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from structprune.archive import sync
from structprune.arguments import typed
from structprune.checkpoint import (
    INDEX_SUFFIX,
    WEIGHTS,
    Checkpoint,
    Entry,
    open_checkpoint,
    write_safetensors,
)
from structprune.errors import PlanError, StorageError
from structprune.plan import PruningPlan, plan_digest, plans_to_json
from structprune.storage import PLAN, plans_of
from structprune.surgery import check_plan, cut_tensor
from structprune.tensors import shapes_fingerprint, stored_slots

__all__ = ["FilesReport", "apply_plan_to_files"]

_COPIED = ("*.json", "*.txt", "*.model", "*.jinja")
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class FilesReport:
    """What `apply_plan_to_files` wrote: tensors, how many of them are cut, bytes, and what it left out."""

    tensors: int
    cut: int
    bytes_before: int
    bytes_after: int
    left_out: tuple[str, ...]

    def __str__(self) -> str:
        lines = [
            f"{self.tensors} tensors, {self.cut} of them cut",
            f"{self.bytes_before:,} -> {self.bytes_after:,} bytes ({self.bytes_after / max(1, self.bytes_before):.1%})",
        ]
        if self.left_out:
            lines.append(f"left out, since the model has no such state: {', '.join(self.left_out[:5])}")
        return "\n".join(lines)


@typed
def apply_plan_to_files(
    source: str | os.PathLike[str],
    plan: PruningPlan,
    target: str | os.PathLike[str],
    model: nn.Module | None = None,
    copy: Sequence[str] = _COPIED,
) -> FilesReport:
    """The weights of `source`, cut as the plan says, in the new folder `target`, for `load` to read.

    `source` is a safetensors file, an index of several, or a folder with either. The target has the same files
    and the same tensors in each, with their dtypes and metadata, and `plan.json`. Of a folder, files that match
    `copy` come along: a `config.json` among them still describes the original, which is what `load` builds.

    The names and shapes in the files must be those of the model that was traced. Where they are not quite
    (tied tensors stored under another name or twice, leftovers of older versions), give that `model`, which may
    lie on the meta device: what is no state of it is left out, and reported.

    Raises PlanError where the plan is for other weights, StorageError where files are missing or damaged, and
    where the target exists. A process that is killed leaves nothing but a folder `.<target>.*.partial`.
    """
    weights = open_checkpoint(source)
    names = _state_names(weights, plan) if model is None else _model_names(weights, plan, model)
    after = {name: _entry_after(weights.entries[name], plan, first) for name, first in names.items()}
    report = _report(weights, after)
    earlier = plans_of(weights) if any("plan" in each for each in weights.metadata.values()) else ()
    beside = _beside(weights, copy) if Path(source).is_dir() else []

    def values(name: str) -> torch.Tensor:
        return _kept(weights.tensor(name), plan, names[name])

    try:
        with _whole_or_absent(Path(os.path.abspath(target))) as folder:
            for path in beside:
                shutil.copyfile(path, folder / path.name)
            _write(folder, weights, after, values, (*earlier, plan))
            open_checkpoint(folder)  # what was written is read back, as far as headers go
    except OSError as error:
        raise StorageError(f"{target}: cannot write the pruned weights: {error}") from error
    return report


# -- what fits -------------------------------------------------------------------------------------------------


def _state_names(weights: Checkpoint, plan: PruningPlan) -> dict[str, str]:
    """File name -> plan name, where the files hold exactly the state of the plan's model."""
    _require_shapes(weights, {name: name for name in weights.entries}, plan.shapes)
    attributes = {
        name for each in weights.metadata.values() for name in each.get("attributes", "").split("\n")
    }
    shapes = {name: entry.shape for name, entry in weights.entries.items() if name not in attributes}
    if shapes_fingerprint(shapes) != plan.fingerprint:
        raise PlanError(_difference(weights, plan))
    return {name: name for name in weights.entries}


def _difference(weights: Checkpoint, plan: PruningPlan) -> str:
    """What to say where names and shapes are not those of the plan's model; the plan names only what it cuts."""
    text = f"{weights.label} does not hold exactly the state of the model that the plan was made for"
    for name in plan.tensors:
        if name not in weights.entries:
            close = next((other for other in weights.entries if _ends_alike(name, other)), None)
            text += f": it lacks {name!r}" + (f" (and has {close!r})" if close else "")
            break
    return (
        f"{text}. Trace the model that these weights were saved from; where tied tensors are stored twice or under "
        "another name, or tensors of an older version are left over, give that model=, on the meta device if need be"
    )


def _ends_alike(one: str, other: str) -> bool:
    return one.endswith(f".{other}") or other.endswith(f".{one}")


def _model_names(weights: Checkpoint, plan: PruningPlan, model: nn.Module) -> dict[str, str]:
    """File name -> the model's first name for that tensor, for all that is state of the model."""
    check_plan(model, plan)
    state = stored_slots(model)
    names = {name: first for name, first in weights.names(model).items() if first in state}
    _require_shapes(weights, names, {name: tuple(slot.tensor.shape) for name, slot in state.items()})
    held = set(names.values())
    if lost := [name for name, slot in state.items() if slot.kind != "attribute" and name not in held]:
        raise StorageError(f"{weights.label} lacks {lost[:3]} of the model ({len(lost)} tensors in all)")
    first_name: dict[str, str] = {}
    for name, first in names.items():
        other = first_name.setdefault(first, name)
        if other != name and not torch.equal(weights.tensor(name), weights.tensor(other)):
            raise StorageError(
                f"{weights.label}: {other!r} and {name!r} are one tensor in the model, and differ here"
            )
    return names


def _require_shapes(
    weights: Checkpoint, names: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    for name, first in names.items():
        shape = weights.entries[name].shape
        if shapes.get(first, shape) != shape:
            raise PlanError(
                f"{weights.label}: {name!r} has shape {list(shape)}, the plan is for {list(shapes[first])}; "
                "take the weights that the plan was made for"
            )


def _beside(weights: Checkpoint, patterns: Sequence[str]) -> list[Path]:
    """Files of the folder that come along: neither weights nor the plan, which are written anew."""
    found = {path for pattern in patterns for path in weights.folder.glob(pattern) if path.is_file()}
    return sorted(
        path
        for path in found
        if path.name not in (PLAN, f"{PLAN}.new") and not path.name.endswith((INDEX_SUFFIX, ".safetensors"))
    )


# -- what is written -------------------------------------------------------------------------------------------


def _entry_after(entry: Entry, plan: PruningPlan, name: str) -> Entry:
    return replace(entry, shape=plan.new_shape(name)) if name in plan.tensors else entry


def _report(weights: Checkpoint, after: Mapping[str, Entry]) -> FilesReport:
    before = weights.entries
    return FilesReport(
        tensors=len(after),
        cut=sum(entry.shape != before[name].shape for name, entry in after.items()),
        bytes_before=sum(entry.nbytes for entry in before.values()),
        bytes_after=sum(entry.nbytes for entry in after.values()),
        left_out=tuple(name for name in before if name not in after),
    )


def _write(
    folder: Path,
    weights: Checkpoint,
    after: Mapping[str, Entry],
    values: Callable[[str], torch.Tensor],
    plans: Sequence[PruningPlan],
) -> None:
    """Plan, shards and index; every shard names the plan that it was cut by."""
    digest = plan_digest(plans)
    (folder / PLAN).write_text(plans_to_json(plans), encoding="utf-8", newline="\n")
    for file, metadata in weights.metadata.items():
        inside = {name: entry for name, entry in after.items() if entry.file == file}
        path = folder / (WEIGHTS if weights.index is None else file)
        write_safetensors(path, inside, values, {"format": "pt", **metadata, "plan": digest})
    if weights.index is not None:
        (folder / weights.index).write_text(_index(weights, after), encoding="utf-8", newline="\n")


def _index(weights: Checkpoint, after: Mapping[str, Entry]) -> str:
    metadata = {**weights.index_metadata, "total_size": sum(entry.nbytes for entry in after.values())}
    if isinstance(metadata.get("total_parameters"), int):
        metadata["total_parameters"] += _numel(after) - _numel(weights.entries)
    places = {name: entry.file for name, entry in after.items()}
    return json.dumps({"metadata": metadata, "weight_map": places}, indent=2) + "\n"


def _numel(entries: Mapping[str, Entry]) -> int:
    return sum(math.prod(entry.shape) for entry in entries.values())


def _kept(values: torch.Tensor, plan: PruningPlan, name: str) -> torch.Tensor:
    """The kept positions, bit for bit, of any type: not all types can be indexed as what they are."""
    return cut_tensor(plan, name, values.view(_BITS[values.element_size()]))


@contextmanager
def _whole_or_absent(target: Path) -> Iterator[Path]:
    """A folder to write into that becomes the target at the end, and is gone after an error."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise StorageError(f"{target} exists; name a new folder, or remove it first")
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.partial"
    aside.mkdir()
    try:
        yield aside
        sync(*(path for path in aside.iterdir()), aside)
        if target.exists():
            target.rmdir()
        os.rename(aside, target)
        sync(target.parent)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
