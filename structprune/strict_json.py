"""What the JSON texts of this package share: strict records, the version that wrote them, what is wrong with others."""

from __future__ import annotations

import importlib.metadata

from pydantic import BaseModel, ConfigDict, ValidationError

__all__ = ["StrictRecord", "first_fault", "own_version"]


class StrictRecord(BaseModel):
    """A JSON object with its fields and no others, of their types to the letter, and with finite numbers."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


def first_fault(error: ValidationError) -> str:
    """Where a text is not as its record asks, what is wrong there, and how many faults there are; short for any text.

    >>> class Point(StrictRecord):
    ...     x: int
    >>> try:
    ...     Point.model_validate_json('{"x": "1", "y": 2}')
    ... except ValidationError as error:
    ...     first_fault(error)
    'x: Input should be a valid integer (2 faults)'
    """
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(step)[:80] for step in first["loc"]) or "the text"
    return f"{where}: {first['msg']} ({error.error_count()} faults)"


def own_version(otherwise: str = "unknown") -> str:
    """The version that is installed, or `otherwise` where this runs from a source tree that is not."""
    try:
        return importlib.metadata.version("structprune")
    except importlib.metadata.PackageNotFoundError:
        return otherwise
