"""Which positions of a layer's result stay when a plan is applied: of any layer, with tensors of its own or none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from torch import nn

from structprune import axes
from structprune.assembly import trace
from structprune.cutting import positions
from structprune.errors import InputError
from structprune.plan import PruningPlan
from structprune.recovery import cut_by
from structprune.rules.context import Dims
from structprune.surgery import apply_plan, check_plan

__all__ = ["Index", "kept_features"]

Index: TypeAlias = "Mapping[int, np.ndarray]"
"""Dim -> the old position at each new one (int64), as `gathering.take` reads it; a dim left out stays whole."""


def kept_features(
    model: nn.Module, plans: Sequence[PruningPlan], example_inputs: Any, layers: Sequence[str]
) -> dict[str, tuple[Index, ...]]:
    """Return for each layer what the plans keep of its result in ``model``, one index for each plan, in their order.

    The result of a layer is the tensor that it returns, the first where it returns several. ``model`` is the network
    before the first plan, and stays as it is. Raises PlanError where a plan is not that of the network it is applied
    to, InputError for a layer that the forward does not reach or that runs several times and is cut differently.
    """
    found: dict[str, list[Index]] = {layer: [] for layer in layers}
    for number, plan in enumerate(plans):
        check_plan(model, plan)
        run = trace(model, example_inputs).run
        cut = cut_by(plan, run)
        for layer, kept in found.items():
            kept.append(_same(layer, [_index(dims, cut) for dims in _results(layer, run.context.results)]))
        if number + 1 < len(plans):
            model = apply_plan(model, plan)
    return {layer: tuple(kept) for layer, kept in found.items()}


def _results(layer: str, results: Mapping[str, Sequence[Dims]]) -> Sequence[Dims]:
    if layer not in results:
        some = ", ".join(name for name in list(results)[:8] if name)
        raise InputError(
            f"no layer {layer!r} returns a tensor when the model runs on these inputs; those that do: {some}, ..."
        )
    return results[layer]


def _index(dims: Dims, cut: Any) -> dict[int, np.ndarray]:
    return positions([axes.normal(dim) for dim in dims], cut)


def _same(layer: str, runs: Sequence[dict[int, np.ndarray]]) -> Index:
    first = runs[0]
    for other in runs[1:]:
        if first.keys() != other.keys() or not all(np.array_equal(first[dim], other[dim]) for dim in first):
            raise InputError(
                f"layer {layer!r} runs {len(runs)} times in one forward, and the plan cuts its results differently"
            )
    return first
