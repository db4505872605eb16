"""How each sample's loss changes with each channel, to first order: Taylor's criterion.

A gate of 1 on a channel where it is read has the slope sum(input x gradient of the input) there, which is the sum of
weight x gradient over the weights that read it. So one backward pass per batch, as far as the outputs of the products
that read channels, gives the slopes of all its samples; no gradient of a weight is made. Where samples cannot be told
apart, or a weight is read otherwise than by a product, they go through the network one by one; where they meet, that
would say something else, and is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from structprune.errors import InputError
from structprune.importance.apart import Run, apart, backward, recorded, stacked
from structprune.importance.batches import Batch, sample_of
from structprune.importance.calibration import (
    Calibration,
    checked_loss,
    cross_entropies,
    cross_entropy,
    mean_everywhere,
)
from structprune.importance.groups import GroupTensors, MemberTensor
from structprune.importance.reconstruction import channel_labels
from structprune.importance.reductions import plain_sum
from structprune.importance.registry import criterion
from structprune.importance.samples import Samples, require_mean
from structprune.observe import Place, Twin, Use
from structprune.outputs import output_tensors
from structprune.tensors import widened

__all__ = ["slopes_of_samples", "taylor"]

Slopes = dict[str, NDArray[np.float64]]


def slopes_of_samples(calibration: Calibration) -> Slopes:
    """For each group, by its name, the mean over samples of |sum of weight x gradient over a channel's consumers|."""
    twin = Twin(calibration.model, gradients=True)
    together, samples = _Together(calibration, twin), Samples(calibration, twin)
    sums = {group.name: np.zeros(group.shape) for group in calibration.groups}
    count = 0
    for given in calibration:
        if not (weight := calibration.weight_of(given)):
            continue
        batch = samples.as_known(given)
        found = together.sizes(batch)
        if found is None:
            parted = samples.of(batch)
            found = None if parted.shared == batch.shared else together.sizes(parted)
            found = _one_by_one(calibration, twin, parted) if found is None else found
        for name, sizes in found.items():
            sums[name] += sizes
        count += weight
    return mean_everywhere(sums, count)


@criterion(slopes_of_samples, labels=True)
def taylor(group: GroupTensors) -> NDArray[np.float64]:
    """The mean over samples of |d loss / d gate|, for a gate of 1 on each channel where it is read: float64 [size].

    Molchanov, Tyree, Karras, Aila, Kautz: Pruning Convolutional Neural Networks for Resource Efficient Inference, ICLR
    2017 (arXiv:1611.06440), and Molchanov, Mallya, Tyree, Frosio, Kautz: Importance Estimation for Neural Network
    Pruning, CVPR 2019 (arXiv:1906.10771): the first-order change of a sample's loss where the channel is removed, which
    is the sum of weight x gradient over all of its consumers. Samples must not cancel: at the end of training the
    gradient of their mean is next to nothing. Where no weight reads a channel (queries and keys), the sum is over the
    weights that make it. Scaled with the loss. By the default loss a sample weighs as much as its targets that count.
    Dim 0 of the inputs, the output and the target are the samples: raises InputError where they are not (time comes
    first, as in nn.GRU by default), and where samples meet in the network or the loss; `snip` takes both.
    """
    found: NDArray[np.float64] = group.statistics[group.name]
    return found


def _one_by_one(calibration: Calibration, twin: Twin, batch: Batch) -> Slopes:
    """The sums over samples of the slopes' sizes, from a backward pass for each of them."""
    names = calibration.readers
    sums = {group.name: np.zeros(group.shape) for group in calibration.groups}
    for sample in batch.samples():
        if not (weight := calibration.weight_of(sample)):
            continue
        loss = calibration.loss_of(twin, sample) * weight
        found = torch.autograd.grad(loss, [twin.parameters[name] for name in names], allow_unused=True)
        wide = {
            name: widened(gradient)
            for name, gradient in zip(names, found, strict=True)
            if gradient is not None
        }
        calibration.groups[0].shared.collected(wide)
        for group in calibration.groups:
            sums[group.name] += np.abs(group.total(plain_sum, group.consumers or None, of=_products))
    return sums


