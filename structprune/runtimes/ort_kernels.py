"""What onnxruntime's own profiler says: how long each kernel of a network takes, fusions as the runtime made them.

The kernels of one inference add up to its latency, in place, with the caches as the network leaves them; so they say
more than layers timed one by one.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from structprune.errors import ExportError
from structprune.runtime_settings import Runtime
from structprune.runtimes.ort import providers, session_options
from structprune.runtimes.profiles import Kernel, Profile

__all__ = ["profile_onnx"]

_EVENT = "_kernel_time"
_LAYOUT = re.compile(r"(_nchwc|_token_\d+)+$")


def profile_onnx(
    model: bytes | Path,
    feeds: Mapping[str, np.ndarray[Any, Any]],
    runtime: Runtime,
    *,
    warmup: int = 2,
    rounds: int = 10,
) -> Profile:
    """The profile of an ONNX model: of each kernel the lower quartile over the rounds, since a busy machine only adds.

    Subnormal numbers count as zero, so that the values of the weights do not matter.

    Raises:
        ExportError: where onnxruntime cannot run the model.
    """
    with tempfile.TemporaryDirectory(prefix="structprune-") as folder:
        options, chosen = session_options(runtime), providers(runtime)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
        source = str(model) if isinstance(model, Path) else model
        try:
            session = onnxruntime.InferenceSession(source, sess_options=options, providers=chosen)
            for _ in range(warmup + rounds):
                session.run(None, dict(feeds))
        except Exception as error:
            raise ExportError(
                f"onnxruntime {onnxruntime.__version__} cannot run the model: {error}"
            ) from error
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return _read(events, warmup)


def _read(events: list[dict[str, Any]], warmup: int) -> Profile:
    times: dict[str, list[float]] = {}
    first: dict[str, dict[str, Any]] = {}
    wholes = []
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith(_EVENT):
            times.setdefault(name, []).append(event["dur"] / 1e3)
            first.setdefault(name, event["args"])
        elif name == "model_run":
            wholes.append(event["dur"] / 1e3)
    runs = len(wholes)
    kernels = []
    for name, values in times.items():
        calls = len(values) // runs  # a kernel in a loop's body runs several times
        per_run = np.array(values[: calls * runs]).reshape(runs, calls).sum(axis=1)[warmup:]
        args = first[name]
        kernels.append(
            Kernel(
                _LAYOUT.sub("", name.removesuffix(_EVENT)),
                str(args["op_name"]),
                _shapes(args),
                float(np.quantile(per_run, 0.25)),
            )
        )
    return Profile(tuple(kernels), float(np.median(wholes[warmup:])))


def _shapes(args: Mapping[str, Any]) -> tuple[tuple[int, ...], ...]:
    listed = (*args.get("input_type_shape", ()), *args.get("output_type_shape", ()))
    return tuple(tuple(int(size) for size in shape) for entry in listed for shape in entry.values())
