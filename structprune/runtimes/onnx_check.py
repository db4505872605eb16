"""A module against its ONNX file in onnxruntime: the same inputs to both, every output compared."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
from torch import nn

from structprune.errors import ExportError
from structprune.inputs import batch_size, map_tensors, tensors_in
from structprune.runtimes.flags import inference_mode
from structprune.runtimes.ort import to_numpy

__all__ = ["largest_difference", "module_outputs"]

Array = np.ndarray[Any, Any]


def module_outputs(model: nn.Module, inputs: tuple[tuple[Any, ...], dict[str, Any]]) -> list[Array]:
    """Every tensor that the module returns for these inputs, in eval mode, as arrays; the inputs stay as they
    are.
    """
    args, kwargs = map_tensors(inputs, lambda tensor: tensor.clone())
    with inference_mode(model):
        return [to_numpy(tensor) for tensor in tensors_in(model(*args, **kwargs))]


def largest_difference(
    session: onnxruntime.InferenceSession,
    inputs: tuple[tuple[Any, ...], dict[str, Any]],
    expected: list[Array],
    rtol: float,
    atol: float,
) -> float:
    """The largest difference over all outputs, each relative to the largest absolute value expected there.

    Raises:
        ExportError: where a difference exceeds `atol + rtol * largest`, a shape or dtype differs, infinities
            or NaNs lie elsewhere, or onnxruntime cannot run.
    """
    where = f"on a batch of {batch_size(inputs)}"
    names = [node.name for node in session.get_inputs()]
    feeds = dict(zip(names, map(to_numpy, tensors_in(inputs)), strict=True))
    try:
        got = session.run(None, feeds)
    except Exception as error:
        raise ExportError(f"onnxruntime cannot run the exported file {where}: {error}") from error
    worst = 0.0
    for node, array, want in zip(session.get_outputs(), got, expected, strict=True):
        worst = max(worst, _difference(f"output {node.name!r} {where}", array, want, rtol, atol))
    return worst


def _difference(where: str, got: Array, want: Array, rtol: float, atol: float) -> float:
    if got.shape != want.shape or got.dtype != want.dtype:
        raise ExportError(
            f"{where}: onnxruntime gives {got.dtype} {list(got.shape)}, "
            f"the module {want.dtype} {list(want.shape)}"
        )
    if want.dtype.kind not in "fc":
        wrong = int((got != want).sum())
        if wrong:
            raise ExportError(
                f"{where}: {wrong} of {want.size} integer or boolean values differ from the module's"
            )
        return 0.0
    finite = np.isfinite(want)
    if not np.array_equal(got[~finite], want[~finite], equal_nan=True) or not np.isfinite(got[finite]).all():
        raise ExportError(f"{where}: NaNs or infinities are not where the module has them")
    if not finite.any():
        return 0.0
    wide = np.complex128 if want.dtype.kind == "c" else np.float64
    largest = float(np.abs(want[finite].astype(wide)).max())
    difference = float(np.abs(got[finite].astype(wide) - want[finite].astype(wide)).max())
    if difference > atol + rtol * largest:
        raise ExportError(
            f"{where}: differs from the module's by {difference:.3e} where values reach {largest:.3e}; "
            f"allowed is {atol + rtol * largest:.1e} ({atol=}, {rtol=}). If the model draws random numbers "
            "in eval mode or works in half precision, export it in float32 without them, or allow more"
        )
    return difference / largest if largest else difference
