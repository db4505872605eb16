"""`structprune demo`: the whole way on real data, from training to the table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from structprune.cli.files import require_writable
from structprune.cli.options import DebugOption, JsonOption, SeedOption
from structprune.cli.output import session
from structprune.demo import run

__all__ = ["demo"]


def demo(
    out_folder: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="DIR", help="Where plan, weights, ONNX and JSON are written."),
    ] = Path("runs/demo"),
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Train a residual CNN on digits, prune it to half its MACs, fine-tune, export and measure it."""
    with session(as_json, debug) as out:
        require_writable(out_folder)
        out.result(run(out_folder, seed=seed, console=out.console))
