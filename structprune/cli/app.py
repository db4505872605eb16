"""The command-line application: which commands there are; each one's work is in its own module."""

from __future__ import annotations

import importlib.metadata
from typing import Annotated

import typer

from structprune.cli.bench import bench
from structprune.cli.demo import demo
from structprune.cli.exit_codes import EXIT_CODES_HELP
from structprune.cli.export import export
from structprune.cli.inspect import inspect
from structprune.cli.prune import prune
from structprune.cli.sparsify import sparsify

__all__ = ["app", "main"]

app = typer.Typer(
    name="structprune",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    epilog=EXIT_CODES_HELP,
)
for command in (demo, inspect, prune, sparsify, bench, export):
    app.command(epilog=EXIT_CODES_HELP)(command)


def _own_version() -> str:
    try:
        return importlib.metadata.version("structprune")
    except importlib.metadata.PackageNotFoundError:  # run from a source tree that is not installed
        return "(not installed)"


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"structprune {_own_version()}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Structural pruning of PyTorch networks, with a proof that the smaller one computes what it should."""


def main() -> None:
    """Run the command line; what `structprune` and `python -m structprune` start."""
    app()
