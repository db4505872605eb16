"""Batch norms, estimated anew in one pass, so that a cut network is judged by what is left of it.

A norm whose statistics are those of the whole network scales what is left wrongly, and the layers behind it multiply
the fault: it drowns what the removed channels were worth. Refitting and training mend it first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from structprune.importance import Batch
from structprune.observe import Twin
from structprune.refit.norms import Norm, watching_norms
from structprune.tensors import widened

__all__ = ["estimate_norms"]


@dataclass
class _Moments:
    """Sums of what reached one norm, float64 ``[channels]``."""

    norm: Norm
    count: int
    total: Tensor
    squares: Tensor


@torch.no_grad()
def estimate_norms(twin: Twin, batches: Sequence[Batch]) -> None:
    """Set the running statistics of each batch norm to those of all that reaches it, in one pass over the batches.

    While it lasts each batch is normalised by its own statistics, as in training. A norm that less than two numbers
    per channel reach keeps what it has.
    """
    seen: dict[int, _Moments] = {}

    def take(norm: Norm) -> None:
        x = widened(norm.input.detach())
        count = x.numel() // max(x.shape[1], 1)
        if count < 2:
            return
        var, mean = torch.var_mean(x, [dim for dim in range(x.ndim) if dim != 1], correction=0)
        norm.mean.copy_(mean)
        norm.var.copy_(var)
        total, squares = mean.double() * count, (var.double() + mean.double().square()) * count
        one = seen.setdefault(
            id(norm.mean), _Moments(norm, 0, torch.zeros_like(total), torch.zeros_like(total))
        )
        one.count, one.total, one.squares = one.count + count, one.total + total, one.squares + squares

    with watching_norms(twin, take):
        for batch in batches:
            batch.through(twin)
    for one in seen.values():
        mean = one.total / one.count
        one.norm.mean.copy_(mean)
        one.norm.var.copy_(
            (one.squares / one.count - mean.square()).clamp_min(0) * one.count / (one.count - 1)
        )