class _Together:
    """The slopes of all samples of a batch at once, wherever that is the same as one by one."""

    def __init__(self, calibration: Calibration, twin: Twin) -> None:
        self.calibration, self.twin = calibration, twin
        self.layouts: dict[object, list[int] | None] = {}
        self.terms: dict[tuple[Place, str | None], list[_Term] | None] = {}
        self.biases = {_memory(p): name for name, p in twin.parameters.items() if p.ndim == 1}
        self.read = set(calibration.readers)
        self.members: dict[str | None, list[tuple[GroupTensors, MemberTensor]]] = {}
        for group in calibration.groups:
            for member in group.consumers or group.parameters:
                self.members.setdefault(member.name, []).append((group, member))

    def sizes(self, batch: Batch) -> Slopes | None:
        """For each group the sum over samples of |slope|; None where that cannot be had from one pass."""
        with torch.inference_mode(False), torch.enable_grad():
            run = recorded(self.twin, batch, self.read)
            outers = self._outers(batch, run)
            if outers is None:
                return None
            losses = self._losses(batch, run.output)
        slopes = {
            group.name: torch.zeros(
                batch.size, math.prod(group.shape) + 1, dtype=torch.float64, device=losses.device
            )
            for group in self.calibration.groups
        }

        uses = {number: use for number, use in enumerate(run.uses) if self._wanted(use)}
        ways = {number: way for number in uses if (way := run.ways[number])}

        def each(number: int, gradient: Tensor, back: Tensor | None) -> None:
            self._add(slopes, uses.pop(number), gradient, back, outers[number], batch.size)

        del run  # so that each product's tensors go as soon as they have been gone through
        backward(losses.sum(), ways, each)
        return {
            group.name: slopes[group.name][:, :-1].abs().sum(0).cpu().numpy().reshape(group.shape)
            for group in self.calibration.groups
        }

    def _losses(self, batch: Batch, result: Any) -> Tensor:
        """The loss of each sample that counts by itself, times its weight."""
        target = self.twin.admitted(batch.target)
        rows = all(t.ndim and len(t) == batch.size for t in output_tensors((result, target)))
        if self.calibration.loss is cross_entropy and rows:
            try:
                losses = cross_entropies(result, target, batch.size)
            except InputError as error:
                raise InputError(f"batch {batch.number} of data: {error}") from error
            if losses.requires_grad and bool(losses.isfinite().all()):
                return losses
        weights = [self.calibration.weight_of(sample) for sample in batch.samples()]
        found = []
        for number, sample in enumerate(batch.samples()):
            if weights[number]:
                output, wanted = sample_of((result, target), number, batch.size)
                found.append(self.calibration.value_of(output, wanted, sample))
        losses = torch.stack(found)
        counted = torch.tensor([weight for weight in weights if weight], device=losses.device)
        whole = checked_loss(self.calibration.loss, result, target, batch)
        require_mean(whole.detach(), losses.detach(), counted, batch, weighed=True)
        return losses * counted

    def _outers(self, batch: Batch, run: Run) -> list[int] | None:
        """How each product lays out samples, looked at once for all batches that are read alike."""
        if not run.plain or any(way is None for way in run.ways) or not self._understood(run):
            return None
        key = (batch.size, batch.shared, run.reads())
        if key not in self.layouts:
            self.layouts[key] = apart(self.twin, batch, run, self.read)
        return self.layouts[key]

    def _understood(self, run: Run) -> bool:
        """Whether every parameter that counts is what a product reads, or adds, and nothing else."""
        return all(self._terms(use) is not None for use in run.uses if use.place.parameter in self.read)

    def _wanted(self, use: Use) -> bool:
        """Whether the product says something of a group."""
        return use.place.parameter in self.read and bool(self._terms(use))

    def _terms(self, use: Use) -> list[_Term] | None:
        """What the product has to do with the groups; None where that is not understood."""
        bias = None if use.bias is None else self.biases.get(_memory(use.bias))
        key = (use.place, bias)
        if key not in self.terms:
            parameter = self.twin.parameters[use.place.parameter]
            own = use.weight.untyped_storage()._cdata == parameter.untyped_storage()._cdata
            plain = own and not use.weight.is_complex()
            self.terms[key] = self._found(use.place, bias) if plain else None
        return self.terms[key]

    def _found(self, place: Place, bias: str | None) -> list[_Term] | None:
        """What a product has to do with groups; None where a position of it would belong to several channels."""
        terms = [_term(group, member, place) for group, member in self.members.get(place.parameter, ())]
        for group, member in self.members.get(bias, ()) if bias != place.parameter else ():
            if not group.consumers:
                terms.append(_Term(group, "added", torch.from_numpy(np.ascontiguousarray(member.index))))
        return None if None in terms else [term for term in terms if term is not None]

    def _add(
        self,
        slopes: dict[str, Tensor],
        use: Use,
        gradient: Tensor,
        back: Tensor | None,
        outer: int,
        size: int,
    ) -> None:
        """Add what a product says to the slopes ``[samples, channels + 1]``; the last is of what is no channel."""
        values: dict[str, Tensor] = {}
        for term in self._terms(use) or ():
            if term.what not in values:
                values[term.what] = _per_sample(_RULES[term.what](use, gradient, back), outer, size)
            total = slopes[term.group.name]
            labels = torch.where(term.labels < 0, total.shape[1] - 1, term.labels).to(total.device)
            total.index_add_(1, labels.flatten(), values[term.what])


