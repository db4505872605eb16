"""`score`: one importance per channel of every free group, by a named criterion or by the caller's own."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from structprune.arguments import typed
from structprune.checkpoint import open_checkpoint
from structprune.errors import InputError
from structprune.importance.batches import iterable_of_batches, told
from structprune.importance.calibration import Calibration, Loss, cross_entropy
from structprune.importance.groups import GraphLike, GroupTensors, group_tensors, own_values
from structprune.importance.registry import CRITERIA, Criterion, Needs, is_ours, needs_of, options_of
from structprune.tensors import named_tensors

__all__ = ["criterion_name", "score"]


@typed
def score(
    model: torch.nn.Module,
    graph: GraphLike,
    criterion: str | Criterion = "l2",
    *,
    data: Iterable[Any] | None = None,
    loss: Loss | None = None,
    weights: str | os.PathLike[str] | None = None,
    **options: Any,
) -> dict[str, NDArray[np.float64]]:
    """The importance of every channel of every free group: {group name: float64 [size]}, higher is more
    important. A group that may keep its own channels in each channel of others has [rows, size].

    `criterion` is a name or a function of one `GroupTensors` that returns one number per channel; `options` are passed
    on to it (`score(model, graph, "random", seed=1)`). l1, l2, linf, bn_scale, fpgm, lamp and random read the weights
    alone. wanda and obs also take `data`, an iterable of inputs or of pairs (inputs, target), or one tensor, which is
    split into batches; taylor, snip, fisher and hessian take pairs, and `loss(output, target)`, a mean over the batch
    (default: cross entropy of logits and integer classes, with a mean over all targets that count: not those of -100).
    taylor and fisher take samples one by one, along dim 0 of the inputs, the output and the target: wrap a model in
    which time comes first (nn.GRU by default). The data are gone through once, in eval mode; where several
    processes run, each brings its own, and all get the scores of all of it. The others pass data over. The model is
    only read. `weights` names safetensors files (a folder, a file or an index) to take the values from instead, one
    tensor at a time: the model may then lie on the meta device and the files be larger than memory.

    Raises InputError for an unknown name or option, data or labels that are missing or do not fit, weights of another
    model, samples that meet in the network or the loss where a criterion takes them one by one, scores of the wrong
    shape, that are not finite, or of a loss and all zero; StorageError for files that are missing or
    damaged.
    """
    function = _criterion(criterion)
    if loss is not None and not callable(loss):
        raise InputError(
            f"{loss=}: expected a function of (output, target) that returns the mean over the batch"
        )
    needs = needs_of(function)
    if needs is None:
        options.update(_own_data(function, data, loss))
    ours, theirs = _divided(function, options)
    if needs is not None:
        _require_data(model, function, needs, data, weights)
    tensors = named_tensors(model)
    stored = {} if weights is None else _stored(model, tensors, weights)
    if not is_ours(function):  # it may write into what it is given
        stored = {name: partial(_copied, name, tensor) for name, tensor in tensors.items()} | stored
    groups = group_tensors(model, graph, tensors, stored)
    if needs is not None and groups:
        batches = iterable_of_batches(data, "data")
        calibration = Calibration(model, groups, batches, loss or cross_entropy, needs.labels)
        with torch.inference_mode(False), torch.random.fork_rng(devices=[]):  # a loader that shuffles draws
            groups[0].shared.collected(needs.collect(calibration, **theirs))
    with torch.no_grad():
        scores = {group.name: _checked(group, _call(function, group, ours)) for group in groups}
    if needs is not None and needs.labels and scores and not any(values.any() for values in scores.values()):
        raise InputError(
            f"criterion {_name(function)!r} gives 0 for every channel: no change of a weight changes the loss on these "
            "data, so nothing is ranked. Check loss=, the targets and the weights (the loss may be 0, or constant, for "
            "each sample alone)"
        )
    return scores


def _copied(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A copy of the model's tensor, and of its gradient."""
    own = own_values(name, tensor).detach().clone()
    own.grad = None if tensor.grad is None else tensor.grad.detach().clone()
    return own


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


def criterion_name(criterion: str | Criterion) -> str:
    """What a plan names the criterion: its own name, or that of the function, or "custom"."""
    return criterion if isinstance(criterion, str) else getattr(criterion, "__name__", "custom")


def _criterion(criterion: str | Criterion) -> Criterion:
    if callable(criterion):
        return criterion
    if criterion not in CRITERIA:
        raise InputError(
            f"unknown criterion {criterion!r}: use one of {', '.join(sorted(CRITERIA))}, or a function"
        )
    return CRITERIA[criterion]


def _own_data(function: Criterion, data: object, loss: object) -> dict[str, Any]:
    """What a criterion that collects nothing beforehand asks for itself, as options of these names."""
    asked, _ = options_of(function)
    return {n: v for n, v in (("data", data), ("loss", loss)) if v is not None and n in asked}


def _divided(function: Criterion, options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options of the criterion and those of what it collects; raises InputError for one that neither has."""
    _, known = options_of(function)
    theirs = {name: value for name, value in options.items() if name in known}
    ours = {name: value for name, value in options.items() if name not in known}
    try:
        inspect.signature(function).bind(None, **ours)
    except TypeError as error:
        raise InputError(
            f"criterion {_name(function)!r} cannot be called with one group and {ours}: {error}"
        ) from None
    return ours, theirs


def _require_data(
    model: torch.nn.Module, function: Criterion, needs: Needs, data: object, weights: object
) -> None:
    name = _name(function)
    if weights is not None:
        raise InputError(f"criterion {name!r} runs the model: load the weights into it, instead of weights=")
    if empty := [name for name, parameter in model.named_parameters() if parameter.is_meta]:
        raise InputError(
            f"criterion {name!r} runs the model, and {empty[0]!r} is on the meta device, without values: load the "
            "weights first"
        )
    if data is None:
        asking = {
            name: found.labels
            for name, one in sorted(CRITERIA.items())
            if (found := needs_of(one)) is not None
        }
        plain = ", ".join(name for name, labels in asking.items() if not labels)
        labelled = ", ".join(name for name, labels in asking.items() if labels)
        wanted = "pairs (inputs, target)" if needs.labels else "inputs, or pairs (inputs, target)"
        raise InputError(
            f"criterion {name!r} is worked out on data: give data=, an iterable of {wanted}. Inputs are needed by "
            f"{plain}; inputs and targets by {labelled}; the others read the weights alone"
        )


def _name(function: Criterion) -> str:
    return getattr(function, "__name__", type(function).__name__)


def _call(function: Criterion, group: GroupTensors, options: dict[str, Any]) -> NDArray[np.float64]:
    result = function(group, **options)
    if isinstance(result, torch.Tensor):
        result = result.detach()
        result = (result if result.is_complex() else result.double()).cpu().numpy()
    try:
        values = np.asarray(result)
        if values.dtype.kind not in "biufO":  # numpy would read strings as numbers, and drop imaginary parts
            raise TypeError(f"{values.dtype} is no real number")
        return values.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"group {group.name!r}: criterion {_name(function)!r} returned {told(result)}, which is not one real "
            f"number per channel, {group.shape}: {error}"
        ) from None


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
