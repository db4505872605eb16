"""Tests that run as several processes: `torchrun`, as users start it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

__all__ = ["torchrun"]


def torchrun(file: str, processes: int, *arguments: str) -> tuple[int, str]:
    """The exit status of a file that runs in several processes, on the CPU, and what they wrote."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}"]
    command += ["--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0", file, *arguments]
    root = str(Path(__file__).resolve().parent.parent)
    there = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with subprocess.Popen(
        command, env=there, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as running:
        try:
            said, _ = running.communicate(timeout=240)
        except subprocess.TimeoutExpired:
            running.terminate()  # torchrun ends its processes then; a killed one leaves them behind
            said, _ = running.communicate()
    return running.returncode, said
