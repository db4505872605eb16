"""fvcore's count of the same network, shown beside structprune's own: a second, independent reading.

1 MAC (multiply-accumulate) = 2 FLOPs. fvcore says "flops" and counts one fused multiply-add as one, so its
figure compares with MACs directly. It counts from a TorchScript trace and has no formula for some operators;
those are results here, listed with the number of calls, never taken for zero without a word.
"""

from __future__ import annotations

import copy
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from fvcore.nn import FlopCountAnalysis
from torch import Tensor, nn

from structprune.inputs import normalize_inputs, tensors_in
from structprune.report.numbers import format_count, format_share

__all__ = ["FvcoreFigure", "fvcore_figure", "fvcore_line"]

# The operators that contract: everyone's convention counts their multiply-accumulates.
_CONTRACTION = re.compile(r"(aten::)?\w*(conv|mm|matmul|einsum|attention|lstm|gru|rnn)\w*|(aten::)?linear")


@dataclass(frozen=True)
class FvcoreFigure:
    """What fvcore counts: `macs` (None where it could not run), and what it has no formula for."""

    macs: int | None
    by_operator: Mapping[str, int] = field(default_factory=dict)
    unsupported: Mapping[str, int] = field(default_factory=dict)
    error: str | None = None

    @property
    def uncounted(self) -> tuple[str, ...]:
        """The operators left out that hold multiply-accumulates, such as attention kernels."""
        return tuple(op for op in self.unsupported if _CONTRACTION.fullmatch(op))

    @property
    def beyond(self) -> dict[str, int]:
        """What it counts that structprune does not: norms, pooling and resizing, by operator."""
        counted = self.by_operator.items()
        return {op: macs for op, macs in counted if macs and not _CONTRACTION.fullmatch(op)}

    def document(self) -> dict[str, Any]:
        """The same as plain data."""
        return {
            "macs": self.macs,
            "by_operator": dict(self.by_operator),
            "unsupported": dict(self.unsupported),
            "error": self.error,
        }


class _Positional(nn.Module):
    """The model as a function of tensors to a tuple of tensors, as a TorchScript trace needs it."""

    def __init__(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        super().__init__()
        self.model = model
        self._tree = (args, dict(kwargs))

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        values = iter(tensors)
        leaves, spec = torch.utils._pytree.tree_flatten(self._tree)
        filled = [next(values) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        args, kwargs = torch.utils._pytree.tree_unflatten(filled, spec)
        return tuple(tensors_in(self.model(*args, **kwargs)))


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back fvcore's and the tracer's messages: what they say is in the result."""
    loggers = [logging.getLogger(name) for name in ("fvcore", "fvcore.nn.jit_analysis")]
    levels = [logger.level for logger in loggers]
    fastpath = torch.backends.mha.get_fastpath_enabled()
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        torch.backends.mha.set_fastpath_enabled(False)  # the fused kernel has no formula
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def fvcore_figure(model: nn.Module, example_inputs: Any) -> FvcoreFigure:
    """fvcore's MACs of one forward on `example_inputs`, counted on a copy in eval; the model is not touched.

    Where fvcore cannot run the model, `macs` is None and `error` says why.

    >>> fvcore_figure(nn.Linear(4, 3), torch.zeros(2, 4)).macs == 2 * 4 * 3
    True
    """
    args, kwargs = normalize_inputs(example_inputs)
    try:
        with _quiet(), torch.no_grad():
            wrapped = _Positional(copy.deepcopy(model).eval(), args, kwargs)
            analysis = FlopCountAnalysis(wrapped, tuple(tensors_in((args, kwargs))))
            by_operator = {op: int(macs) for op, macs in analysis.by_operator().items()}
            return FvcoreFigure(int(analysis.total()), by_operator, dict(analysis.unsupported_ops()))
    except Exception as error:  # noqa: BLE001 - a second opinion that fails is a result, not an error
        return FvcoreFigure(None, error=f"{type(error).__name__}: {_first_line(error)}")


def fvcore_line(figure: FvcoreFigure, macs: int) -> str:
    """One line that sets fvcore's figure beside structprune's own `macs`, and explains a difference.

    >>> fvcore_line(FvcoreFigure(90, {"linear": 80, "layer_norm": 10}, {"aten::bmm_like": 2}), 100)
    'fvcore: 90 MACs, 90.0 % of the count above; it counts layer_norm 10; it has no formula for aten::bmm_like'
    """
    if figure.macs is None:
        return f"fvcore: not available ({figure.error})"
    line = f"fvcore: {format_count(figure.macs)} MACs"
    if figure.macs != macs:
        line += f", {format_share(figure.macs, macs)} of the count above"
    if figure.beyond:
        line += f"; it counts {', '.join(f'{op} {format_count(n)}' for op, n in figure.beyond.items())}"
    if figure.uncounted:
        line += f"; it has no formula for {', '.join(figure.uncounted)}"
    return line


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0]
