"""An optimiser's memory of each parameter (momentum, second moments, ...) cut along with the parameter.

What a tensor of the state is of its parameter is told from shapes, for any optimiser: an entry for each of the
parameter's, one for each row or column (factored moments), or a number. Where a shape leaves that open (a vector beside
a square matrix) the optimiser is asked: it takes one step on a parameter whose sizes all differ. What is none of these
is refused, since a state that is kept by mistake would be read at the wrong places from then on.
"""

from __future__ import annotations

import copy
import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from structprune.arguments import typed
from structprune.errors import InputError
from structprune.gathering import take
from structprune.plan import PruningPlan
from structprune.tensors import named_tensors

__all__ = ["cut_optimizer"]

Index = Mapping[int, np.ndarray]


@typed
def cut_optimizer(
    optimizer: Optimizer,
    before: nn.Module | Mapping[str, Tensor],
    after: nn.Module,
    plan: PruningPlan,
    *,
    inplace: bool = False,
) -> Optimizer:
    """The optimiser for the pruned network, with the state of every parameter cut as the parameter was.

    ``before`` is the network that ``optimizer`` trains, and ``after`` what ``plan`` made of it. Where the plan was
    applied in place, ``before`` is ``dict(model.named_parameters())``, taken before the cut. Parameter groups keep
    their options and their order, step counts go on, and parameters that are not the network's (a loss's own) stay as
    they are. The next step is the one that the masked network would have taken, on what was kept. Factored moments
    (Adafactor) keep the rows and columns that stay, whose means were taken over all.

    The result is a new optimiser, or with ``inplace=True`` the given one, which learning-rate schedulers then go on
    driving. Raises InputError, with the optimiser as it was, where it is one of another network, or holds state whose
    meaning its shape does not tell (LBFGS, quantised or sharded state).

    >>> from structprune import Budget, prune
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> optimizer = torch.optim.Adam(net.parameters())
    >>> net(torch.ones(1, 4)).sum().backward(); optimizer.step()
    >>> result = prune(net, torch.zeros(1, 4), Budget(channels=0.5))
    >>> optimizer = cut_optimizer(optimizer, net, result.model, result.plan)
    >>> optimizer.state[result.model[0].weight]["exp_avg"].shape
    torch.Size([4, 4])
    """
    names, new = _matched(before, after, plan)
    places: dict[int, Tensor] = {}  # id(a tensor of the old optimiser) -> what stands there in the new one
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names.get(id(parameter))
            places[id(parameter)] = parameter if name is None else new[name]
            index = {} if name is None else plan.index(name)
            if index:
                label = f"{type(optimizer).__name__}'s state of {name!r}"
                question = _Question(optimizer, group, parameter, label)
                places.update(_cut_tensors(optimizer.state.get(parameter, {}), question, index))
    if not any(id(p) in names for group in optimizer.param_groups for p in group["params"]):
        raise InputError(
            "the optimizer holds no parameter of the network before the cut: give the network that it trains, or, "
            "where the plan was applied in place, dict(model.named_parameters()) taken before that"
        )
    return _changed(optimizer, places) if inplace else _copied(optimizer, places)


def _matched(
    before: nn.Module | Mapping[str, Tensor], after: nn.Module, plan: PruningPlan
) -> tuple[dict[int, str], dict[str, nn.Parameter]]:
    """id(parameter before) -> its name, and name -> parameter after; raises InputError where the three disagree."""
    old = named_tensors(before) if isinstance(before, nn.Module) else dict(before)
    new = {name: tensor for name, tensor in named_tensors(after).items() if isinstance(tensor, nn.Parameter)}
    for name, tensor in new.items():
        wanted = plan.shapes.get(name, tuple(tensor.shape))
        made = plan.new_shape(name) if name in plan.shapes else wanted
        if name not in old or tuple(old[name].shape) != wanted or tuple(tensor.shape) != made:
            found = list(old[name].shape) if name in old else "absent"
            raise InputError(
                f"parameter {name!r} is {found} before the cut and {list(tensor.shape)} after it, where the plan says "
                f"{list(wanted)} and {list(made)}: give the network (or its named parameters) as it was before this "
                "plan was applied, and what this plan made of it"
            )
    return {id(old[name]): name for name in new}, new