@dataclass(frozen=True)
class _Term:
    """A group's channel at each input ("read") or output ("made", "added") of a product, ``[g, n]``, -1 for none."""

    group: GroupTensors
    what: str
    labels: Tensor


def _term(group: GroupTensors, member: MemberTensor, place: Place) -> _Term | None:
    """What a product has to do with a group by its weight; None where a position would belong to several channels."""
    labels = place.matrices(channel_labels(member, place))
    if group.consumers:
        kernel = 1 if place.sliding is None else math.prod(place.operand.size[2:])
        labels = labels.reshape(*labels.shape[:2], -1, kernel).transpose(1, 2).flatten(2)  # [g, i, o * k]
    elif place.sliding is not None:
        return None
    if not bool((labels == labels[..., :1]).all()):
        return None
    return _Term(group, "read" if group.consumers else "made", labels[..., 0].clone())


def _read(use: Use, gradient: Tensor, back: Tensor | None) -> Tensor:
    """Input times its gradient through this product alone, ``[rows, g, i]``; ``back`` is that gradient if known."""
    how = use.place.sliding
    if how is None:
        through = use.laid(gradient) @ use.matrices().detach() if back is None else use.place.rows(back)
        return (use.rows().detach() * through).movedim(1, 0)
    x = stacked(use, use.input.detach())
    through = _through(use, x, stacked(use, gradient)) if back is None else stacked(use, back)
    return (x * through).flatten(2).sum(2).reshape(len(x), how.groups, -1)


def _through(use: Use, x: Tensor, y: Tensor) -> Tensor:
    """The gradient of a convolution's input."""
    how = use.place.sliding
    assert how is not None
    sliding = (how.stride, how.padding, how.dilation, how.transposed, how.extra, how.groups)
    back: Tensor = torch.ops.aten.convolution_backward(
        y, x, use.weight.detach(), None, *sliding, (True, False, False)
    )[0]
    return back


def _made(use: Use, gradient: Tensor, back: Tensor | None) -> Tensor:
    """What the product makes times its gradient, ``[rows, g, o]``."""
    return (use.rows().detach() @ use.matrices().detach().mT * use.laid(gradient)).movedim(1, 0)


def _added(use: Use, gradient: Tensor, back: Tensor | None) -> Tensor:
    """What is added to the product times its gradient, ``[rows, g, o]``."""
    assert use.bias is not None
    laid = use.laid(gradient)
    return (laid * use.bias.detach().reshape(len(laid), 1, -1)).movedim(1, 0)


_RULES: dict[str, Callable[[Use, Tensor, Tensor | None], Tensor]] = {
    "read": _read,
    "made": _made,
    "added": _added,
}


def _per_sample(values: Tensor, outer: int, size: int) -> Tensor:
    """``[rows, g, n]`` summed over the rows of each sample: float64 ``[samples, g * n]``."""
    laid = values.reshape(outer, size, -1, *values.shape[1:])
    return laid.sum((0, 2), dtype=torch.float64).flatten(1)


def _memory(tensor: Tensor) -> object:
    return tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor.numel()


def _products(weight: Tensor, gradient: Tensor) -> Tensor:
    return (weight.to(gradient.dtype).conj() * gradient).real
