"""What a criterion sees: the groups of a traced graph joined with the tensors of the model.

A criterion is a function of one `GroupTensors`, returning one number per channel. Most need no loop:

    def l1(group):
        return group.total(abs_sum)  # |weight| of everything that leaves with the channel

    def products(weight, gradient):
        return weight * gradient

    @criterion(mean_gradients, labels=True)  # a statistic of the data: for each parameter a tensor of its shape
    def snip(group):
        return group.total(abs_sum, of=products)

A reduction's result is shared, under the function's identity, between the groups that a tensor belongs to:
every weight is read once. So define reductions, and what they are `of`, outside the criterion, not as a lambda within.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from structprune.errors import InputError
from structprune.group_like import GroupLike, MemberLike
from structprune.importance.reductions import Reduction

__all__ = [
    "Combination",
    "GraphLike",
    "GroupTensors",
    "MemberTensor",
    "group_tensors",
    "own_values",
]

_Index = NDArray[np.int64]
Combination = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""`combination(weight, statistic)`: one number for each of a parameter's, of its shape."""
_Facts = tuple[Callable[[], torch.Tensor], tuple[int, ...], torch.nn.Module | None, bool]


class GraphLike(Protocol):
    @property
    def groups(self) -> Sequence[GroupLike]: ...


@dataclass(frozen=True, slots=True)
class MemberTensor:
    """One dim of one tensor that a group cuts."""

    member: MemberLike
    values: Callable[[], torch.Tensor]  #: gives the tensor; one that lies in a file is read anew each time
    owner: torch.nn.Module | None  #: the module that holds the tensor
    is_parameter: bool  #: what training adjusts; buffers and plain tensors have no say in a magnitude
    dim: int  #: the dim of the tensor that is cut
    index: NDArray[np.int64]  #: the channel at each position of that dim, -1 where there is none
    #: Where a group has `rows`, `index` counts channels through them: row * size + channel. Where the row lies in
    #: another dim of the tensor, `tensor` is a view with those dims in one, and these are its dims.
    together: tuple[int, ...] = ()

    @property
    def tensor(self) -> torch.Tensor:
        """The tensor, for a criterion of one's own a copy of it; raises InputError on the meta device."""
        return self.values()

    @property
    def name(self) -> str:
        """The tensor's qualified name, as in `named_parameters()`."""
        return self.member.tensor

    @property
    def role(self) -> str:
        """How the layer treats it: "out" (produces), "in" (contracts away), "scale" (multiplies each channel by one
        number), "affine" (bias, ...).
        """
        return self.member.role


@dataclass(frozen=True)
class _Shared:
    """What the groups of one model share: each other, which dims of a tensor any of them cuts, results."""

    dims: dict[str, set[int]] = field(default_factory=dict)
    groups: list[GroupTensors] = field(default_factory=list)
    reduced: dict[tuple[object, object, str, tuple[int, ...]], dict[int, NDArray[np.float64]]] = field(
        default_factory=dict
    )
    statistics: dict[str, Any] = field(default_factory=dict)
    spoken: dict[int, tuple[_Index, _Index, _Index]] = field(default_factory=dict)

    def reduce(
        self, member: MemberTensor, reduction: Reduction, of: Combination | None
    ) -> NDArray[np.float64]:
        """The reduction of the member's tensor along its dim; the dims that others cut are done with it."""
        key = (reduction, of, member.name, member.together)
        if key not in self.reduced:
            dims = [member.dim] if member.together else sorted(self.dims[member.name])
            vectors = reduction(self.values(member, of), dims)
            self.reduced[key] = {
                dim: vector.detach().double().cpu().numpy() for dim, vector in zip(dims, vectors, strict=True)
            }
        return self.reduced[key][member.dim]

    def collected(self, statistics: Mapping[str, Any]) -> None:
        """Put new statistics in the place of what was there, and of all that was worked out with it."""
        self.statistics.clear()
        self.statistics.update(statistics)
        self.reduced.clear()

    def values(self, member: MemberTensor, of: Combination | None) -> torch.Tensor:
        if of is None:
            return member.tensor
        weight, statistic = member.tensor.detach(), self.statistics.get(member.name)
        if statistic is None:
            return torch.zeros_like(weight)  # nothing that was collected reached it
        return of(weight, _in_front(statistic, member.together) if member.together else statistic)

    def positions(self, index: _Index) -> tuple[_Index, _Index]:
        """Where the group has a say, and for which channel; done once for an array that members share."""
        if id(index) not in self.spoken:
            where = np.flatnonzero(index >= 0)
            self.spoken[id(index)] = (where, index[where], index)  # held, so that its id stays its own
        return self.spoken[id(index)][:2]


