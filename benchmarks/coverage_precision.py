"""Arithmetic for the judge: double precision also where a model asks for single, and no dice for single channels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["InDouble"]


class InDouble(TorchFunctionMode):
    """Inside, `x.float()`, `x.to(torch.float32)` and `dtype=torch.float32` give float64; grouped products take it too.

    A normalisation by statistics of its own (as of a weight) takes those of what is there, like the judge's.
    `torch.bernoulli` gives ones: a network that draws for each channel draws other numbers once it has fewer.

    >>> with InDouble():
    ...     torch.ones(2, dtype=torch.float64).float().dtype
    torch.float64
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = {name: _wider(value) for name, value in (kwargs or {}).items()}
        if func in (torch.bernoulli, Tensor.bernoulli):
            return torch.ones_like(args[0])
        if func is Tensor.float:
            return args[0].double()
        if func in (torch.nn.functional.grouped_mm, torch._grouped_mm):
            return _grouped(*args, **kwargs)
        if func is torch.nn.functional.batch_norm and args[1] is None:
            return _standardised(args[0], **kwargs)
        return func(*(_wider(value) for value in args), **kwargs)


def _wider(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


def _standardised(x: Tensor, *, weight: Tensor | None, bias: Tensor | None, eps: float, **_: Any) -> Tensor:
    """[n, c, ...] over its own statistics, those of what is there (not NaN)."""
    others = [axis for axis in range(x.dim()) if axis != 1]
    shape = [-1 if axis == 1 else 1 for axis in range(x.dim())]
    centred = x - x.nanmean(others, keepdim=True)
    out: Tensor = centred / (centred.square().nanmean(others, keepdim=True) + eps).sqrt()
    out = out if weight is None else out * weight.view(shape)
    return out if bias is None else out + bias.view(shape)


def _grouped(rows: Tensor, weights: Tensor, offs: Tensor, *_: Any, **__: Any) -> Tensor:
    """[s, n] = grouped_mm([s, k], [g, k, n], offs=[g]): the rows up to each offset meet their own matrix."""
    ends = offs.tolist()
    parts = [
        rows[start:end] @ weights[g] for g, (start, end) in enumerate(zip([0, *ends], ends, strict=False))
    ]
    return torch.cat([*parts, rows.new_zeros(len(rows) - ends[-1], weights.shape[-1])])
