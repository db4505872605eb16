"""Criteria from the derivatives of the loss by weights: first order (SNIP), second by the diagonal (Fisher, Hessian).

Each takes the loss for a power series in the weights around where they are, and asks what setting a channel's weights
to zero would change. Gradients are taken by `torch.autograd.grad` on a twin of the model, frozen parameters included.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from structprune.errors import InputError
from structprune.importance.calibration import Calibration, Sums
from structprune.importance.chance import require_seed
from structprune.importance.groups import GroupTensors
from structprune.importance.reductions import abs_sum, plain_sum
from structprune.importance.registry import criterion
from structprune.importance.samples import Samples
from structprune.observe import Twin
from structprune.tensors import widened

__all__ = [
    "fisher",
    "fisher_diagonal",
    "hessian",
    "hessian_diagonal",
    "mean_gradients",
    "snip",
]


def mean_gradients(calibration: Calibration) -> dict[str, Tensor]:
    """The gradient of the mean loss over the data, of each parameter's shape: one backward pass per batch."""
    twin, parameters = _twin(calibration)
    sums = Sums(parameters)
    for batch in calibration:
        if weight := calibration.weight_of(batch):
            sums.add(_gradients(calibration.loss_of(twin, batch), parameters), weight)
    return sums.means()


def fisher_diagonal(calibration: Calibration) -> dict[str, Tensor]:
    """The mean over samples of the squared gradient of each one's loss: one backward pass per sample.

    The square of a batch's mean gradient is no substitute: the gradients of samples cancel in it, so that it shrinks
    with the batch and would depend on how the data were cut into batches. By the default loss a sample weighs as much
    as it has targets that count. Raises InputError where samples meet, or do not lie along dim 0.
    """
    twin, parameters = _twin(calibration)
    sums, samples = Sums(parameters, real=True), Samples(calibration, twin)
    for batch in calibration:
        for sample in samples.of(batch).samples() if calibration.weight_of(batch) else ():
            if weight := calibration.weight_of(sample):
                found = _gradients(calibration.loss_of(twin, sample), parameters)
                squares = {n: None if g is None else widened(g).abs().square() for n, g in found.items()}
                sums.add(squares, weight)
    return sums.means()


def hessian_diagonal(calibration: Calibration, *, probes: int = 8, seed: int = 0) -> dict[str, Tensor]:
    """An unbiased estimate of the diagonal of the mean loss's Hessian, of each parameter's shape.

    Bekas, Kokiopoulou, Saad: An estimator for the diagonal of a matrix, Applied Numerical Mathematics 57 (2007), after
    Hutchinson: the mean of v * (H v) over `probes` vectors v of random signs, which depend on `seed` and the
    parameter's name; the same ones for every batch, so that batches have no say. Each costs two backward passes.
    """
    if not isinstance(probes, Integral) or isinstance(probes, bool) or probes < 1:
        raise InputError(f"{probes=}: at least one random vector is needed, and a whole number of them")
    require_seed(seed)
    twin, parameters = _twin(calibration)
    sums = Sums(parameters, real=True)
    for batch in calibration:
        if not (weight := calibration.weight_of(batch)):
            continue
        with _twice_differentiable():
            slopes = _slopes(calibration.loss_of(twin, batch), parameters)
            for probe in range(probes):
                signs = {n: _signs(p, (seed, probe, zlib.crc32(n.encode()))) for n, p in parameters.items()}
                bent = _curvature(slopes, parameters, signs)
                sums.add(
                    {n: None if b is None else (signs[n] * b).real / probes for n, b in bent.items()},
                    weight,
                    probe == 0,
                )
    return sums.means()


@criterion(mean_gradients, labels=True)
def snip(group: GroupTensors) -> NDArray[np.float64]:
    """The sum of |weight x gradient of the mean loss| over all parameters of each channel: float64 [size].

    Lee, Ajanthan, Torr: SNIP: Single-shot Network Pruning based on Connection Sensitivity, ICLR 2019
    (arXiv:1810.02340), there for single weights. One backward pass per batch, so quicker than `taylor`; in a trained
    network, where gradients cancel over the samples, it says less. Scaled with the loss.
    """
    return group.total(abs_sum, of=_products)


