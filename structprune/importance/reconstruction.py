"""What the consumers of a channel lose where it is removed, once their other weights are fitted to make up for it.

Optimal brain surgery without the loss's Hessian: each consumer is a linear map of its inputs, so its squared output
error is a quadratic in its weights, and the least squares fit has a closed form. Kept is one Gram matrix for each
consumer, `inputs x inputs` in float64, whatever the amount of data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from numbers import Real

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from structprune.errors import InputError
from structprune.importance.calibration import Calibration, everywhere, processes, summed
from structprune.importance.groups import GroupTensors, MemberTensor
from structprune.importance.inputs import require_observed
from structprune.importance.registry import criterion
from structprune.observe import Place, Twin, Use

__all__ = ["InputGram", "channel_labels", "input_grams", "obs"]


@dataclass(frozen=True)
class InputGram:
    """How one operation reads a parameter: its ``weight [groups, outputs, inputs]``, and the ``gram [groups, inputs,
    inputs]`` of its inputs, a mean over samples; both float64. ``damping`` is what is added to its diagonal, relative
    to its mean.
    """

    place: Place
    weight: Tensor
    gram: Tensor
    damping: float

    def removal_errors(self, labels: NDArray[np.int64], size: int) -> NDArray[np.float64]:
        """The squared output error per sample where the inputs of each label are removed and the others' weights
        fitted anew by (ridge) least squares: float64 [size]; ``labels [groups, inputs]`` has -1 where none applies.
        """
        errors = np.zeros(size)
        for weight, inverse, own in zip(self.weight, self.inverses, labels, strict=True):
            if inverse is None:  # nothing is lost
                continue
            for channels, positions in _sets(own):
                at = torch.from_numpy(positions).to(inverse.device)
                block = inverse[at.unsqueeze(2), at.unsqueeze(1)]  # [n, k, k]
                removed = weight.t()[at]  # [n, k, outputs]
                lost = (removed.conj() * torch.linalg.solve(block, removed)).real.sum((1, 2))
                errors[channels] += lost.cpu().numpy()
        return errors

    @cached_property
    def inverses(self) -> list[Tensor | None]:
        """The inverse of each damped Gram matrix, worked out once for all groups; None where no data came."""
        found: list[Tensor | None] = []
        for gram in self.gram:
            ridge = self.damping * gram.diagonal().real.mean()
            damped = gram + ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
            found.append(torch.cholesky_inverse(torch.linalg.cholesky(damped)) if ridge > 0 else None)
        return found

    def energies(self) -> Tensor:
        """The squared size of each output per sample, ``[groups, outputs]``."""
        return ((self.weight.conj() @ self.gram) * self.weight).real.sum(2)


def input_grams(calibration: Calibration, *, damping: float = 1e-4) -> dict[str, list[InputGram]]:
    """The Gram matrices of the inputs of every consumer, by the parameter's name, one for each way it is read.

    Where a group has no consumers, those of the weights that make its channels. Raises InputError where `damping` is
    no finite number above 0.
    """
    if not isinstance(damping, Real) or not 0 < damping < math.inf:
        raise InputError(
            f"{damping=}: it must be a finite number above 0, so that inputs that say the same can be told apart"
        )
    twin = Twin(calibration.model)
    wanted = set(calibration.readers)
    grams: dict[Place, Tensor] = {}
    weights: dict[Place, Tensor] = {}
    count = 0

    def each(use: Use) -> None:
        if use.place.parameter in wanted:
            rows = _exact(use.rows())
            known = grams.setdefault(use.place, rows.new_zeros(len(rows), rows.shape[2], rows.shape[2]))
            known.baddbmm_(rows.mH, rows)
            weights[use.place] = use.weight

    for batch in calibration:
        batch.through(twin, each)
        count += batch.size
    require_observed(calibration, twin, {place.parameter for place in grams})
    device = next(iter(twin.devices), torch.device("cpu"))
    count = max(everywhere(count, device), 1)
    found: dict[str, list[InputGram]] = {}
    for place, shape, dtype in _everywhere(grams):
        gram = summed(grams.get(place, torch.zeros(shape, dtype=dtype, device=device))).div_(count)
        if place in weights:
            weight = _exact(place.seen(weights[place]).flatten(2))
        else:  # only other processes' data came here
            weight = _exact(place.matrices(twin.parameters[place.parameter].detach()))
        found.setdefault(place.parameter, []).append(InputGram(place, weight, gram, damping))
    return found


@criterion(input_grams)
def obs(group: GroupTensors) -> NDArray[np.float64]:
    """The squared error per sample that each channel's removal leaves in its consumers, refitted: float64 [size].

    Hassibi, Stork: Second order derivatives for network pruning: Optimal Brain Surgeon, NeurIPS 1992, layer by layer
    on the layers' own outputs as in Frantar, Singh, Alistarh: Optimal Brain Compression, NeurIPS 2022
    (arXiv:2208.11580): trace(W_S^T (H^-1)_SS^-1 W_S) for the inputs S of the channel and H the Gram matrix of all
    inputs. A channel that the others can stand in for counts little, however large it is. Takes inputs alone, no
    labels; `damping` (1e-4) is the ridge, relative to the mean of H's diagonal. Where no weight reads a channel
    (queries and keys), it is the squared size of the channel itself.
    """
    total = np.zeros(math.prod(group.shape))
    for member in group.consumers:
        for read in group.statistics.get(member.name, ()):
            labels = read.place.matrices(channel_labels(member, read.place))[:, 0].cpu().numpy()
            total += read.removal_errors(labels, len(total))
    for member in () if group.consumers else group.parameters:
        for read in group.statistics.get(member.name, ()):
            labels = read.place.matrices(channel_labels(member, read.place))[:, :, 0].cpu().numpy()
            said = labels >= 0
            total += np.bincount(labels[said], read.energies().cpu().numpy()[said], len(total))
    return total.reshape(group.shape)


def channel_labels(member: MemberTensor, place: Place) -> Tensor:
    """The number of the channel at each position of the parameter, int64 of its shape, -1 where there is none."""
    shape = place.steps[0][0].size
    dims = member.together or (member.dim,)
    along = [size if dim in dims else 1 for dim, size in enumerate(shape)]
    return torch.from_numpy(np.ascontiguousarray(member.index)).view(along).expand(shape).contiguous()


def _sets(labels: NDArray[np.int64]) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """The channels with equally many positions together: their numbers [n] and their positions [n, k]."""
    order = np.argsort(labels, kind="stable")
    order = order[labels[order] >= 0]
    channels, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
    return [
        (channels[counts == k], order[starts[counts == k][:, None] + np.arange(k)])
        for k in np.unique(counts).tolist()
    ]


def _exact(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.complex128 if tensor.is_complex() else torch.float64)


def _everywhere(grams: Mapping[Place, Tensor]) -> list[tuple[Place, torch.Size, torch.dtype]]:
    """The places that any process's data came to, in the same order in all of them."""
    own = [(place, gram.shape, gram.dtype) for place, gram in grams.items()]
    if processes() > 1:
        gathered: list[list[tuple[Place, torch.Size, torch.dtype]]] = [[] for _ in range(processes())]
        dist.all_gather_object(gathered, own)
        own = list(dict.fromkeys(found for part in gathered for found in part))
    return own
