"""A batch's samples by themselves: which inputs are theirs alone, and whether the batch is no more than its samples.

Neither is guessed from shapes: a few samples run alone, and each has to give its part of what the batch gives. An input
that only happens to be as long as the batch is shared by all samples, and found where they do so only with all of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import combinations, islice
from typing import Any

import torch
from torch import Tensor

from structprune.errors import InputError
from structprune.importance.batches import Batch, told
from structprune.importance.calibration import Calibration, checked_loss, cross_entropy
from structprune.inputs import map_tensors, tensors_in
from structprune.observe import Twin
from structprune.outputs import output_tensors

__all__ = ["Samples", "require_mean"]

_WAYS = 64  # how many choices of shared inputs are tried, at most
# How far numbers may be apart, as a share of the largest: to be the same but for the order of sums, for means to be so
# where nothing else tells, and to be so up to rounding (TF32, another kernel). The third is of narrower dtypes.
_EXACT = (1e-9, 1e-4, 1e-3)
_MEANS = (1e-8, 1e-3, 2e-2)
_ROUGH = (1e-6, 1e-2, 5e-2)
_INSTEAD = (
    "give a criterion that needs no samples apart ('snip', 'hessian', 'wanda', 'obs'), or wrap the model so that dim 0 "
    "of its inputs, its output and the target are the samples"
)

Room = tuple[float, float, float]


@dataclass
class Samples:
    """Takes batches apart, each kind of batch (its shapes) once it is known that its samples do not meet."""

    calibration: Calibration
    twin: Twin
    shared: dict[object, frozenset[int]] = field(default_factory=dict)

    def of(self, batch: Batch) -> Batch:
        """The batch, with what of its inputs every sample takes whole.

        Raises InputError where dim 0 does not hold the samples, or where they meet, in the network or in the loss.
        """
        _require_one_by_one(batch)
        if (key := _kind(batch)) not in self.shared:
            self.shared[key] = self._shared(batch) if batch.size > 1 else frozenset()
        return replace(batch, shared=self.shared[key])

    def as_known(self, batch: Batch) -> Batch:
        """The batch, with what is shared of it if others of its kind were taken apart; raises InputError as `of`, where
        that shows in the shapes.
        """
        _require_one_by_one(batch)
        return replace(batch, shared=self.shared.get(_kind(batch), frozenset()))

    def _shared(self, batch: Batch) -> frozenset[int]:
        output = batch.through(self.twin)
        first: InputError | None = None
        ways = list(_ways(batch))
        for shared, room in [
            *((way, _EXACT) for way in ways if len(ways) > 1),
            *((way, _ROUGH) for way in ways),
        ]:
            try:
                self._require(replace(batch, shared=shared), output, room)
            except InputError as error:  # another way may do; where none does, the first one's is raised
                first = first or error
            else:
                return shared
        assert first is not None
        if self._draws(batch, output):
            return frozenset()
        raise first

    def _draws(self, batch: Batch, output: Any) -> bool:
        """Whether the forward draws random numbers: then no two runs are alike, and nothing can be tested."""
        devices = [device for device in self.twin.devices if device.type == "cuda"]
        with torch.random.fork_rng(devices=devices):
            torch.default_generator.manual_seed(1)
            for device in devices:
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(1)
            again = output_tensors(batch.through(self.twin))
        return any(
            not _close(a.detach(), b.detach(), _ROUGH)
            for a, b in zip(output_tensors(output), again, strict=False)
        )

    def _require(self, batch: Batch, output: Any, room: Room) -> None:
        """Raise InputError where samples, taken apart in this way, give something else than together."""
        alike, default = self._alike(batch, output, room), self.calibration.loss is cross_entropy
        if alike is False or (alike is None and default):
            raise _meeting(
                batch,
                "give something else alone than together: they meet in the network (in statistics of the batch, say), "
                "or dim 0 is not the samples, but time",
            )
        if not default:
            self._require_loss(batch, output, weighed=alike is True)

    def _alike(self, batch: Batch, output: Any, room: Room) -> bool | None:
        """Whether some samples give alone what they give together; None where the outputs cannot tell."""
        found = None
        for number in sorted({0, batch.size // 2, batch.size - 1}):
            alone = output_tensors(batch.sample(number).through(self.twin))
            pairs = list(_pairs(output_tensors(output), alone, number, batch.size))
            if not all(_close(part, own, room) for part, own in pairs):
                return False
            found = True if pairs else found
        return found

    def _require_loss(self, batch: Batch, output: Any, weighed: bool) -> None:
        """Raise InputError where the loss of the batch is not made of its samples' losses."""
        target = self.twin.admitted(batch.target)
        whole = checked_loss(self.calibration.loss, output, target, batch).detach()
        losses = torch.stack([self.calibration.loss_of(self.twin, one).detach() for one in batch.samples()])
        require_mean(whole, losses, torch.ones_like(losses), batch, weighed=weighed)


