"""`structprune run`: a recipe from its first step to its last, taken up again where it was stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import structprune as sp
from structprune.cli.files import require_writable
from structprune.cli.options import DebugOption, JsonOption
from structprune.cli.output import Output, Steps, session
from structprune.recipes import Progress

__all__ = ["run"]


def run(
    recipe: Annotated[
        Path,
        typer.Argument(
            metavar="RECIPE", help="A recipe in YAML, or JSON if it ends in .json.", show_default=False
        ),
    ],
    out_folder: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="DIR", help="The run's folder. Default: runs/ and the recipe's name."
        ),
    ] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Run a recipe: train, prune, fine-tune, export, measure, as it says; `structprune schema` says what it may.

    The folder holds the state after every epoch and step. Stopped or killed, the same command goes on from there.
    """
    with session(as_json, debug) as out:
        folder = out_folder or Path("runs") / recipe.stem
        read = sp.Recipe.load(recipe)
        require_writable(folder)
        try:
            with out.steps(len(read.steps)) as step:
                result = sp.run_recipe(read, folder, progress=_Shown(step))
        except KeyboardInterrupt:
            _stopped(out, folder)
            raise
        out.show(*_told(result))
        out.result(
            {
                "recipe": str(recipe),
                "resumed": result.resumed,
                "weights_sha256": result.weights,
                "steps": list(result.records),
                "notes": list(result.notes),
                "folder": str(result.folder),
            }
        )


class _Shown:
    """The progress of a run on the command's bar."""

    def __init__(self, steps: Steps) -> None:
        self._steps, self._at = steps, -1

    def __call__(self, progress: Progress) -> None:
        label = f"{progress.step + 1}/{progress.steps} {progress.name}"
        if progress.step != self._at:
            self._at = progress.step
            self._steps(label)
        if progress.total:
            self._steps.part(progress.done, progress.total, label)


def _stopped(out: Output, folder: Path) -> None:
    out.show(f"stopped: what is done is kept in {folder}; the same command goes on from there")


def _told(result: sp.RecipeResult) -> list[str]:
    before = [f"{result.resumed} of {len(result.records)} steps were done before"] if result.resumed else []
    return [*result.notes, *before, str(result), f"wrote {result.folder}"]
