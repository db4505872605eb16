"""Options that would do nothing: who writes one expects something of it, so the line is refused, with the reason.

Which options these are depends on the others, so each command says it with `require_effect`.
"""

from __future__ import annotations

import typer

from structprune.errors import InputError

__all__ = ["require_effect"]


def require_effect(context: typer.Context, has_effect: bool, needs: str, *options: str) -> None:
    """Pass unless one of the options (by the names of the command's arguments) was given and has no effect.

    `needs` says what would give them one: "a latency: --latency or --throughput".

    Raises:
        InputError: with the options as they are written on the command line.
    """
    if has_effect:
        return
    known = {parameter.name: parameter for parameter in context.command.params}
    given = [name for name in options if _was_given(context, name)]
    if given:
        written = " and ".join(known[name].opts[0] for name in given)
        raise InputError(
            f"{written} would have no effect: {'they need' if given[1:] else 'it needs'} {needs}"
        )


def _was_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
