"""`score`: one importance per channel of every free group, by a named criterion or by the caller's own."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from structprune.checkpoint import open_checkpoint
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
    model: torch.nn.Module,
    graph: GraphLike,
    criterion: str | Criterion = "l2",
    *,
    weights: str | os.PathLike[str] | None = None,
    **options: Any,
) -> dict[str, NDArray[np.float64]]:
    """The importance of every channel of every free group: {group name: float64 [size]}, higher is more
    important. A group that may keep its own channels in each channel of others has [rows, size].

    `criterion` is a name (l1, l2, linf, bn_scale, random) or a function of one `GroupTensors` that returns
    one number per channel; `options` are passed on to it (`score(model, graph, "random", seed=1)`). The model
    is only read. `weights` names safetensors files (a folder, a file or an index) to take the values from
    instead, one tensor at a time: the model may then lie on the meta device and the files be larger than
    memory.

    Raises InputError for an unknown name or option, weights of another model, scores of the wrong shape, and
    scores that are not finite; StorageError for files that are missing or damaged.
    """
    function = _criterion(criterion, options)
    tensors = named_tensors(model)
    stored = {} if weights is None else _stored(model, tensors, weights)
    groups = group_tensors(model, graph, tensors, stored)
    with torch.no_grad():
        return {group.name: _checked(group, _call(function, group, options)) for group in groups}


def _stored(
    model: torch.nn.Module, tensors: Mapping[str, torch.Tensor], weights: str | os.PathLike[str]
) -> dict[str, Callable[[], torch.Tensor]]:
    """What reads each tensor of the model from the files, by the tensor's first name."""
    checkpoint = open_checkpoint(weights)
    found: dict[str, Callable[[], torch.Tensor]] = {}
    for name, own in checkpoint.names(model).items():
        shape, needed = checkpoint.entries[name].shape, tuple(tensors[own].shape)
        if shape != needed:
            raise InputError(f"{weights}: {name!r} has shape {list(shape)}, the model's is {list(needed)}")
        found.setdefault(own, partial(checkpoint.tensor, name))
    if lost := [name for name, _ in model.named_parameters() if name not in found]:
        raise InputError(
            f"{weights} lacks {len(lost)} parameters of the model, such as {lost[0]!r}; it has "
            f"{next(iter(checkpoint.entries))!r}: trace the model that these files were saved from"
        )
    return found


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
    if values.shape == (group.size,) != group.shape:
        values = np.broadcast_to(values / group.rows, group.shape)  # no opinion on rows: the same in each
    if values.shape != group.shape:
        raise InputError(
            f"group {group.name!r} has {group.size} channels: the criterion must return shape "
            f"{group.shape}, got {values.shape}"
        )
    if not np.isfinite(values).all():
        raise InputError(f"group {group.name!r}: importance is not finite{_culprit(group)}")
    return values


def _culprit(group: GroupTensors) -> str:
    for member in group.parameters:
        if not torch.isfinite(member.tensor).all():
            return f", since {member.name!r} holds NaN or infinity: repair the weights before pruning"
    return ", though all its parameters are: check the criterion"
