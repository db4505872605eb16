"""`structprune apply`: a plan cuts weights on disk, file to file, one tensor in memory at a time."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

import structprune as sp
from structprune.cli.files import require_writable
from structprune.cli.models import empty_model
from structprune.cli.options import DebugOption, JsonOption
from structprune.cli.output import session

__all__ = ["apply"]


def apply(
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="A plan.json.", show_default=False)],
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE", help="A folder of safetensors, a file, or an index.", show_default=False
        ),
    ],
    target: Annotated[
        Path, typer.Argument(metavar="TARGET", help="The new folder to write.", show_default=False)
    ],
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="package.module:factory or file.py:factory; needed where tied tensors are stored twice.",
        ),
    ] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Cut the weights in SOURCE as PLAN says, into TARGET; it is complete, or it is not there.

    TARGET has the same files with the same tensors in each, the plan, and the configuration files of SOURCE.
    """
    with session(as_json, debug) as out:
        require_writable(target)
        try:
            text = plan.read_bytes()
        except OSError as error:
            raise sp.InputError(f"{plan} cannot be read: {error.strerror}") from error
        with out.steps(1) as step:
            step("cutting")
            empty = None if model is None else empty_model(model)
            report = sp.apply_plan_to_files(source, sp.PruningPlan.from_json(text), target, empty)
        out.show(str(report), f"wrote {target}")
        out.result({**asdict(report), "files": {"folder": str(target)}})
