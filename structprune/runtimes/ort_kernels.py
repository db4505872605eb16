"""What onnxruntime's own profiler says: how long each kernel of a network takes, fusions as the runtime made them.

The kernels of one inference add up to its latency, in place, with the caches as the network leaves them; so they say
more than layers timed one by one.
"""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from structprune.errors import ExportError
from structprune.runtime_settings import Runtime
from structprune.runtimes.ort import as_zero, open_session, session_options
from structprune.runtimes.profiles import Kernel, Profile
from structprune.runtimes.registry import TimedCall, alone

__all__ = ["profile_onnx"]

_EVENT = "_kernel_time"
_WARMUP = 2
_ROUNDS = (4, 10)  # least and most
_MOST_MS = 800.0  # of one network and the one beside it, in all rounds that are profiled
_LAYOUT = re.compile(r"(_nchwc|_token_\d+)+$")


def profile_onnx(
    model: bytes | Path,
    feeds: Mapping[str, np.ndarray[Any, Any]],
    runtime: Runtime,
    beside: TimedCall = alone,
) -> Profile:
    """The profile of an ONNX model: of each kernel the median over the rounds.

    ``beside`` times another network, by turns with this one: each round's times are scaled to the usual time of that,
    so that they say less of what else the machine was doing. Subnormal numbers count as zero, so that the values of the
    weights do not matter.

    Raises:
        ExportError: where onnxruntime cannot run the model.
    """
    with tempfile.TemporaryDirectory(prefix="structprune-") as folder:
        options = session_options(runtime)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = open_session(model, runtime, options)
        with as_zero(runtime):
            try:
                before = [_turn(session, feeds, beside) for _ in range(_WARMUP)]
                rounds = int(np.clip(_MOST_MS / max(sum(before[-1]), 1e-3), *_ROUNDS))
                before += [_turn(session, feeds, beside) for _ in range(rounds)]
            except Exception as error:
                raise ExportError(
                    f"onnxruntime {onnxruntime.__version__} cannot run the model: {error}"
                ) from error
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
            after = [_turn(session, feeds, beside) for _ in range(rounds)]
    others = np.array([other for _, other in (*before, *after)])
    usual = float(np.median(others))
    speed = usual / others
    wholes = np.array([own for own, _ in after]) * speed[-rounds:]
    return Profile(_read(events, speed[: len(before)]), float(np.median(wholes)), usual)


def _turn(
    session: onnxruntime.InferenceSession,
    feeds: Mapping[str, np.ndarray[Any, Any]],
    beside: TimedCall,
) -> tuple[float, float]:
    """Milliseconds of one run, and of one of the network beside it."""
    start = time.perf_counter()
    session.run(None, dict(feeds))
    return (time.perf_counter() - start) * 1e3, beside()


def _read(events: list[dict[str, Any]], speed: np.ndarray[Any, Any]) -> tuple[Kernel, ...]:
    times: dict[str, list[float]] = {}
    first: dict[str, dict[str, Any]] = {}
    runs = 0
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith(_EVENT):
            times.setdefault(name, []).append(event["dur"] / 1e3)
            first.setdefault(name, event["args"])
        elif name == "model_run":
            runs += 1
    kernels = []
    named: dict[str, int] = {}
    for name, values in times.items():
        calls = len(values) // runs  # a kernel in a loop's body runs several times
        per_run = np.array(values[: calls * runs]).reshape(runs, calls).sum(axis=1)
        args = first[name]
        short = _LAYOUT.sub("", name.removesuffix(_EVENT))
        number = named[short] = named.get(short, 0) + 1
        kernels.append(
            Kernel(
                short if number == 1 else f"{short}#{number}",
                str(args["op_name"]),
                _shapes(args),
                float(np.median((per_run * speed)[_WARMUP:])),
            )
        )
    return tuple(kernels)


def _shapes(args: Mapping[str, Any]) -> tuple[tuple[int, ...], ...]:
    listed = (*args.get("input_type_shape", ()), *args.get("output_type_shape", ()))
    return tuple(tuple(int(size) for size in shape) for entry in listed for shape in entry.values())