@dataclass(frozen=True)
class _Question:
    """Whose state a tensor is, for the shape that has to be told and for the message where it cannot be."""

    optimizer: Optimizer
    group: dict[str, Any]
    parameter: Tensor
    label: str

    def dims(self, key: tuple[Any, ...], tensor: Tensor, index: Index) -> tuple[int | None, ...]:
        """The parameter's dimension along each of the tensor's, None where it has size 1 instead."""
        if type(tensor) not in (Tensor, nn.Parameter):
            raise InputError(
                f"{self._at(key)} is a {type(tensor).__name__}: prune first, then shard or quantise the optimiser, or "
                "make a new one"
            )
        found = list(_readings(tensor.shape, self.parameter.shape))
        if len({tuple(dim if dim in index else None for dim in dims) for dims in found}) > 1:
            found = [dims for dims in found if dims == self._asked(key)]
        if not found:
            raise InputError(
                f"{self._at(key)} has shape {list(tensor.shape)}, which does not tell what it holds of a parameter of "
                f"shape {list(self.parameter.shape)}; make a new optimizer for the pruned network"
            )
        return found[0]

    def _at(self, key: tuple[Any, ...]) -> str:
        return f"{self.label}, {'.'.join(map(str, key))!r},"

    def _asked(self, key: tuple[Any, ...]) -> tuple[int | None, ...] | None:
        """What the optimiser makes at this place for a parameter whose sizes differ; None where that says nothing."""
        sizes: list[int] = []
        for size in self.parameter.shape:
            sizes.append(next(n for n in itertools.count(size) if n not in sizes and n > 1))
        trial = nn.Parameter(self.parameter.detach().new_ones(sizes))
        trial.grad = torch.ones_like(trial)
        fresh = copy.copy(self.optimizer)
        fresh.param_groups, fresh.state = [{**self.group, "params": [trial]}], defaultdict(dict)
        try:
            fresh.step()
        except Exception as error:  # the optimiser is the user's: it may need a closure, or refuse
            raise InputError(
                f"{self._at(key)} may be of several dimensions, and a step on a parameter of shape {sizes}, which "
                f"would tell, fails ({type(error).__name__}: {error}); make a new optimizer for the pruned network"
            ) from error
        made = dict(_tensors(fresh.state[trial])).get(key)
        found = [] if made is None else list(_readings(made.shape, trial.shape))
        return found[0] if len(found) == 1 else None


def _readings(shape: torch.Size, whole: torch.Size) -> Iterator[tuple[int | None, ...]]:
    """Every way in which a tensor of ``shape`` may hold one entry for each position of some dimensions of ``whole``."""
    if len(shape) == len(whole):
        if all(size in (1, full) for size, full in zip(shape, whole, strict=True)):
            yield tuple(
                n if size == full else None for n, (size, full) in enumerate(zip(shape, whole, strict=True))
            )
        return
    for dims in itertools.combinations(range(len(whole)), len(shape)):
        if all(whole[dim] == size for dim, size in zip(dims, shape, strict=True)):
            yield dims


def _cut_tensors(state: Any, question: _Question, index: Index) -> dict[int, Tensor]:
    """id -> what the cut leaves of it, for every tensor of a parameter's state that is not a mere number."""
    made = {}
    for key, tensor in _tensors(state):
        if tensor.numel() == 1 and tensor.shape != question.parameter.shape:
            continue
        dims = question.dims(key, tensor, index)
        own = {at: index[dim] for at, dim in enumerate(dims) if dim is not None and dim in index}
        whole = dims == tuple(range(question.parameter.ndim))
        if not whole and any(array.ndim > 1 for array in own.values()):
            raise InputError(
                f"{question._at(key)} holds rows or columns, of which each head or group of the parameter keeps its "
                "own; prune with ragged=False, or make a new optimizer for the pruned network"
            )
        made[id(tensor)] = take(tensor.detach(), own) if own else tensor.detach().clone()
    return made


def _tensors(state: Any, key: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Tensor]]:
    """Every tensor inside a parameter's state, with the keys that lead to it."""
    if isinstance(state, Tensor):
        yield key, state
    elif isinstance(state, Mapping):
        for name, value in state.items():
            yield from _tensors(value, (*key, name))
    elif isinstance(state, (list, tuple)):
        for number, value in enumerate(state):
            yield from _tensors(value, (*key, number))


def _copied(optimizer: Optimizer, places: dict[int, Tensor]) -> Optimizer:
    memo: dict[int, Any] = dict(places)
    made = copy.deepcopy(optimizer, memo)
    for name in (
        vars(optimizer).keys() - vars(made).keys()
    ):  # torch copies an optimiser's state and groups only
        vars(made)[name] = copy.deepcopy(vars(optimizer)[name], memo)
    return made


def _changed(optimizer: Optimizer, places: dict[int, Tensor]) -> Optimizer:
    memo: dict[int, Any] = {id(tensor): tensor for _, tensor in _tensors(list(optimizer.state.values()))}
    memo.update(places)
    new = {places.get(id(old), old): copy.deepcopy(state, memo) for old, state in optimizer.state.items()}
    for group in optimizer.param_groups:
        group["params"][:] = [places[id(parameter)] for parameter in group["params"]]
    optimizer.state.clear()
    optimizer.state.update(new)
    return optimizer
