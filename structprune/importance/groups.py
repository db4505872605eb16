"""What a criterion sees: the groups of a traced graph joined with the tensors of the model.

A criterion is a function of one `GroupTensors`, returning one number per channel. Most need no loop:

    def products(tensor, dims):
        return abs_sum(tensor * tensor.grad, dims)

    def taylor(group):
        return group.total(products)  # |weight x gradient| of everything that leaves with the channel

A reduction's result is shared, under the function's identity, between the groups that a tensor belongs to:
every weight is read once. So define reductions outside the criterion, not as a lambda within.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from structprune.errors import InputError
from structprune.importance.reductions import Reduction

__all__ = ["GraphLike", "GroupLike", "GroupTensors", "MemberLike", "MemberTensor", "group_tensors"]


class MemberLike(Protocol):
    @property
    def tensor(self) -> str: ...
    @property
    def dim(self) -> int: ...
    @property
    def index(self) -> NDArray[np.int64]: ...
    @property
    def role(self) -> str: ...


class GroupLike(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def members(self) -> Sequence[MemberLike]: ...
    @property
    def frozen(self) -> object | None: ...


class GraphLike(Protocol):
    @property
    def groups(self) -> Sequence[GroupLike]: ...


@dataclass(frozen=True)
class MemberTensor:
    """One dim of one tensor that a group cuts."""

    name: str  #: qualified name, as in `named_parameters()`
    tensor: torch.Tensor
    dim: int
    index: NDArray[np.int64]  #: [tensor.shape[dim]]: the channel at each position, -1 where there is none
    role: (
        str  #: "out" (the layer produces the channel), "in" (contracts it away), "affine" (scale, bias, ...)
    )
    owner: torch.nn.Module | None  #: the module that holds the tensor

    @property
    def is_parameter(self) -> bool:
        """True for what training adjusts; buffers and plain tensors have no say in a magnitude."""
        return isinstance(self.tensor, torch.nn.Parameter) and (
            self.tensor.is_floating_point() or self.tensor.is_complex()
        )


@dataclass(frozen=True)
class _Shared:
    """What the groups of one model share: each other, which dims of a tensor any of them cuts, results per
    tensor.
    """

    dims: dict[str, tuple[int, ...]]
    groups: list[GroupTensors] = field(default_factory=list)
    reduced: dict[tuple[object, str], dict[int, NDArray[np.float64]]] = field(default_factory=dict)

    def reduce(self, member: MemberTensor, reduction: Reduction) -> NDArray[np.float64]:
        key = (reduction, member.name)
        if key not in self.reduced:
            dims = self.dims[member.name]
            vectors = reduction(member.tensor, dims)
            self.reduced[key] = {
                dim: vector.detach().double().cpu().numpy() for dim, vector in zip(dims, vectors, strict=True)
            }
        return self.reduced[key][member.dim]


@dataclass(frozen=True)
class GroupTensors:
    """One free group with its tensors: what a criterion is called with."""

    name: str
    size: int  #: number of channels
    members: tuple[MemberTensor, ...]
    shared: _Shared = field(repr=False, compare=False)

    @property
    def peers(self) -> tuple[GroupTensors, ...]:
        """All free groups of the model, this one among them."""
        return tuple(self.shared.groups)

    @property
    def parameters(self) -> tuple[MemberTensor, ...]:
        """The members that are parameters."""
        return tuple(member for member in self.members if member.is_parameter)

    def total(
        self, reduction: Reduction, members: Iterable[MemberTensor] | None = None
    ) -> NDArray[np.float64]:
        """The sum, per channel, of a tensor reduction over the members (default: the parameters): float64
        [size].
        """
        index, values = self._gather(reduction, members)
        return np.bincount(index, weights=values, minlength=self.size + 1)[1:].astype(np.float64, copy=False)

    def peak(
        self, reduction: Reduction, members: Iterable[MemberTensor] | None = None
    ) -> NDArray[np.float64]:
        """The maximum, per channel, of a tensor reduction over the members (default: the parameters)."""
        index, values = self._gather(reduction, members)
        largest = np.zeros(self.size + 1, dtype=np.float64)
        with np.errstate(invalid="ignore"):  # NaN stays NaN, and is reported with its tensor's name
            np.maximum.at(largest, index, values)
        return largest[1:]

    def _gather(
        self, reduction: Reduction, members: Iterable[MemberTensor] | None
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """All positions of all members in a row: channel + 1 (0 where the group has no say) and the value
        there.
        """
        chosen = tuple(self.parameters if members is None else members)
        if not chosen:
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float64)
        index = np.concatenate([member.index for member in chosen]) + 1
        return index, np.concatenate([self.shared.reduce(member, reduction) for member in chosen])


def group_tensors(
    model: torch.nn.Module, graph: GraphLike, tensors: Mapping[str, torch.Tensor]
) -> tuple[GroupTensors, ...]:
    """The free groups of `graph`, each with the tensors that it cuts.

    Raises InputError where a tensor is missing, has another size than the graph knows, or lies on the meta
    device.
    """
    free = [group for group in graph.groups if group.frozen is None]
    owners = dict(model.named_modules(remove_duplicate=False))
    joined = [tuple(_join(member, tensors, owners) for member in group.members) for group in free]
    dims: dict[str, set[int]] = {}
    for member in (member for members in joined for member in members):
        dims.setdefault(member.name, set()).add(member.dim)
    shared = _Shared({name: tuple(sorted(found)) for name, found in dims.items()})
    for group, members in zip(free, joined, strict=True):
        shared.groups.append(GroupTensors(group.name, group.size, members, shared))
    return tuple(shared.groups)


def _join(
    member: MemberLike, tensors: Mapping[str, torch.Tensor], owners: Mapping[str, torch.nn.Module]
) -> MemberTensor:
    tensor = tensors.get(member.tensor)
    if tensor is None:
        raise InputError(
            f"the model has no tensor {member.tensor!r}: the graph was traced from another model"
        )
    if member.dim >= tensor.dim() or tensor.shape[member.dim] != len(member.index):
        raise InputError(
            f"{member.tensor!r} has shape {tuple(tensor.shape)}, but dim {member.dim} had size "
            f"{len(member.index)} when the graph was traced: trace the model again"
        )
    if tensor.is_meta:
        raise InputError(f"{member.tensor!r} is on the meta device, without values: load the weights first")
    owner = owners.get(member.tensor.rpartition(".")[0])
    return MemberTensor(member.tensor, tensor, member.dim, member.index, member.role, owner)
