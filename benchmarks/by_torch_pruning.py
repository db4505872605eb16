"""torch-pruning's cuts as its README makes them, set to a size: what the tables hold structprune's against.

A `BasePruner` (its `MagnitudePruner`), the classifier ignored, uniform or global, with `GroupMagnitudeImportance(p=2)`
and widths rounded to 8 or 16 unless another criterion and rounding are asked for. Only its `pruning_ratio` is searched
for, by bisection, until the network has the MACs or the latency that is asked for: the nearest there is, above or
below. Its rounding makes ladders of sizes, so the nearest may be some way off; every row says where it stands.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch_pruning as tp
from torch import Tensor, nn

import structprune as sp

__all__ = ["MODES", "Cut", "Mode", "cut", "nearest", "plan_of"]

_HALVINGS = 10
_WIDEST = 0.98  # the largest pruning ratio that is tried
_NEAR = 0.003  # of the size that is asked for: no need to look on

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Mode:
    """One way of pruning with torch-pruning."""

    name: str
    global_pruning: bool
    round_to: int


MODES = tuple(
    Mode(f"torch-pruning {name} {round_to}", name == "global", round_to)
    for name in ("uniform", "global")
    for round_to in (8, 16)
)


@dataclass(frozen=True)
class Cut:
    """A pruned copy: the ratio that it was asked for, and what went, as torch-pruning's history has it."""

    model: nn.Module
    pruning_ratio: float
    history: Sequence[tuple[str, bool, Sequence[int]]]


def cut(
    model: nn.Module,
    inputs: Inputs,
    mode: Mode,
    pruning_ratio: float,
    importance: Callable[[Any], Any] | None = None,
    gradients: Mapping[str, Tensor] | None = None,
) -> Cut:
    """The pruned copy of `model` at one pruning ratio, in eval mode as torch-pruning leaves it.

    `gradients` are what `importance` finds in the parameters' `.grad`. Attention layers of the kind that
    `digits_networks` has (parts `q`, `k` and `v`, a number `heads`) are declared as such.
    """
    args, kwargs = inputs
    model = copy.deepcopy(model)
    for name, parameter in model.named_parameters():
        parameter.grad = None if gradients is None else gradients[name].clone()
    attention = [one for one in model.modules() if hasattr(one, "heads")]
    layers = [one for one in model.modules() if isinstance(one, (nn.Linear, nn.modules.conv._ConvNd))]
    pruner = tp.pruner.BasePruner(
        model,
        kwargs or args,
        importance=importance or tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=pruning_ratio,
        global_pruning=mode.global_pruning,
        round_to=mode.round_to,
        ignored_layers=layers[-1:],
        num_heads={part: one.heads for one in attention for part in (one.q, one.k, one.v)},
    )
    pruner.step()
    return Cut(model.eval(), pruning_ratio, tuple(pruner.pruning_history()))


def nearest(cut_at: Callable[[float], Cut], size: Callable[[Cut], float], wanted: float) -> Cut:
    """The cut whose size is nearest to `wanted`, of those that bisection over the pruning ratio comes by."""
    low, high = 0.0, _WIDEST
    tried: list[tuple[float, Cut]] = []
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        made = cut_at(middle)
        found = size(made)
        tried.append((abs(found - wanted), made))
        if tried[-1][0] <= _NEAR * wanted:
            break
        low, high = (middle, high) if found > wanted else (low, middle)
    return min(tried, key=lambda one: one[0])[1]


def plan_of(graph: sp.DependencyGraph, history: Sequence[tuple[str, bool, Sequence[int]]]) -> sp.PruningPlan:
    """The plan that makes the same cut: the channels that one step removed, group by group.

    Raises:
        ValueError: where torch-pruning removed channels that the graph does not have as such.
    """
    gone: dict[str, set[int]] = {group.name: set() for group in graph.groups}
    for layer, outward, positions in history:
        if not len(positions):  # rounding gave all of them back
            continue
        tensor, dim = f"{layer}.weight", 0 if outward else 1
        found = [
            (group, member.index[np.asarray(positions, dtype=np.int64)])
            for group in graph.groups
            for member in group.members
            if (member.tensor, member.dim) == (tensor, dim) and group.frozen is None
        ]
        if len(found) != 1 or found[0][1].min() < 0:
            raise ValueError(f"channels of {layer!r} are no channels of one free group")
        gone[found[0][0].name].update(found[0][1].tolist())
    keep = {
        group.name: tuple(n for n in range(group.size) if n not in gone[group.name])
        for group in graph.groups
        if gone[group.name]
    }
    return graph.plan(keep)
