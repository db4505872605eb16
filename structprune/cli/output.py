"""Where a command writes: tables for people, or one JSON document for pipelines, never both on one stream.

With `--json` stdout carries the document and nothing else: what a model prints goes to stderr. Progress and
errors always go to stderr; progress shows only on a terminal.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Iterator
from typing import Any, TextIO

import typer
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from structprune.cli.exit_codes import ExitCode, exit_code
from structprune.errors import StructpruneError
from structprune.interrupts import interrupts_kept

__all__ = ["Output", "Steps", "error_document", "session", "write_document"]


def _console(stream: TextIO) -> Console:
    """A console on `stream`; where that is no terminal, wide enough that tables are not folded."""
    return Console(file=stream, width=None if stream.isatty() or "COLUMNS" in os.environ else 160)


class Steps:
    """The progress bar of a command that goes through a known number of steps."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=total)
        self._started = False
        self._began: float | None = None

    def __call__(self, label: str) -> None:
        """Say that the step `label` begins, which ends the one before."""
        self._progress.update(self._task, description=label, advance=1 if self._started else 0)
        self._started = True

    def part(self, done: int, total: int, what: str = "profiling") -> None:
        """Say how far within the step the work is; the time left follows from the parts that are done."""
        now = time.monotonic()
        if done <= 1 or self._began is None:
            self._began = now
            return
        left = (now - self._began) / (done - 1) * (total - done)
        self._progress.update(self._task, description=f"{what} {done}/{total}, about {left:.0f} s left")


class Output:
    """The output of one command: `show` renders for people, `result` is the JSON document."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.console = _console(sys.stderr if as_json else sys.stdout)
        self._stdout = sys.stdout

    def show(self, *renderables: RenderableType) -> None:
        """Print tables and lines for people: on stdout, or on stderr where stdout carries JSON."""
        for renderable in renderables:
            self.console.print(renderable, soft_wrap=isinstance(renderable, (str, Text)))

    def result(self, document: dict[str, Any]) -> None:
        """Write the JSON document, if one was asked for."""
        if self.as_json:
            write_document(document, self._stdout)

    @contextlib.contextmanager
    def steps(self, total: int) -> Iterator[Steps]:
        """A progress bar over `total` steps on stderr, gone when the work is done."""
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        console = Console(file=sys.stderr)
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            yield Steps(progress, total)


def write_document(document: dict[str, Any], stream: TextIO) -> None:
    """Write one JSON document and a line's end."""
    stream.write(json.dumps(document, indent=2, allow_nan=False, ensure_ascii=False) + "\n")
    stream.flush()


def error_document(kind: str, message: str, code: ExitCode) -> dict[str, Any]:
    """What `--json` writes in place of a result."""
    return {"error": {"kind": kind, "message": message, "exit_code": int(code)}}


@contextlib.contextmanager
def session(as_json: bool, debug: bool) -> Iterator[Output]:
    """The boundary of a command: every error leaves as one message and an exit code that means something.

    With `debug` the traceback goes before the message. With `as_json` the error is a JSON document as well.
    """
    out = Output(as_json)
    try:
        with (
            interrupts_kept(),
            _quiet_torch(debug),
            contextlib.redirect_stdout(sys.stderr if as_json else sys.stdout),
        ):
            yield out
    except (typer.Exit, typer.Abort, BrokenPipeError):
        raise
    except KeyboardInterrupt as error:
        Console(stderr=True).print("interrupted", style="yellow")
        raise typer.Exit(ExitCode.INTERRUPTED) from error
    except Exception as error:  # the outermost boundary: nothing leaves as a bare traceback
        _report(error, out, debug)
        raise typer.Exit(exit_code(error)) from error


@contextlib.contextmanager
def _quiet_torch(debug: bool) -> Iterator[None]:
    """Hold back the traceback that torch logs where a forward fails on fake tensors: the error says it."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    level = logger.level
    try:
        if not debug:
            logger.setLevel(logging.CRITICAL)
        yield
    finally:
        logger.setLevel(level)


def _report(error: Exception, out: Output, debug: bool) -> None:
    console = Console(file=sys.stderr)
    if debug:
        console.print("".join(traceback.format_exception(error)), markup=False, highlight=False, end="")
    code = exit_code(error)
    message = str(error)
    if not isinstance(error, StructpruneError):
        message = f"internal error: {type(error).__name__}: {error}"
        message += "" if debug else " (run again with --debug for the traceback)"
    console.print(Text("error: ", style="bold red").append(message, style="default"), soft_wrap=True)
    out.result(error_document(type(error).__name__, str(error), code))
