"""Which weights go: element-wise criteria, exact counts, stable order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import floor
from typing import TypeAlias

import torch
from torch import Tensor

from structprune.errors import InputError

__all__ = ["CRITERIA", "Criterion", "count", "drop_below", "drop_lowest", "scores"]

Criterion: TypeAlias = str | Callable[[Tensor], Tensor]

CRITERIA = ("l1", "l2", "random")


def scores(name: str, weight: Tensor, criterion: Criterion, generator: torch.Generator) -> Tensor:
    """The importance of every weight, same shape, float32 (float64 for float64 weights); -inf for a zero
    weight.

    `l1` and `l2` are both |w|: the norms of a single number. A weight that is zero already is the first to go
    whatever the criterion, so what one call removed the next one does not bring back. Raises `InputError`
    where a score is not finite, has another shape, or the criterion is unknown.
    """
    if callable(criterion):
        score = criterion(weight)
        if not isinstance(score, Tensor) or score.shape != weight.shape:
            raise InputError(
                f"the criterion must return a tensor of shape {tuple(weight.shape)} for {name!r}: {score!r}"
            )
    elif criterion in ("l1", "l2"):
        score = weight.abs()
    elif criterion == "random":
        score = torch.rand(weight.shape, generator=generator).to(weight.device)
    else:
        raise InputError(f"{criterion=} is unknown; give a callable or one of {', '.join(CRITERIA)}")
    score = score.detach().to(torch.float64 if weight.dtype == torch.float64 else torch.float32)
    if not bool(torch.isfinite(score).all()) or not bool(torch.isfinite(weight).all()):
        raise InputError(f"{name!r} has weights or scores that are not finite; they cannot be ranked")
    return score.masked_fill(weight == 0, -torch.inf)


def count(sparsity: float, size: int) -> int:
    """How many of `size` weights a sparsity removes: never more than asked.

    The rounding of floating point is allowed for: 0.29 of 100 is 29 and 1 / 3 of 3 is 1.

    >>> count(0.5, 6), count(0.5, 7), count(0.29, 100), count(1 / 3, 3)
    (3, 3, 29, 1)
    """
    return floor(sparsity * size + size * 2**-50)


def drop_lowest(score: Sequence[Tensor], kept: Sequence[Tensor], removed: int) -> list[Tensor]:
    """The masks after `removed` weights in all are gone: those of `kept` that were already, then the lowest
    scores.

    Exactly `removed` (or as many as were gone before, if that is more); of equal scores the first go first.
    Selection by `kthvalue`, in linear time and without a limit on the number of weights.
    """
    candidates = torch.cat(
        [s[k].to(score[0].device, score[0].dtype) for s, k in zip(score, kept, strict=True)]
    )
    more = removed - (sum(k.numel() for k in kept) - candidates.numel())
    if more <= 0:
        return [k.clone() for k in kept]
    limit = candidates.kthvalue(more).values
    stays = candidates > limit
    ties = (candidates == limit).nonzero().flatten()
    below = candidates.numel() - int(stays.sum()) - ties.numel()
    stays[ties[more - below :]] = True
    result, start = [], 0
    for old in kept:
        size = int(old.sum())
        result.append(old.clone().masked_scatter_(old, stays[start : start + size].to(old.device)))
        start += size
    return result


def drop_below(score: Sequence[Tensor], kept: Sequence[Tensor], threshold: float) -> list[Tensor]:
    """The masks after every weight that scores below `threshold` is gone."""
    return [k & (s >= threshold) for s, k in zip(score, kept, strict=True)]
