"""Profiles on disk: one file of JSON lines for each network, runtime and machine; a broken last line is no harm."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from structprune.graph import DependencyGraph
from structprune.inputs import tensors_in
from structprune.runtime_settings import Runtime
from structprune.runtimes.environment import describe_environment
from structprune.runtimes.profiles import Kernel, Profile

__all__ = ["Cache", "cache_folder"]

_FORMAT = 2


def cache_folder() -> Path:
    """The folder of measured latencies: STRUCTPRUNE_CACHE, or structprune in the user's cache folder."""
    if own := os.environ.get("STRUCTPRUNE_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    return (Path(base) if base else Path.home() / ".cache") / "structprune"


class Cache:
    """The profiles of one network on one runtime of this machine, by counts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[tuple[int, ...], Profile] = {}
        self._broken = False  # the last line was being written when the program ended
        if path.is_file():
            text = path.read_text(encoding="utf-8", errors="replace")
            self._broken = bool(text) and not text.endswith("\n")
            for line in text.splitlines():
                self._read(line)

    @classmethod
    def of(cls, graph: DependencyGraph, inputs: Any, runtime: Runtime, kernels_of: str = "") -> Cache:
        """The cache of a traced network with these inputs; of another runtime's kernels with ``kernels_of``."""
        described = {
            "format": _FORMAT,
            "network": graph.fingerprint,
            "operations": [(record.layer, record.operation) for record in graph.run.records],
            "groups": [(group.size, group.tie) for group in graph.groups],
            "inputs": [(str(t.dtype), list(t.shape)) for t in tensors_in(inputs)],
            **runtime.settings(),
            "environment": describe_environment(),
            **({"kernels_of": kernels_of} if kernels_of else {}),
        }
        digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
        return cls(cache_folder() / "latency" / f"{digest[:32]}.jsonl")

    def get(self, counts: np.ndarray) -> Profile | None:
        """The profile that was measured at these counts, None where none was."""
        return self._known.get(tuple(counts.tolist()))

    def put(self, counts: np.ndarray, profile: Profile) -> None:
        """Keep a profile; a folder that cannot be written only means that it is measured again next time."""
        key = tuple(counts.tolist())
        self._known[key] = profile
        line = json.dumps({"counts": key, "profile": asdict(profile)})
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write("\n" * self._broken + line + "\n")
            self._broken = False
        except OSError:
            return

    def _read(self, line: str) -> None:
        try:
            entry = json.loads(line)
            kernels = tuple(_kernels(entry["profile"]["kernels"]))
            times = [float(entry["profile"][key]) for key in ("whole_ms", "reference_ms")]
            counts = tuple(entry["counts"])
        except (ValueError, KeyError, TypeError, RecursionError):
            return  # no whole profile: it is measured again
        finite = all(math.isfinite(ms) and ms >= 0 for ms in (*times, *(kernel.ms for kernel in kernels)))
        if finite and min(times) > 0:
            self._known[counts] = Profile(kernels, *times)


def _kernels(entries: Iterable[dict[str, Any]]) -> Iterable[Kernel]:
    for entry in entries:
        shapes = tuple(tuple(int(size) for size in shape) for shape in entry["shapes"])
        yield Kernel(str(entry["name"]), str(entry["operation"]), shapes, float(entry["ms"]))
