"""What the commands that make a network write: its folder, and its ONNX file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

import structprune as sp
from structprune.checkpoint import WEIGHTS
from structprune.destinations import require_apart, require_file, require_folder
from structprune.storage import PLAN

__all__ = ["require_writable", "write_files"]


def require_writable(folder: Path | None = None, file: Path | None = None) -> None:
    """Pass where a folder, and a file, can be written; asked before the work, not after it.

    Raises:
        InputError: where a folder stands in the file's place or the reverse, where the file is to be the folder or one
            of those that are saved in it, or the system refuses.
    """
    if folder is not None:
        require_folder(folder)
    if file is not None:
        require_file(file)
    if folder is not None and file is not None:
        saved = {f"the {name} of the folder": folder / name for name in (PLAN, WEIGHTS)}
        require_apart({"the folder": folder, **saved, "the file beside it": file})
        above = {f"above the folder ({step})": step for step in folder.absolute().parents}
        require_apart({"the file beside it": file, **above})


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
