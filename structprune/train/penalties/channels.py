"""The channels of a group as training sees them: which weights are each one's, its norm, and all of them made smaller.

What belongs to a channel comes from `group_tensors`, as it does for the criteria: the rows that produce it, its biases
and scales, and the columns that contract it away, in every layer that the group reaches into. Here it is torch's own
indices on the parameters' device, so that a step of training reads each weight once and waits for nothing.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from structprune.group_like import GroupLike
from structprune.importance.groups import GroupTensors, MemberTensor, group_tensors
from structprune.masking.targets import all_targets
from structprune.tensors import named_tensors

__all__ = ["Channels", "Shared", "Slices", "channels_of", "is_traced"]


@dataclass(frozen=True, eq=False)
class Shared:
    """The weights that an earlier part of the same parameter has in the same channels: the diagonal of a square matrix.

    `places` says for each of `dims` where they are, and `channels` (int64, as long) whose they are.
    """

    parameter: nn.Parameter
    dims: tuple[int, ...]
    places: tuple[Tensor, ...]
    channels: Tensor

    @property
    def each(self) -> int:
        """The number of weights at each place."""
        return self.parameter.numel() // math.prod(self.parameter.shape[dim] for dim in self.dims)

    def take(self) -> Tensor:
        """The weights: `[places, ...]`, a copy."""
        return self._view()[self.places]

    def put_(self, values: Tensor) -> None:
        """Write what `take` gave, in place."""
        self._view()[self.places] = values

    def _view(self) -> Tensor:
        rest = [dim for dim in range(self.parameter.ndim) if dim not in self.dims]
        return self.parameter.permute(*self.dims, *rest)


@dataclass(frozen=True, eq=False)
class Slices:
    """The part that one parameter has in the channels of a group.

    `index` (int64) has the channel at each position of `dims` together, row by row; where there is none, the number of
    channels. A tensor that a group cuts in two dims (the square matrix of a residual stream) has two such parts; what
    of the second lies within the first one's part of the same channel is `shared`.
    """

    parameter: nn.Parameter
    dims: tuple[int, ...]
    index: Tensor
    shared: Shared | None = None

    @property
    def rest(self) -> tuple[int, ...]:
        """The dims that all lie within one channel."""
        return tuple(dim for dim in range(self.parameter.ndim) if dim not in self.dims)

    @property
    def each(self) -> int:
        """The number of weights at each position of `index`."""
        return math.prod(self.parameter.shape[dim] for dim in self.rest)

    def spread(self, values: Tensor) -> Tensor:
        """One value for each channel, and one for where there is none, in a shape that goes with the parameter's."""
        shape = [size if dim in self.dims else 1 for dim, size in enumerate(self.parameter.shape)]
        return values[self.index].reshape(shape)


@dataclass(frozen=True, eq=False)
class Channels:
    """The trainable weights of each channel of one group.

    The channels are counted through the rows of a group that is chosen in each channel of others: row * size + channel.
    """

    name: str
    shape: tuple[int, ...]  #: (size,), or (rows, size)
    slices: tuple[Slices, ...]

    @property
    def count(self) -> int:
        """How many channels there are, in all rows."""
        return math.prod(self.shape)

    @property
    def parameters(self) -> tuple[nn.Parameter, ...]:
        """The parameters that the channels lie in, each once."""
        return tuple({id(one.parameter): one.parameter for one in self.slices}.values())

    @cached_property
    def sizes(self) -> Tensor:
        """The number of weights of each channel: `[count]`, in the dtype and on the device of `norms`."""
        return self._sum(
            [torch.full(one.index.shape, float(one.each)) for one in self.slices],
            [torch.full(one.channels.shape, float(one.each)) for one in self._shared],
        )

    def norms(self) -> Tensor:
        """The Euclidean norm of the weights of each channel: `[count]`, float32 or wider, differentiable.

        The gradient of a norm is zero where the norm is.
        """
        squares = self._sum(
            [_square_sums(one.parameter, one.rest) for one in self.slices],
            [
                _square_sums(taken, tuple(range(1, taken.ndim)))
                for taken in (one.take() for one in self._shared)
            ],
        )
        alive = squares > 0
        return torch.where(alive, torch.where(alive, squares, 1).sqrt(), 0)

    @torch.no_grad()
    def scale_(self, factors: Tensor) -> None:
        """Multiply the weights of each channel, in place, by its factor of `[count]`; the others stay as they are."""
        padded = torch.cat([factors, factors.new_ones(1)])
        for one in self.slices:
            done = None if one.shared is None else one.shared.take()
            one.parameter.mul_(one.spread(padded.to(one.index.device)).to(one.parameter.dtype))
            if one.shared is not None and done is not None:
                one.shared.put_(done)

    @cached_property
    def _shared(self) -> tuple[Shared, ...]:
        return tuple(one.shared for one in self.slices if one.shared is not None)

    def _sum(self, values: Sequence[Tensor], twice: Sequence[Tensor]) -> Tensor:
        """What the slices hold at each position, summed by channel, less what two of them hold."""
        first = self.slices[0].index.device
        wide = any(one.parameter.dtype in (torch.float64, torch.complex128) for one in self.slices)
        total = torch.zeros(self.count + 1, dtype=torch.float64 if wide else torch.float32, device=first)
        for one, value in zip(self.slices, values, strict=True):
            total = total.index_add(0, one.index.to(first), value.to(total))
        for shared, value in zip(self._shared, twice, strict=True):
            total = total.index_add(0, shared.channels.to(first), value.to(total), alpha=-1)
        return total[:-1]


