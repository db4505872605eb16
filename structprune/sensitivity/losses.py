"""How far a cut network is from the original on the data: by its outputs, or by a loss on targets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from structprune.errors import InputError
from structprune.importance import Batch, Loss
from structprune.importance.batches import told
from structprune.importance.calibration import checked_loss, cross_entropy, weight_of
from structprune.observe import Twin
from structprune.outputs import Outputs, chosen_outputs, output_tensors
from structprune.tensors import widened

__all__ = ["LOSSES", "Meter", "loss_name"]

LOSSES = ("outputs", "kl", "cross_entropy")
"""The losses that have a name: the relative squared error of the outputs, and the Kullback-Leibler divergence of the
softmax over their last dimension, both against the original network's; and the cross entropy of integer targets."""

_Sum = tuple[float, float]
"""Something to be summed over batches, and what the sum is divided by."""


def loss_name(loss: str | Loss) -> str:
    """What a loss is called: its own name, or that of the function or its class, which is never one of `LOSSES`.

    >>> loss_name("kl"), loss_name(F.mse_loss), loss_name(F.cross_entropy)
    ('kl', 'mse_loss', 'cross_entropy()')
    """
    if isinstance(loss, str):
        return loss
    name = getattr(loss, "__name__", type(loss).__name__)
    return f"{name}()" if name in LOSSES else name


class Meter:
    """Measures networks on the same batches, ``meter(twin)``; what the original gives is worked out once and kept.

    Raises InputError for an unknown loss, outputs that it is not for, and losses that are not finite.
    """

    def __init__(self, original: Twin, batches: Sequence[Batch], loss: str | Loss, outputs: Outputs) -> None:
        if not callable(loss) and loss not in LOSSES:
            raise InputError(
                f"{loss=}: expected one of {', '.join(LOSSES)}, or a function of (output, target)"
            )
        self._batches, self._outputs = batches, outputs
        self._task = cross_entropy if loss == "cross_entropy" else loss if callable(loss) else None
        self._kind = loss
        self._wanted: list[list[Tensor]] = []
        if self._task is None:
            self._wanted = [self._numbers(batch.through(original)) for batch in batches]

    def __call__(self, twin: Twin) -> float:
        sums = [self._of_batch(twin, number) for number in range(len(self._batches))]
        whole = sum(weight for _, weight in sums)
        value = sum(found for found, _ in sums) / whole if whole else math.nan
        if not math.isfinite(value):
            raise InputError(
                f"the loss {loss_name(self._kind)!r} of a cut network, or of the original, is {value}: check the data, "
                "the dtype that the network computes in, and that some target counts (is not -100)"
            )
        return value

    def _of_batch(self, twin: Twin, number: int) -> _Sum:
        batch = self._batches[number]
        weight = weight_of(self._task, batch)
        if not weight:
            return 0.0, 0.0
        output = batch.through(twin)
        if self._task is not None:
            value = checked_loss(self._task, output, twin.admitted(batch.target), batch)
            return value.item() * weight, float(weight)
        pairs = list(zip(self._numbers(output), self._wanted[number], strict=True))
        if self._kind == "kl":
            return _divergence(pairs)
        sums = [_squares(found, wanted) for found, wanted in pairs]
        return sum(one for one, _ in sums), sum(one for _, one in sums)

    def _numbers(self, result: Any) -> list[Tensor]:
        """What a network gives that holds numbers, in float32 at least."""
        found = [t for t in output_tensors(chosen_outputs(result, self._outputs)) if t.is_floating_point()]
        return [widened(t) for t in found if t.numel()]


def _squares(found: Tensor, wanted: Tensor) -> _Sum:
    """The squared error where the original is finite, and the squares of the original there."""
    known = wanted.isfinite()
    found, wanted = found.where(known, 0).double(), wanted.where(known, 0).double()
    return (found - wanted).square().sum().item(), wanted.square().sum().item()


def _divergence(pairs: Sequence[tuple[Tensor, Tensor]]) -> _Sum:
    if len(pairs) != 1 or pairs[0][0].ndim < 2:
        raise InputError(
            f"loss='kl' is for one tensor of logits [..., classes]; the model gives {[told(t) for t, _ in pairs]}: "
            "name the one that is meant, outputs='logits', or take loss='outputs'"
        )
    found, wanted = (one.double().log_softmax(-1) for one in pairs[0])
    value = F.kl_div(found, wanted, reduction="sum", log_target=True).item()
    return max(value, 0.0), found.numel() / found.shape[-1]
