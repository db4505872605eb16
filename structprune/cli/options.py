"""The arguments and options that several commands share, declared once so that they read the same."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "DebugOption",
    "FolderOption",
    "InputOption",
    "JsonOption",
    "ModelArgument",
    "OnnxOption",
    "OutOption",
    "SeedOption",
]

ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="package.module:factory or file.py:factory, which returns the nn.Module (or is it).",
        show_default=False,
    ),
]
InputOption = Annotated[
    list[str],
    typer.Option(
        "--input",
        "-i",
        metavar="SIZES",
        help="An input, as 1x3x224x224 or ids=1x16:int64:30522 (name=sizes:dtype:bound). Repeatable.",
        show_default=False,
    ),
]
FolderOption = Annotated[
    Path | None,
    typer.Option(
        "--folder",
        metavar="DIR",
        help="Take the pruned network that `prune --out` saved here; MODEL builds the original.",
        show_default=False,
    ),
]
OutOption = Annotated[
    Path | None,
    typer.Option(
        "--out", "-o", metavar="DIR", help="Write plan.json and model.safetensors here.", show_default=False
    ),
]
OnnxOption = Annotated[
    Path | None, typer.Option("--onnx", metavar="FILE", help="Export to this ONNX file too, checked.")
]
SeedOption = Annotated[int, typer.Option("--seed", help="Seed of the random weights and inputs.")]
JsonOption = Annotated[
    bool, typer.Option("--json", help="One JSON document on stdout and nothing else there.")
]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
