"""A sensitivity as text: strict JSON of one schema version, bounded before anything is worked out from it."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import ConfigDict, Field, ValidationError

from structprune.errors import StorageError
from structprune.strict_json import StrictRecord, first_fault, own_version

if TYPE_CHECKING:
    from structprune.sensitivity.result import Sensitivity

__all__ = ["read", "write"]

SCHEMA_VERSION = 2
_Size = Annotated[int, Field(ge=1, le=2**24)]
_MOST = 2**24  # channels of all knobs together: a curve has a number for each
_Text = Annotated[str, Field(max_length=1000)]


class _Curve(StrictRecord):
    groups: tuple[_Text, ...]
    size: _Size
    widths: tuple[_Size, ...]
    losses: tuple[float, ...]
    marks: tuple[tuple[float, float, float], ...]


class _Joint(StrictRecord):
    counts: dict[str, _Size]
    loss: float


class _File(StrictRecord):
    schema_version: int
    structprune_version: str
    fingerprint: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    operations: Annotated[str, Field(pattern="^([0-9a-f]{64})?$")]
    weights: dict[_Text, Annotated[str, Field(pattern="^[0-9a-f]{16}$")]]
    criterion: _Text
    loss: _Text
    norms: bool
    samples: Annotated[int, Field(ge=1)]
    whole: float
    curves: tuple[_Curve, ...]
    joint: tuple[_Joint, ...]


class _Header(StrictRecord):
    model_config = ConfigDict(extra="ignore")
    schema_version: int


def write(found: Sensitivity) -> str:
    """The JSON text that `read` accepts."""
    body = {"schema_version": SCHEMA_VERSION, "structprune_version": own_version(), **asdict(found)}
    return json.dumps(body, indent=1, allow_nan=False) + "\n"


def read(text: str | bytes) -> dict[str, Any]:
    """The fields of a text of this schema version; raises StorageError for any other text."""
    try:
        version = _Header.model_validate_json(text).schema_version
        if version != SCHEMA_VERSION:
            raise StorageError(
                f"the sensitivity has schema version {version}, this one reads {SCHEMA_VERSION}: measure it anew"
            )
        fields = dict(_File.model_validate_json(text))
    except ValidationError as error:
        raise StorageError(f"not a sensitivity: {first_fault(error)}") from None
    if sum(curve.size for curve in fields["curves"]) > _MOST:
        raise StorageError(f"not a sensitivity: its curves have more than {_MOST} channels together")
    return {
        name: value for name, value in fields.items() if name not in ("schema_version", "structprune_version")
    }
