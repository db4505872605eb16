"""Runtimes: each prepares a module for inference and times one inference at a time; none knows of pruning.

A runtime is one file with one factory under `@register_runtime(name)`: a context manager that takes a module,
its inputs and the settings (`Runtime`), and yields a callable which runs one inference and returns its duration in
milliseconds. Batch size and dtype are seen to before; threads and provider options are the factory's. What it changes
(threads, training flags) it changes back when its context ends. Adding a runtime is adding such a file and importing
it here, or registering a factory from user code.
"""

from __future__ import annotations

from structprune.runtimes import compiled as compiled
from structprune.runtimes import eager as eager
from structprune.runtimes import eager_kernels as eager_kernels
from structprune.runtimes import ort as ort
from structprune.runtimes.environment import describe_environment
from structprune.runtimes.flags import inference_mode, torch_threads
from structprune.runtimes.measurement import Measurement, Ratio, ratio
from structprune.runtimes.profiles import Kernel, Profile, register_profiler
from structprune.runtimes.registry import (
    TimedCall,
    lender,
    prepare,
    register_runtime,
    require_known,
    runtime_names,
)
from structprune.runtimes.subject import flushed_for, inputs_for, model_for

__all__ = [
    "Kernel",
    "Measurement",
    "Profile",
    "Ratio",
    "TimedCall",
    "describe_environment",
    "flushed_for",
    "inference_mode",
    "inputs_for",
    "lender",
    "model_for",
    "prepare",
    "ratio",
    "register_profiler",
    "register_runtime",
    "require_known",
    "runtime_names",
    "torch_threads",
]
