"""`structprune rules`: the operations whose axes are understood, and in which sense."""

from __future__ import annotations

import fnmatch
from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from structprune.cli.models import import_module
from structprune.cli.options import DebugOption, JsonOption
from structprune.cli.output import session
from structprune.errors import InputError
from structprune.rules import KnownRule, known_rules

__all__ = ["rules"]


def rules(
    pattern: Annotated[
        str, typer.Argument(metavar="[GLOB]", help='Only operations of such names: "*conv*", "mylib::*".')
    ] = "*",
    load: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE", help="Import this first: a package.module or file.py with rules of yours."
        ),
    ] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """List the operations that have a rule: name, family, and how axes flow through them.

    What has none is left whole when it meets channels, and the reason names it; README.md says how to add a rule.
    """
    with session(as_json, debug) as out:
        if load is not None:
            import_module(load)
        known = list(known_rules())
        found = [one for one in known if fnmatch.fnmatchcase(one.operation, pattern)]
        if not found:
            raise InputError(f"no rule for an operation named {pattern!r}; {len(known)} others are known")
        out.show(_table(found), f"{len(found)} of {len(known)} rules")
        out.result({"rules": [asdict(one) for one in found]})


def _table(found: list[KnownRule]) -> Table:
    table = Table(show_edge=False, pad_edge=False)
    for column in ("operation", "family", "rule"):
        table.add_column(column, overflow="fold")
    marks = {"name": "", "function": "()", "tag": ""}
    for one in found:
        family = one.family + (" (torch's tag)" if one.known_by == "tag" else "")
        table.add_row(Text(one.operation + marks[one.known_by]), Text(family), Text(one.sentence))
    return table
