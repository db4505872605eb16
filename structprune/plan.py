"""What to keep of a network, as plain data: it needs no torch and no model to be read, checked or compared.

A plan says for each tensor and dimension which positions stay, and which integer attributes change with
them. It is valid once it exists, since the constructors check it; its text form (`plan_json.py`) is bounded
before it is expanded. So a plan from a stranger cannot run code, exhaust memory or index out of bounds.

A plan speaks of the model it was made for. A network that is pruned twice has two plans, in order; the file
format holds any number (`plans_to_json`, `plans_from_json`), and `PruningPlan.to_json` is the case of one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from structprune import plan_json
from structprune.budget import Budget
from structprune.errors import InputError, PlanError
from structprune.kept import ByRow, Keep, Kept, kept_from_index, new_shape, require_rows
from structprune.plan_parts import (
    AttributeEdit,
    GroupPlan,
    checked_kept,
    checked_shares,
    require_unique,
    size_of,
)
from structprune.runtime_settings import Runtime

__all__ = [
    "REMAINING",
    "AttributeEdit",
    "Budget",
    "ByRow",
    "GroupPlan",
    "Keep",
    "Kept",
    "PruningPlan",
    "kept_from_index",
    "plan_digest",
    "plans_from_json",
    "plans_to_json",
]

REMAINING = "structprune_remaining"
"""The attribute of a pruned network that holds what remains of the one it began as: `PruningPlan.remaining`."""

_FINGERPRINT = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class PruningPlan:
    """What stays of a model: kept positions per tensor dimension, attribute edits, and how they were chosen.

    `fingerprint` names the model the plan belongs to (`structprune.tensors.fingerprint`). `tensors` maps
    tensor name -> dim -> kept positions (sorted, or a `ByRow`; an absent dim stays whole) and `shapes` gives the
    original shape of each of these tensors. `remaining` says which share of the network that was never
    pruned is left in "macs", "params", "channels", "peak_memory" and "file_size", so that later budgets stay
    absolute to it.
    Raises PlanError where the parts contradict each other.
    """

    fingerprint: str
    groups: tuple[GroupPlan, ...]
    tensors: Mapping[str, Mapping[int, Kept]]
    shapes: Mapping[str, tuple[int, ...]]
    attributes: tuple[AttributeEdit, ...]
    budget: Budget | None = None
    criterion: str = ""
    scope: str = ""
    remaining: Mapping[str, float] = field(default_factory=dict)
    _arrays: dict[int, np.ndarray] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __str__(self) -> str:
        cut = [
            f"{group.name} {group.size} -> {group.count}" for group in self.groups if group.count < group.size
        ]
        more = f" and {len(cut) - 20} more" if len(cut) > 20 else ""
        return f"plan for {self.budget or 'no budget'}: {', '.join(cut[:20]) or 'nothing is cut'}{more}"

    def __post_init__(self) -> None:
        if not _FINGERPRINT.fullmatch(self.fingerprint):
            raise PlanError(f"fingerprint {self.fingerprint[:80]!r}: expected 64 hexadecimal digits (sha256)")
        if self.tensors.keys() != self.shapes.keys():
            odd = sorted(self.tensors.keys() ^ self.shapes.keys())[:5]
            raise PlanError(f"tensors and shapes must name the same tensors; only one of them has {odd}")
        shapes = {name: tuple(shape) for name, shape in self.shapes.items()}
        done: dict[tuple[int, int], Kept] = {}
        tensors = {
            name: {
                dim: checked_kept(keep, shapes[name], dim, name, done) for dim, keep in sorted(dims.items())
            }
            for name, dims in self.tensors.items()
        }
        for name, dims in tensors.items():
            require_rows(name, dims, shapes[name])
        for mapped, value in (("shapes", shapes), ("tensors", tensors)):
            object.__setattr__(self, mapped, value)
        for listed in ("groups", "attributes"):
            object.__setattr__(self, listed, tuple(getattr(self, listed)))
        object.__setattr__(self, "remaining", checked_shares(self.remaining))
        require_unique("group", [group.name for group in self.groups])
        require_unique("attribute edit", [f"{edit.module}: {edit.path}" for edit in self.attributes])

    def new_shape(self, tensor: str) -> tuple[int, ...]:
        """The shape of a tensor of `tensors` after the cut."""
        return new_shape(self.tensors[tensor], self.shapes[tensor])

    def index(self, tensor: str) -> dict[int, np.ndarray]:
        """The old position at each new one of every dim of a tensor that is cut (int64).

        An array of one dim holds for the whole tensor. One of as many dims as the tensor has the new sizes where it
        depends on a dim, and ones elsewhere. A tensor that is not cut has none.
        """
        dims, shape = self.tensors.get(tensor, {}), self.shapes.get(tensor, ())
        new = new_shape(dims, shape)
        return {
            dim: keep.index(dim, new) if isinstance(keep, ByRow) else self._array(keep)
            for dim, keep in dims.items()
        }

    def _array(self, keep: tuple[int, ...]) -> np.ndarray:
        if (
            id(keep) not in self._arrays
        ):  # one list serves many tensors; the plan holds it, so its id stays its own
            self._arrays[id(keep)] = np.asarray(keep, dtype=np.int64)
        return self._arrays[id(keep)]

    def to_json(self) -> str:
        """The plan as JSON text, the same for equal plans; kept positions as ranges [[start, stop], ...]."""
        return plans_to_json([self])

    @staticmethod
    def from_json(text: str | bytes) -> PruningPlan:
        """The plan that `to_json` wrote; raises PlanError for text of any other form or schema version."""
        plans = plans_from_json(text)
        if len(plans) != 1:
            raise PlanError(
                f"the text holds {len(plans)} plans, one per pruning step; read it with plans_from_json"
            )
        return plans[0]


def plans_to_json(plans: Sequence[PruningPlan]) -> str:
    """JSON text of the plans of one network, in the order in which they were applied."""
    return plan_json.write([_record(plan) for plan in plans])


def plans_from_json(text: str | bytes) -> tuple[PruningPlan, ...]:
    """The plans in a text of `plans_to_json`; raises PlanError that names the first thing wrong with it."""
    expand = plan_json.Expander()
    try:
        return tuple(_plan(record, expand) for record in plan_json.read(text))
    except InputError as error:  # a budget that no budget can be
        raise PlanError(str(error)) from None


def plan_digest(plans: Sequence[PruningPlan]) -> str:
    """The sha256 (hex) of what the plans say, whoever wrote them and however their text is laid out."""
    return plan_json.digest([_record(plan) for plan in plans])


def _plan(record: plan_json.PlanRecord, expand: plan_json.Expander) -> PruningPlan:
    tensors: dict[str, dict[int, Kept]] = {}
    for name, tensor in record.tensors.items():
        tensors[name] = {}
        for dim, ranges in tensor.keep.items():
            size = size_of(tuple(tensor.shape), int(dim), name)
            tensors[name][int(dim)] = expand(ranges, size, f"tensor {name!r} dim {dim}")
        for dim, rows in tensor.by_row.items():
            what = f"tensor {name!r} dim {dim}"
            if int(dim) in tensors[name]:
                raise PlanError(f"{what}: what stays is said twice")
            size = size_of(tuple(tensor.shape), int(dim), name)
            lists = tuple(expand(ranges, size, what, ordered=False) for ranges in rows.rows)
            tensors[name][int(dim)] = ByRow(tuple(rows.by), lists, expand.runs(rows.row, what))
    return PruningPlan(
        fingerprint=record.fingerprint,
        groups=tuple(_group(group, expand) for group in record.groups),
        tensors=tensors,
        shapes={name: tuple(tensor.shape) for name, tensor in record.tensors.items()},
        attributes=tuple(AttributeEdit(e.module, tuple(e.path), e.old, e.new) for e in record.attributes),
        budget=None if record.budget is None else _budget(record.budget),
        criterion=record.criterion,
        scope=record.scope,
        remaining=record.remaining,
    )


def _group(group: plan_json.GroupRecord, expand: plan_json.Expander) -> GroupPlan:
    what = f"group {group.name!r}"
    if not group.by:
        return GroupPlan(group.name, group.size, expand(group.keep, group.size, what))
    rows = tuple(expand(row, group.size, what) for row in group.rows)
    return GroupPlan(group.name, group.size, rows, tuple(group.by))


def _record(plan: PruningPlan) -> dict[str, object]:
    return {
        "fingerprint": plan.fingerprint,
        "groups": [_group_record(group) for group in plan.groups],
        "tensors": {name: _tensor_record(plan.shapes[name], dims) for name, dims in plan.tensors.items()},
        "attributes": [vars(edit) for edit in plan.attributes],
        "budget": _budget_record(plan.budget) if plan.budget else None,
        "criterion": plan.criterion,
        "scope": plan.scope,
        "remaining": dict(plan.remaining),
    }


def _budget_record(budget: Budget) -> dict[str, object]:
    record: dict[str, object] = {limit.quantity: limit.value for limit in budget.limits}
    return {**record, **Runtime.of(budget.runtime).settings()} if budget.timed else record


def _budget(record: plan_json.BudgetRecord) -> Budget:
    given = record.model_dump(exclude_none=True)
    settings = {key: given.pop(key) for key in ("batch", "dtype", "provider_options") if key in given}
    runtime = Runtime(given.pop("runtime", Runtime.name), given.pop("threads", Runtime.threads), **settings)
    return Budget(**given, runtime=runtime)


def _group_record(group: GroupPlan) -> dict[str, object]:
    ranges = plan_json.ranges
    if group.by:
        rows = [ranges(row) for row in group.keep]  # type: ignore[arg-type]
        return {"name": group.name, "size": group.size, "keep": [], "by": group.by, "rows": rows}
    return {"name": group.name, "size": group.size, "keep": ranges(group.keep)}  # type: ignore[arg-type]


def _tensor_record(shape: tuple[int, ...], dims: Mapping[int, Kept]) -> dict[str, object]:
    ranges = plan_json.ranges
    plain = {str(dim): ranges(keep) for dim, keep in dims.items() if not isinstance(keep, ByRow)}
    by_row = {
        str(dim): {"by": keep.by, "rows": [ranges(row) for row in keep.rows], "row": plan_json.runs(keep.row)}
        for dim, keep in dims.items()
        if isinstance(keep, ByRow)
    }
    record: dict[str, object] = {"shape": shape, "keep": plain}
    return record | {"by_row": by_row} if by_row else record
