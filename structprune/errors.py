"""The errors structprune raises: one base, few kinds, each message says what, where and what to do."""

from __future__ import annotations

__all__ = [
    "BudgetError",
    "ExportError",
    "InputError",
    "PlanError",
    "StorageError",
    "StructpruneError",
    "TraceError",
    "VerificationError",
]


class StructpruneError(Exception):
    """Base of every error that structprune raises on purpose."""


class InputError(StructpruneError, ValueError):
    """An argument is not what the call needs; the message names it, its value and what is allowed."""


class TraceError(StructpruneError):
    """The model could not be run once to find its structure, or it is of a kind that must be unwrapped first."""


class PlanError(StructpruneError):
    """A pruning plan is malformed, or belongs to another model."""


class BudgetError(StructpruneError):
    """A budget cannot be met; the message gives the range that can be reached.

    ``fastest`` is the least share of the latency that was forecast, where a latency was what could not be met.
    """

    def __init__(self, message: str, fastest: float | None = None) -> None:
        super().__init__(message)
        self.fastest = fastest


class VerificationError(StructpruneError):
    """The pruned network does not compute what the masked original computes; the first differing layer is named."""


class ExportError(StructpruneError):
    """The exported file could not be made, or does not compute what the module computes."""


class StorageError(StructpruneError):
    """A saved folder is incomplete, damaged, hostile, or belongs to another model."""
