"""What the exit codes of `structprune` mean: one number for each kind of error, so that scripts can tell."""

from __future__ import annotations

from enum import IntEnum

from structprune.errors import (
    BudgetError,
    ExportError,
    InputError,
    PlanError,
    StorageError,
    StructpruneError,
    TraceError,
    VerificationError,
)

__all__ = ["EXIT_CODES_HELP", "ExitCode", "exit_code"]


class ExitCode(IntEnum):
    """Exit codes; 128 + signal number, as shells have it, where a signal ended the work."""

    OK = 0
    INTERNAL = 1
    USAGE = 2
    TRACE = 3
    BUDGET = 4
    VERIFICATION = 5
    EXPORT = 6
    STORAGE = 7
    INTERRUPTED = 130


_CODES: tuple[tuple[type[StructpruneError], ExitCode], ...] = (
    (InputError, ExitCode.USAGE),
    (TraceError, ExitCode.TRACE),
    (BudgetError, ExitCode.BUDGET),
    (VerificationError, ExitCode.VERIFICATION),
    (ExportError, ExitCode.EXPORT),
    (StorageError, ExitCode.STORAGE),
    (PlanError, ExitCode.STORAGE),
)

EXIT_CODES_HELP = (
    "Exit codes: 0 done; 1 internal error; 2 usage, or an argument that is not as needed; "
    "3 the model cannot be traced; 4 the budget cannot be met; 5 the proof failed; "
    "6 the exported file does not match; 7 a saved folder or plan is damaged or belongs to another model; "
    "130 interrupted."
)


def exit_code(error: BaseException) -> ExitCode:
    """The exit code of an error.

    >>> exit_code(BudgetError("too little"))
    <ExitCode.BUDGET: 4>
    >>> exit_code(KeyError("x"))
    <ExitCode.INTERNAL: 1>
    """
    if isinstance(error, KeyboardInterrupt):
        return ExitCode.INTERRUPTED
    return next((code for kind, code in _CODES if isinstance(error, kind)), ExitCode.INTERNAL)
