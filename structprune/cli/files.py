"""What the commands that make a network write: its folder, and its ONNX file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

import structprune as sp

__all__ = ["require_writable", "write_files"]


def require_writable(folder: Path | None = None, file: Path | None = None) -> None:
    """Pass where a folder, and a file, can be written; asked before the work, not after it.

    Raises:
        InputError: where a folder stands in the file's place or the reverse, or permission is missing.
    """
    for path, place in ((folder, folder), (file, None if file is None else file.absolute().parent)):
        if path is None or place is None:
            continue
        if path is file and path.is_dir():
            raise sp.InputError(f"{path} is a folder: name the file, as in {path / 'model.onnx'}")
        there = next(step for step in (place.absolute(), *place.absolute().parents) if step.exists())
        if not there.is_dir():
            raise sp.InputError(f"{path} cannot be written: {there} is a file, not a folder")
        if not os.access(there, os.W_OK | os.X_OK):
            raise sp.InputError(f"{path} cannot be written: no permission in {there}")


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