@dataclass(frozen=True)
class GroupTensors:
    """One free group with its tensors: what a criterion is called with."""

    name: str
    size: int  #: number of channels
    members: tuple[MemberTensor, ...]
    shared: _Shared = field(repr=False, compare=False)
    rows: int = 0  #: in how many channels of other groups it is chosen by itself; 0: once for all

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the group's scores: (size,), or (rows, size)."""
        return (self.rows, self.size) if self.rows else (self.size,)

    @property
    def peers(self) -> tuple[GroupTensors, ...]:
        """All free groups of the model, this one among them."""
        return tuple(self.shared.groups)

    @property
    def parameters(self) -> tuple[MemberTensor, ...]:
        """The members that are parameters."""
        return tuple(member for member in self.members if member.is_parameter)

    @property
    def consumers(self) -> tuple[MemberTensor, ...]:
        """The parameters that contract the channels away."""
        return tuple(member for member in self.parameters if member.role == "in")

    @property
    def statistics(self) -> Mapping[str, Any]:
        """What was collected from the data, by the parameter's name."""
        return MappingProxyType(self.shared.statistics)

    def values(self, member: MemberTensor, of: Combination | None = None) -> torch.Tensor:
        """The member's tensor, or what `of` makes of it and its statistic."""
        return self.shared.values(member, of)

    def total(
        self,
        reduction: Reduction,
        members: Iterable[MemberTensor] | None = None,
        of: Combination | None = None,
    ) -> NDArray[np.float64]:
        """The sum per channel of a reduction over the members (default: the parameters), float64 `shape`.

        It is a reduction of the tensors themselves, or of what `of` makes of them and their statistics.
        """
        channels, values = self._gather(reduction, members, of)
        total = np.bincount(channels, weights=values, minlength=math.prod(self.shape))
        return total.astype(np.float64, copy=False).reshape(self.shape)

    def peak(
        self, reduction: Reduction, members: Iterable[MemberTensor] | None = None
    ) -> NDArray[np.float64]:
        """The maximum per channel of a reduction over the members (default: the parameters), float64 `shape`."""
        channels, values = self._gather(reduction, members, None)
        largest = np.zeros(math.prod(self.shape), dtype=np.float64)
        with np.errstate(invalid="ignore"):  # NaN stays NaN, and is reported with its tensor's name
            np.maximum.at(largest, channels, values)
        return largest.reshape(self.shape)

    def _gather(
        self, reduction: Reduction, members: Iterable[MemberTensor] | None, of: Combination | None
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """All positions of all members at which the group has a say, in a row: the channel and the value."""
        channels, values = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.float64)]
        for member in self.parameters if members is None else members:
            where, channel = self.shared.positions(member.index)
            channels.append(channel)
            values.append(self.shared.reduce(member, reduction, of)[where])
        return np.concatenate(channels), np.concatenate(values)


