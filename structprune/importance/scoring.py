"""`score`: one importance per channel of every free group, by a named criterion or by the caller's own."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from structprune.errors import InputError
from structprune.importance.chance import random
from structprune.importance.groups import GraphLike, GroupTensors, group_tensors
from structprune.importance.magnitude import l1, l2, linf
from structprune.importance.scaling import bn_scale
from structprune.tensors import named_tensors

__all__ = ["CRITERIA", "Criterion", "score"]

Criterion = Callable[..., ArrayLike | torch.Tensor]
"""`criterion(group: GroupTensors, **options)` -> one number per channel, higher is more important."""

CRITERIA: MappingProxyType[str, Criterion] = MappingProxyType(
    {criterion.__name__: criterion for criterion in (l1, l2, linf, bn_scale, random)}
)


def score(
    model: torch.nn.Module, graph: GraphLike, criterion: str | Criterion = "l2", **options: Any
) -> dict[str, NDArray[np.float64]]:
    """The importance of every channel of every free group: {group name: float64 [size]}, higher is more
    important.

    `criterion` is a name (l1, l2, linf, bn_scale, random) or a function of one `GroupTensors` that returns
    one number per channel; `options` are passed on to it (`score(model, graph, "random", seed=1)`). The model
    is only read. Raises InputError for an unknown name or option, scores of the wrong shape, and scores that
    are not finite.
    """
    function = _criterion(criterion, options)
    groups = group_tensors(model, graph, named_tensors(model))
    with torch.no_grad():
        return {group.name: _checked(group, _call(function, group, options)) for group in groups}


def _criterion(criterion: str | Criterion, options: dict[str, Any]) -> Criterion:
    if not callable(criterion):
        if criterion not in CRITERIA:
            raise InputError(
                f"unknown criterion {criterion!r}: use one of {', '.join(CRITERIA)}, or a function"
            )
        criterion = CRITERIA[criterion]
    try:
        inspect.signature(criterion).bind(None, **options)
    except TypeError as error:
        name = getattr(criterion, "__name__", type(criterion).__name__)
        raise InputError(
            f"criterion {name!r} cannot be called with one group and {options}: {error}"
        ) from None
    return criterion


def _call(function: Criterion, group: GroupTensors, options: dict[str, Any]) -> NDArray[np.float64]:
    result = function(group, **options)
    if isinstance(result, torch.Tensor):
        result = result.detach().double().cpu().numpy()
    return np.array(result, dtype=np.float64)


def _checked(group: GroupTensors, values: NDArray[np.float64]) -> NDArray[np.float64]:
    if values.shape != (group.size,):
        raise InputError(
            f"group {group.name!r} has {group.size} channels: the criterion must return shape "
            f"({group.size},), got {values.shape}"
        )
    if not np.isfinite(values).all():
        raise InputError(f"group {group.name!r}: importance is not finite{_culprit(group)}")
    return values


def _culprit(group: GroupTensors) -> str:
    for member in group.parameters:
        if not torch.isfinite(member.tensor).all():
            return f", since {member.name!r} holds NaN or infinity: repair the weights before pruning"
    return ", though all its parameters are: check the criterion"
