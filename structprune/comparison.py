"""How near two lists of tensors are, and the precisions in which networks are compared."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

__all__ = ["PRECISIONS", "Precision", "cast", "largest_error", "widest"]


@dataclass(frozen=True)
class Precision:
    """A dtype to prove in, and how much two computations may differ there."""

    dtype: torch.dtype | None  # None: each tensor's own
    tolerance: float


PRECISIONS = (Precision(torch.float64, 1e-9), Precision(torch.float32, 1e-4), Precision(None, 5e-2))


def cast(tensor: torch.Tensor, precision: Precision) -> torch.Tensor:
    if tensor.is_complex() and precision.dtype == torch.float64:
        return tensor.to(torch.complex128)
    return tensor.to(precision.dtype) if tensor.is_floating_point() and precision.dtype else tensor


def widest(tensor: torch.Tensor) -> torch.Tensor:
    """Return ``tensor`` in double precision where it holds floats or complex numbers, else itself."""
    return cast(tensor, PRECISIONS[0])


def largest_error(expected: list[torch.Tensor], found: list[torch.Tensor]) -> float:
    """Return the largest difference relative to the largest expected number of each tensor; infinite for
    other shapes.
    """
    if len(expected) != len(found):
        return math.inf
    return max((_error(a, b) for a, b in zip(expected, found, strict=True)), default=math.inf)


def _error(a: torch.Tensor, b: torch.Tensor) -> float:
    if a.shape != b.shape:
        return math.inf
    if not (a.is_floating_point() or a.is_complex()):
        return 0.0 if torch.equal(a, b) else math.inf
    a, b = widest(a), widest(b)
    same = (a == b) | (a.isnan() & b.isnan())
    scale = a[a.isfinite()].abs().max().item() if bool(a.isfinite().any()) else 0.0
    difference = torch.where(same, torch.zeros_like(a), a - b).abs()
    if not difference.numel():
        return 0.0
    largest = difference.nan_to_num(nan=math.inf).max().item()
    return largest / scale if scale > 0 else (0.0 if largest == 0 else math.inf)