def channels_of(
    model: nn.Module, groups: Sequence[GroupLike], belongs: Callable[[MemberTensor], bool]
) -> tuple[Channels, ...]:
    """The channels of these groups, with what is trainable of the members that `belongs` says yes to.

    Groups that are frozen, or of which nothing is trainable, are left out. A model whose weights were masked
    (`sparsify`) after it was traced is taken as well. Raises InputError where the model is not the one that was traced.
    """
    tensors = _tensors(model)
    found = (_channels(group, tensors, belongs) for group in group_tensors(model, _Traced(groups), tensors))
    return tuple(channels for channels in found if channels.slices)


def is_traced(model: nn.Module, groups: Iterable[GroupLike]) -> bool:
    """Whether the model has every tensor that these groups cut, in the size that they know."""
    tensors = _tensors(model)
    return all(
        member.tensor in tensors
        and member.dim < tensors[member.tensor].ndim
        and tensors[member.tensor].shape[member.dim] == len(member.index)
        for group in groups
        for member in group.members
    )


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """The model's tensors by name; what lies behind a mask also by the name that it had without."""
    behind_masks = {target.name: target.parameter for target in all_targets(model)}
    return {**behind_masks, **named_tensors(model)}


@dataclass(frozen=True)
class _Traced:
    groups: Sequence[GroupLike]


def _channels(
    group: GroupTensors, tensors: dict[str, Tensor], belongs: Callable[[MemberTensor], bool]
) -> Channels:
    count = math.prod(group.shape)
    slices: list[Slices] = []
    for member in group.members:
        parameter = tensors[member.name]
        if isinstance(parameter, nn.Parameter) and parameter.requires_grad and belongs(member):
            index = torch.as_tensor(member.index, device=parameter.device)
            index = torch.where(index < 0, count, index)
            one = Slices(parameter, member.together or (member.dim,), index)
            before = [other for other in slices if other.parameter is parameter]
            slices.append(dataclasses.replace(one, shared=_shared(one, before, count)))
    return Channels(group.name, group.shape, tuple(slices))


def _shared(one: Slices, before: Sequence[Slices], count: int) -> Shared | None:
    """What of these slices lies within others' part of the same channel."""
    if not before:
        return None
    numbers = torch.arange(count + 1, device=one.index.device)
    own = one.spread(numbers)
    same = own < 0
    for other in before:
        same = same | ((own == other.spread(numbers)) & (own < count))
    where = same.nonzero(as_tuple=True)
    dims = tuple(dim for dim in range(one.parameter.ndim) if any(dim in each.dims for each in (one, *before)))
    places = tuple(where[dim] for dim in dims)
    channels = own.expand_as(same)[where]
    return Shared(one.parameter, dims, places, channels) if len(channels) else None


def _square_sums(weight: Tensor, rest: tuple[int, ...]) -> Tensor:
    """The sum of squares over the dims `rest`, in float32 or wider: one number for each position of the others."""
    values = weight.abs() if weight.is_complex() else weight
    values = values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
    leading = [dim for dim in rest if all(other in rest for other in range(dim))]
    if not leading and rest:
        norms: Tensor = torch.linalg.vector_norm(values, dim=rest)
        return norms.square().reshape(-1)
    sums = values.square()
    for dims in (
        leading,
        [dim for dim in rest if dim not in leading],
    ):  # in two goes: one is several times slower
        sums = sums.sum(dims, keepdim=True) if dims else sums
    return sums.reshape(-1)
