"""The machine and the software that a benchmark ran on, as plain data to stand beside its figures."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch

__all__ = ["environment"]

_PACKAGES = ("structprune", "torch", "onnxruntime", "onnx", "onnxscript", "numpy", "scipy", "torch-pruning")
_SIMD = ("avx", "f16c", "fma", "amx", "asimd", "sve", "bf16")


def environment(threads: int) -> dict[str, Any]:
    """Machine, CPU flags, versions, threads and load, as a dict that goes into JSON.

    >>> sorted(environment(1))
    ['cores', 'cpu', 'gpu', 'load', 'memory_bytes', 'packages', 'python', 'simd', 'system', 'threads']
    """
    info = _cpu_info()
    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": info.get("model name", platform.processor()),
        "simd": sorted(f for f in info.get("flags", info.get("Features", "")).split() if f.startswith(_SIMD)),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": _memory_bytes(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "python": sys.version.split()[0],
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
        "threads": {
            "inference": threads,
            "torch": torch.get_num_threads(),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
        },
    }


def _cpu_info() -> dict[str, str]:
    """The first processor's entries, where the system lists them."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return {}
    first = path.read_text(errors="replace").split("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _memory_bytes() -> int | None:
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
