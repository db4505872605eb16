"""The command-line application: which commands there are; each one's work is in its own module."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from structprune.cli.apply import apply
from structprune.cli.bench import bench
from structprune.cli.demo import demo
from structprune.cli.exit_codes import EXIT_CODES_HELP, ExitCode
from structprune.cli.export import export
from structprune.cli.inspect import inspect
from structprune.cli.output import error_document, write_document
from structprune.cli.plan import plan
from structprune.cli.prune import prune
from structprune.cli.rules import rules
from structprune.cli.run import run
from structprune.cli.schema import schema
from structprune.cli.sensitivity import sensitivity
from structprune.cli.sparsify import sparsify
from structprune.cli.staircase import staircase
from structprune.cli.sweep import sweep
from structprune.strict_json import own_version

__all__ = ["app", "main"]

app = typer.Typer(
    name="structprune",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    epilog=EXIT_CODES_HELP,
)
for command in (
    demo,
    inspect,
    prune,
    sweep,
    plan,
    apply,
    sparsify,
    bench,
    staircase,
    sensitivity,
    export,
    run,
    schema,
    rules,
):
    app.command(epilog=EXIT_CODES_HELP)(command)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"structprune {own_version('(not installed)')}")
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
    if "--json" not in sys.argv:
        app()
    sys.exit(_run_as_json())


def _run_as_json() -> int:
    """The exit code; a line that cannot be parsed is reported as a document too, since a program reads it."""
    try:
        return int(app(standalone_mode=False) or ExitCode.OK)
    except typer.Abort:
        return ExitCode.INTERRUPTED
    except Exception as error:
        explain = getattr(error, "format_message", None)  # what all errors of the command-line parser have
        if explain is None:
            raise
        typer.echo(f"error: {explain()} (--help lists the arguments)", err=True)
        write_document(error_document("UsageError", explain(), ExitCode.USAGE), sys.stdout)
        return ExitCode.USAGE