@criterion(fisher_diagonal, labels=True)
def fisher(group: GroupTensors) -> NDArray[np.float64]:
    """The sum of weight^2 x E[gradient^2] / 2 over all parameters of each channel: float64 [size].

    LeCun, Denker, Solla: Optimal Brain Damage, NeurIPS 1989, with the Fisher information of the data's own labels for
    the Hessian, as in Theis, Korshunova, Tejani, Huszar (arXiv:1801.05787) and, over coupled channels, Liu et al.:
    Group Fisher Pruning, ICML 2021 (arXiv:2108.00708). E is the mean over
    samples (`fisher_diagonal`), which are dim 0 of inputs, output and target: raises InputError where they are not, and
    where samples meet in the network or the loss (`snip` takes both). Scaled with the square of the loss.
    """
    return group.total(plain_sum, of=_saliency)


@criterion(hessian_diagonal, labels=True)
def hessian(group: GroupTensors) -> NDArray[np.float64]:
    """The size of the sum of weight^2 x (second derivative) / 2 over all parameters of each channel: float64 [size].

    LeCun, Denker, Solla: Optimal Brain Damage, NeurIPS 1989: the second-order change of the loss where curvature
    between weights is left out. Some second derivatives are negative; a sum below zero promises a large change as
    well, and counts by its size. The diagonal is Hutchinson's estimate: see `hessian_diagonal` for its options.
    """
    return np.abs(group.total(plain_sum, of=_saliency))


def _products(weight: Tensor, gradient: Tensor) -> Tensor:
    return (weight.to(gradient.dtype).conj() * gradient).real


def _saliency(weight: Tensor, curvature: Tensor) -> Tensor:
    return weight.abs().to(curvature.dtype).square() * curvature / 2


def _twin(calibration: Calibration) -> tuple[Twin, dict[str, Tensor]]:
    twin = Twin(calibration.model, gradients=True)
    return twin, {name: twin.parameters[name] for name in calibration.parameters}


def _gradients(loss: Tensor, parameters: dict[str, Tensor]) -> dict[str, Tensor | None]:
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return dict(zip(parameters, found, strict=True))


def _slopes(loss: Tensor, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """The gradients that can be differentiated once more; those of a loss that is linear cannot."""
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, create_graph=True)
    return {n: s for n, s in zip(parameters, found, strict=True) if s is not None and s.requires_grad}


def _curvature(
    slopes: dict[str, Tensor], parameters: dict[str, Tensor], vector: dict[str, Tensor]
) -> dict[str, Tensor | None]:
    """The product of the loss's Hessian with a vector."""
    if not slopes:
        return {}
    try:
        found = torch.autograd.grad(
            list(slopes.values()),
            list(parameters.values()),
            [vector[name] for name in slopes],
            allow_unused=True,
            retain_graph=True,
        )
    except RuntimeError as error:
        raise InputError(
            f"the loss cannot be differentiated twice, as criterion 'hessian' needs ({error}): use 'fisher'"
        ) from error
    return dict(zip(parameters, found, strict=True))


def _signs(like: Tensor, seed: tuple[int, ...]) -> Tensor:
    """A tensor of its shape with random signs, the same ones on every device."""
    drawn = np.random.default_rng(seed).integers(0, 2, tuple(like.shape), dtype=np.int8)
    return torch.from_numpy(np.asarray(drawn)).to(like.device, like.dtype).mul_(2).sub_(1)


@contextmanager
def _twice_differentiable() -> Iterator[None]:
    """Keep to operations whose backward has a backward: fused attention and cuDNN's recurrent layers have none."""
    with sdpa_kernel(SDPBackend.MATH), torch.backends.cudnn.flags(enabled=False):
        yield
