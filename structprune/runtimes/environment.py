"""Where a measurement was made: what must be known before two figures may be compared."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import numpy as np
import onnxruntime
import torch

__all__ = ["describe_environment"]


def describe_environment() -> dict[str, str]:
    """The machine and the versions that a latency depends on, as plain strings.

    >>> sorted(describe_environment())
    ['cores', 'cpu', 'gpu', 'numpy', 'onnxruntime', 'python', 'simd', 'system', 'torch']
    """
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_model(),
        "cores": str(_usable_cores()),
        "simd": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
        "numpy": np.__version__,
    }


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