def require_mean(whole: Tensor, losses: Tensor, weights: Tensor, batch: Batch, *, weighed: bool) -> None:
    """Raise InputError unless the loss of a batch is the mean of its samples' losses, or their sum.

    With ``weighed`` any mean will do: one between the least and the greatest of them.
    """
    own = losses.double()
    share = weights.to(own) / weights.sum()
    mean, value = (own * share).sum(), whole.to(own)
    room = _share(losses.dtype, _ROUGH if weighed else _MEANS) * max(
        own.abs().max().item(), value.abs().item()
    )
    wanted = [mean, own.sum()]
    between = weighed and own.min() - room <= value <= own.max() + room
    if not between and not any((value - one).abs().item() <= room for one in wanted):
        raise _meeting(
            batch,
            f"have losses of {mean.item():.6g} on average, each alone, and {value.item():.6g} together: the loss "
            "compares samples with each other, or is no mean over them",
        )


def _require_one_by_one(batch: Batch) -> None:
    """Raise InputError where the target is not as long as the batch: then one of them does not begin with samples."""
    targets = [tensor for tensor in tensors_in(batch.target) if tensor.ndim]
    if targets and not any(len(tensor) == batch.size for tensor in targets):
        given = ", ".join(told(tensor) for tensor in tensors_in((batch.args, batch.kwargs)))
        raise InputError(
            f"batch {batch.number} of data: this criterion takes samples one by one, along dim 0; the inputs ({given}) "
            f"have {batch.size} there, and the target ({told(targets[0])}) {len(targets[0])}. Where dim 0 of the "
            f"inputs is time, as of nn.GRU without batch_first=True, or a shared input comes first, {_INSTEAD}"
        )


def _meeting(batch: Batch, what: str) -> InputError:
    return InputError(
        f"batch {batch.number} of data: this criterion takes samples one by one, along dim 0, and its {batch.size} "
        f"samples {what}; {_INSTEAD}"
    )


def _kind(batch: Batch) -> object:
    return batch.size, *(tuple(t.shape) for t in tensors_in((batch.args, batch.kwargs, batch.target)))


def _ways(batch: Batch) -> Iterator[frozenset[int]]:
    """Which inputs may be shared, few first: of those as long as the batch any but the one that gives its size."""
    places, count = [], 0

    def look(tensor: Tensor) -> Tensor:
        nonlocal count
        if tensor.ndim and len(tensor) == batch.size:
            places.append(count)
        count += 1
        return tensor

    map_tensors((batch.args, batch.kwargs), look)
    some = (frozenset(one) for taken in range(len(places)) for one in combinations(places[1:], taken))
    return islice(some, _WAYS)


def _pairs(
    together: Iterable[Tensor], alone: Iterable[Tensor], number: int, size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """What a sample has of the batch's outputs, and what it gives alone, wherever that is laid out along dim 0."""
    for whole, own in zip(together, alone, strict=False):
        rows = len(own) if own.ndim else 0
        numbers = own.is_floating_point() or own.is_complex()  # choices stand on those
        if numbers and own.numel() and whole.shape == (rows * size, *own.shape[1:]):
            yield whole[number * rows : (number + 1) * rows].detach(), own.detach()


def _share(dtype: torch.dtype, room: Room) -> float:
    return room[{torch.float64: 0, torch.complex128: 0, torch.float32: 1, torch.complex64: 1}.get(dtype, 2)]


def _close(a: Tensor, b: Tensor, room: Room) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    known = a.isfinite() & b.isfinite()
    a, b = a.where(known, 0), b.where(known, 0)
    size = b.abs().max().item() if b.numel() else 0.0
    return not a.numel() or (a - b).abs().max().item() <= _share(a.dtype, room) * size
