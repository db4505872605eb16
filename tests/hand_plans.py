"""Plans written by hand, for tests that must not depend on a trace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from structprune.plan import AttributeEdit, GroupPlan, PruningPlan
from structprune.tensors import fingerprint, named_tensors


def hand_plan(
    model: nn.Module,
    tensors: Mapping[str, Mapping[int, Sequence[int]]],
    attributes: Sequence[AttributeEdit] = (),
    groups: Sequence[GroupPlan] = (),
) -> PruningPlan:
    """The plan that keeps these positions of these tensors of this model."""
    held = named_tensors(model)
    return PruningPlan(
        fingerprint=fingerprint(model),
        groups=tuple(groups),
        tensors={name: {dim: tuple(keep) for dim, keep in dims.items()} for name, dims in tensors.items()},
        shapes={name: tuple(held[name].shape) for name in tensors},
        attributes=tuple(attributes),
    )
