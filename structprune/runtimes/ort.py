"""onnxruntime: the module, converted to a temporary ONNX file, in a session of its own.

Sessions run with an explicit number of intra-op threads, one inter-op thread and no spinning: threads that
spin while they wait slow every other session of the process, and the sessions timed here take turns. Subnormal
numbers count as zero, since those that onnxruntime's own fusions make of a network's weights slow it several times:
the session's option does so on the threads of its pool, and on the calling thread it is set around each run. A
runtime's provider options come last: a key with a dot overrides an entry of the session's configuration.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from structprune.errors import ExportError, InputError
from structprune.runtime_settings import Runtime
from structprune.runtimes.flags import subnormals_as_zero
from structprune.runtimes.onnx_convert import convert, save_model
from structprune.runtimes.registry import TimedCall, register_runtime

__all__ = [
    "PROVIDERS",
    "as_zero",
    "onnxruntime_cpu",
    "onnxruntime_cuda",
    "open_session",
    "providers",
    "session_options",
    "to_numpy",
]

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
PROVIDERS = {"onnxruntime": (CPU,), "onnxruntime-cuda": (CUDA, CPU)}
_AS_ZERO = "session.set_denormal_as_zero"
_ENTRIES = {
    "session.intra_op.allow_spinning": "0",
    "session.inter_op.allow_spinning": "0",
    _AS_ZERO: "1",
}


def providers(runtime: Runtime) -> list[tuple[str, dict[str, str]]]:
    """The execution providers of a runtime, the first with the runtime's options.

    Raises:
        InputError: for a runtime that is not onnxruntime, and for options that its provider would ignore.
    """
    if runtime.name not in PROVIDERS:
        raise InputError(f"runtime={runtime.name!r} is none of onnxruntime's: {', '.join(PROVIDERS)}")
    first, *rest = PROVIDERS[runtime.name]
    own = {key: value for key, value in runtime.options.items() if "." not in key}
    if own and first == CPU:
        raise InputError(
            f"provider_options={own}: onnxruntime's CPU provider has no options; an entry of the session's "
            "configuration has a dot in its name, such as 'session.intra_op.allow_spinning'"
        )
    return [(first, own), *((name, {}) for name in rest)]


def session_options(runtime: Runtime) -> onnxruntime.SessionOptions:
    """Options for sessions that take turns: the runtime's intra-op threads, one inter-op thread, no spinning."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = runtime.threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 4
    given = {key: value for key, value in runtime.options.items() if "." in key}
    for key, value in {**_ENTRIES, **given}.items():
        options.add_session_config_entry(key, value)
    return options


def as_zero(runtime: Runtime) -> AbstractContextManager[None]:
    """The calling thread treats subnormal numbers as the runtime's sessions do; around their making and their runs."""
    return subnormals_as_zero({**_ENTRIES, **runtime.options}[_AS_ZERO] == "1")


def open_session(
    source: bytes | Path, runtime: Runtime, options: onnxruntime.SessionOptions | None = None
) -> onnxruntime.InferenceSession:
    """A session for an ONNX file or its bytes, with the runtime's threads and options.

    Raises:
        ExportError: where onnxruntime cannot run the file.
    """
    options, chosen = options or session_options(runtime), providers(runtime)
    given = str(source) if isinstance(source, Path) else source
    try:
        with as_zero(runtime):
            session = onnxruntime.InferenceSession(given, sess_options=options, providers=chosen)
    except Exception as error:
        raise ExportError(
            f"onnxruntime {onnxruntime.__version__} cannot load the converted model: {error}\n"
            "Try another opset, float32 where the model is in a half-precision format, or other provider options."
        ) from error
    if session.get_providers()[0] != chosen[0][0]:  # without its libraries onnxruntime goes on with the next
        raise ExportError(
            f"onnxruntime {onnxruntime.__version__} lists {chosen[0][0]} and cannot load it, most often for want of "
            "the CUDA or cuDNN libraries of its version; "
            f"it would run on {', '.join(session.get_providers())}"
        )
    return session


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
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], runtime: Runtime
) -> Iterator[tuple[onnxruntime.InferenceSession, dict[str, np.ndarray[Any, Any]]]]:
    providers(runtime)  # refuses options before anything is converted
    converted = convert(model, args, kwargs)
    if converted.subnormal_weights:
        warnings.warn(
            f"folding the norms of {type(model).__name__} makes {converted.subnormal_weights} of its weights "
            "subnormal, which slows many CPUs several times: zeros are timed instead, as export_onnx writes them",
            stacklevel=2,
        )
    with tempfile.TemporaryDirectory(prefix="structprune-") as folder:
        path = Path(folder) / "model.onnx"
        save_model(converted.model, path)
        session = open_session(path, runtime)
        names = [node.name for node in session.get_inputs()]
        yield session, {name: to_numpy(t) for name, t in zip(names, converted.inputs, strict=True)}


@register_runtime("onnxruntime", takes_options=True)
@contextmanager
def onnxruntime_cpu(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], runtime: Runtime
) -> Iterator[TimedCall]:
    """Times the converted module on onnxruntime's CPU kernels, the batch size fixed in the file."""
    with _session(model, args, kwargs, runtime) as (session, feeds):

        def timed() -> float:
            with as_zero(runtime):
                start = time.perf_counter()
                session.run(None, feeds)
                return (time.perf_counter() - start) * 1e3

        yield timed


@register_runtime("onnxruntime-cuda", takes_options=True, kernels_of="torch-cuda")
@contextmanager
def onnxruntime_cuda(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], runtime: Runtime
) -> Iterator[TimedCall]:
    """Times the converted module on onnxruntime's CUDA kernels, inputs and outputs kept on the device."""
    if CUDA not in onnxruntime.get_available_providers() or not torch.cuda.is_available():
        raise InputError(
            "runtime='onnxruntime-cuda' needs a CUDA device and the onnxruntime-gpu package; "
            f"the providers here are {', '.join(onnxruntime.get_available_providers())}"
        )
    with _session(model, args, kwargs, runtime) as (session, feeds):
        binding = session.io_binding()
        device = int(runtime.options.get("device_id", "0"))
        for name, array in feeds.items():
            binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array, "cuda", device))
        for node in session.get_outputs():
            binding.bind_output(node.name, "cuda", device)

        def timed() -> float:
            start = time.perf_counter()
            session.run_with_iobinding(binding)
            binding.synchronize_outputs()
            return (time.perf_counter() - start) * 1e3

        yield timed
