"""onnxruntime: the module, converted to a temporary ONNX file, in a session of its own.

Sessions run with an explicit number of intra-op threads, one inter-op thread and no spinning: threads that
spin while they wait slow every other session of the process, and the sessions timed here take turns.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from structprune.errors import ExportError, InputError
from structprune.runtimes.onnx_convert import convert, save_model
from structprune.runtimes.registry import TimedCall, register_runtime

__all__ = ["onnxruntime_cpu", "onnxruntime_cuda", "open_session", "session_options", "to_numpy"]

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"


def session_options(threads: int) -> onnxruntime.SessionOptions:
    """Options for sessions that take turns: `threads` intra-op threads, one inter-op thread, no spinning."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return options


def open_session(path: Path, threads: int, providers: Sequence[str] = (CPU,)) -> onnxruntime.InferenceSession:
    """A session for the ONNX file at `path`: `threads` intra-op threads, one inter-op thread, no spinning.

    Raises:
        ExportError: where onnxruntime cannot run the file.
    """
    options = session_options(threads)
    try:
        return onnxruntime.InferenceSession(str(path), sess_options=options, providers=list(providers))
    except Exception as error:
        raise ExportError(
            f"onnxruntime {onnxruntime.__version__} cannot load the converted model: {error}\n"
            "Try another opset, or float32 weights where the model is in a half-precision format."
        ) from error


def to_numpy(tensor: Tensor) -> np.ndarray[Any, Any]:
    """The tensor as an array that onnxruntime takes.

    Raises:
        InputError: for a dtype that numpy lacks, such as bfloat16.
    """
    try:
        return tensor.detach().cpu().contiguous().numpy()
    except TypeError as error:
        raise InputError(
            f"onnxruntime cannot be fed {tensor.dtype}: convert the model and its inputs first"
        ) from error


@contextmanager
def _session(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], threads: int, providers: Sequence[str]
) -> Iterator[tuple[onnxruntime.InferenceSession, dict[str, np.ndarray[Any, Any]]]]:
    converted = convert(model, args, kwargs)
    with tempfile.TemporaryDirectory(prefix="structprune-") as folder:
        path = Path(folder) / "model.onnx"
        save_model(converted.model, path)
        session = open_session(path, threads, providers)
        names = [node.name for node in session.get_inputs()]
        yield session, {name: to_numpy(t) for name, t in zip(names, converted.inputs, strict=True)}


@register_runtime("onnxruntime")
@contextmanager
def onnxruntime_cpu(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], threads: int
) -> Iterator[TimedCall]:
    """Times the converted module on onnxruntime's CPU kernels, the batch size fixed in the file."""
    with _session(model, args, kwargs, threads, (CPU,)) as (session, feeds):

        def timed() -> float:
            start = time.perf_counter()
            session.run(None, feeds)
            return (time.perf_counter() - start) * 1e3

        yield timed


@register_runtime("onnxruntime-cuda")
@contextmanager
def onnxruntime_cuda(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], threads: int
) -> Iterator[TimedCall]:
    """Times the converted module on onnxruntime's CUDA kernels, inputs and outputs kept on the device."""
    if CUDA not in onnxruntime.get_available_providers() or not torch.cuda.is_available():
        raise InputError(
            "runtime='onnxruntime-cuda' needs a CUDA device and the onnxruntime-gpu package; "
            f"the providers here are {', '.join(onnxruntime.get_available_providers())}"
        )
    with _session(model, args, kwargs, threads, (CUDA, CPU)) as (session, feeds):
        binding = session.io_binding()
        for name, array in feeds.items():
            binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array, "cuda", 0))
        for node in session.get_outputs():
            binding.bind_output(node.name, "cuda")

        def timed() -> float:
            start = time.perf_counter()
            session.run_with_iobinding(binding)
            binding.synchronize_outputs()
            return (time.perf_counter() - start) * 1e3

        yield timed
