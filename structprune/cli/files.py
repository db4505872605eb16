"""What the commands that make a network write: its folder, and its ONNX file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

import structprune as sp

__all__ = ["write_files"]


def write_files(
    model: nn.Module, plans: Sequence[sp.PruningPlan], example: Any, folder: Path | None, onnx: Path | None
) -> dict[str, str]:
    """The paths of what was written, by kind; nothing where neither a folder nor a file is named."""
    files = {}
    if folder is not None:
        sp.save(folder, model, plans)
        files["folder"] = str(folder)
    if onnx is not None:
        files["onnx"] = str(sp.export_onnx(model, example, onnx, plan=plans).path)
    return files
