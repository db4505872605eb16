"""`structprune export`: an ONNX file that computes what the module computes, or no file."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

import structprune as sp
from structprune.cli.files import require_writable
from structprune.cli.models import build_model
from structprune.cli.options import (
    DebugOption,
    FolderOption,
    InputOption,
    JsonOption,
    ModelArgument,
    RewriteOption,
    SeedOption,
)
from structprune.cli.output import session

__all__ = ["export"]


def export(
    model: ModelArgument,
    inputs: InputOption,
    path: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The ONNX file to write.")],
    folder: FolderOption = None,
    opset: Annotated[
        int | None, typer.Option("--opset", help="ONNX opset; torch's default if left out.")
    ] = None,
    fixed_batch: Annotated[
        bool,
        typer.Option(
            "--fixed-batch", help="Fix the batch size at the input's; else dynamic where it can be."
        ),
    ] = False,
    rewrite: RewriteOption = False,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Export to ONNX, checked in onnxruntime against the module on several batches, or leave no file."""
    with session(as_json, debug) as out:
        require_writable(file=path)
        with out.steps(2) as step:
            step("building the model")
            example = sp.parse_inputs(inputs, seed)
            network = build_model(model, folder, seed, example if rewrite else None)
            step("exporting and checking in onnxruntime")
            report = sp.export_onnx(
                network,
                example,
                path,
                opset=opset,
                dynamic_batch=False if fixed_batch else "auto",
                plan=None if folder is None else sp.load_plans(folder),
            )
        out.show(str(report))
        out.result({"model": model, **_plain(report)})


def _plain(report: sp.ExportReport) -> dict[str, object]:
    return {key: str(value) if isinstance(value, Path) else value for key, value in asdict(report).items()}