def group_tensors(
    model: torch.nn.Module,
    graph: GraphLike,
    tensors: Mapping[str, torch.Tensor],
    stored: Mapping[str, Callable[[], torch.Tensor]] = MappingProxyType({}),
) -> tuple[GroupTensors, ...]:
    """The free groups of `graph`, each with the tensors that it cuts.

    `stored` gives values that are not the model's own. Raises InputError where a tensor is missing or has
    another size than the graph knows.
    """
    owners = dict(model.named_modules(remove_duplicate=False))
    shared = _Shared()
    facts: dict[str, _Facts] = {}
    for group in graph.groups:
        if group.frozen is None:
            members = tuple(_join(group, member, tensors, stored, owners, facts) for member in group.members)
            rows = group.rows if group.by else 0
            shared.groups.append(GroupTensors(group.name, group.size, members, shared, rows))
            for joined in members:
                if not joined.together:
                    shared.dims.setdefault(joined.name, set()).add(joined.dim)
    return tuple(shared.groups)


def _tensor(name: str, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    tensor = tensors.get(name)
    if tensor is None:
        raise InputError(f"the model has no tensor {name!r}: the graph was traced from another model")
    return tensor


def own_values(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_meta:
        raise InputError(
            f"{name!r} is on the meta device, without values: load the weights first, or name their files, "
            "score(..., weights=folder)"
        )
    return tensor


def _is_parameter(tensor: torch.Tensor) -> bool:
    return isinstance(tensor, torch.nn.Parameter) and (tensor.is_floating_point() or tensor.is_complex())


def _join(
    group: GroupLike,
    member: MemberLike,
    tensors: Mapping[str, torch.Tensor],
    stored: Mapping[str, Callable[[], torch.Tensor]],
    owners: Mapping[str, torch.nn.Module],
    facts: dict[str, _Facts],
) -> MemberTensor:
    """The member with its tensor; `facts` keeps what is known of each tensor, since it has many members."""
    name = member.tensor
    if name not in facts:
        tensor = _tensor(name, tensors)
        facts[name] = (
            stored.get(name) or partial(own_values, name, tensor),
            tuple(tensor.shape),
            owners.get(name.rpartition(".")[0]),
            _is_parameter(tensor),
        )
    values, shape, owner, is_parameter = facts[name]
    if member.dim >= len(shape) or shape[member.dim] != len(member.index):
        raise InputError(
            f"{name!r} has shape {shape}, but dim {member.dim} had size {len(member.index)} when the graph "
            "was traced: trace the model again"
        )
    if not group.by:
        return MemberTensor(member, values, owner, is_parameter, member.dim, member.index)
    dims, index = _by_row(member, group.size, len(shape))
    if len(dims) == 1:
        return MemberTensor(member, values, owner, is_parameter, member.dim, index)
    return MemberTensor(member, partial(_flattened, values, dims), owner, is_parameter, 0, index, dims)


def _by_row(member: MemberLike, size: int, rank: int) -> tuple[tuple[int, ...], _Index]:
    """The dims that say row and channel, and row * size + channel at each of their positions together; -1: none."""

    def along(index: _Index, dim: int) -> _Index:
        return index.reshape([-1 if other == dim else 1 for other in range(rank)])

    number: _Index = np.zeros([1] * rank, dtype=np.int64)
    for dim, index in member.outer:
        number = number * (int(index.max()) + 1) + along(index, dim)
    channel = along(member.index, member.dim)
    number = np.where(channel < 0, -1, number * size + channel)
    return tuple(sorted({member.dim, *(dim for dim, _ in member.outer)})), number.reshape(-1)


def _flattened(values: Callable[[], torch.Tensor], dims: Sequence[int]) -> torch.Tensor:
    """The tensor with `dims` in one, in front, and so its gradient."""
    tensor = values()
    flat = _in_front(tensor, dims)
    if tensor.grad is not None:
        flat.grad = _in_front(tensor.grad, dims)
    return flat


def _in_front(tensor: torch.Tensor, dims: Sequence[int]) -> torch.Tensor:
    rest = [dim for dim in range(tensor.dim()) if dim not in dims]
    return tensor.detach().permute(*dims, *rest).flatten(0, len(dims) - 1)
