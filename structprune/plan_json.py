"""Plans as text: strict JSON, kept positions as half-open ranges, bounded before a range is expanded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from itertools import groupby, pairwise
from typing import Annotated

import numpy as np
from pydantic import ConfigDict, Field, ValidationError

from structprune.errors import PlanError
from structprune.strict_json import StrictRecord, first_fault, own_version

__all__ = ["Expander", "GroupRecord", "PlanRecord", "digest", "ranges", "read", "runs", "write"]

SCHEMA_VERSION = 3
READ_VERSIONS = (1, 2, 3)  # 1 has no choices by row, 2 no budget of several quantities; otherwise the same
MAX_POSITIONS = 2**23  # of all distinct kept lists of one text together: about 300 MB once expanded

Ranges = list[tuple[int, int]]


class GroupRecord(StrictRecord):
    name: str
    size: int
    keep: Ranges
    by: list[str] = Field(default_factory=list)
    rows: list[Ranges] = Field(default_factory=list)


class RowsRecord(StrictRecord):
    by: list[int]
    rows: list[Ranges]
    row: list[tuple[int, int]]


Dim = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]?)$")]


class TensorRecord(StrictRecord):
    shape: list[int]
    keep: dict[Dim, Ranges]
    by_row: dict[Dim, RowsRecord] = Field(default_factory=dict)


class EditRecord(StrictRecord):
    module: str
    path: list[str | int]
    old: int
    new: int


class BudgetRecord(StrictRecord):
    channels: float | None = None
    params: float | None = None
    macs: float | None = None
    latency: float | None = None
    latency_ms: float | None = None
    throughput: float | None = None
    peak_memory: float | None = None
    file_size: float | None = None
    runtime: Annotated[str, Field(max_length=100)] | None = None
    threads: int | None = None
    batch: int | None = None
    dtype: Annotated[str, Field(max_length=20)] | None = None
    provider_options: Annotated[dict[str, str], Field(max_length=100)] | None = None


class PlanRecord(StrictRecord):
    """One plan as its text says it: well-typed, not yet checked against itself."""

    fingerprint: str
    groups: list[GroupRecord]
    tensors: dict[str, TensorRecord]
    attributes: list[EditRecord]
    budget: BudgetRecord | None
    criterion: str
    scope: str
    remaining: dict[
        Annotated[str, Field(pattern="^(channels|params|macs|peak_memory|file_size)$")], float
    ] = Field(default_factory=dict)


class _Header(StrictRecord):
    model_config = ConfigDict(extra="ignore")
    schema_version: int
    structprune_version: str


class _File(StrictRecord):
    schema_version: int
    structprune_version: str
    plans: list[PlanRecord] = Field(min_length=1)


def read(text: str | bytes) -> list[PlanRecord]:
    """The plans of a text of this schema version; raises PlanError for any other text."""
    try:
        header = _Header.model_validate_json(text)
        if header.schema_version not in READ_VERSIONS:
            raise PlanError(
                f"the plan has schema version {header.schema_version} (written by structprune "
                f"{header.structprune_version[:40]!r}); this structprune reads versions {READ_VERSIONS}: "
                "install a structprune that fits, or prune again"
            )
        return _File.model_validate_json(text).plans
    except ValidationError as error:
        raise PlanError(f"not a pruning plan: {first_fault(error)}") from None


def write(records: Sequence[dict[str, object]]) -> str:
    """The JSON text that `read` accepts, the same for equal records."""
    body = {"schema_version": SCHEMA_VERSION, "structprune_version": own_version(), "plans": records}
    return json.dumps(body, sort_keys=True) + "\n"


def digest(records: Sequence[dict[str, object]]) -> str:
    """The sha256 (hex) of the records, free of layout and of the version that wrote them."""
    return hashlib.sha256(json.dumps(records, sort_keys=True).encode()).hexdigest()


def ranges(keep: Sequence[int]) -> list[list[int]]:
    """The shortest half-open ranges of sorted positions.

    >>> ranges((0, 1, 2, 5))
    [[0, 3], [5, 6]]
    """
    positions = np.asarray(keep, dtype=np.int64)
    breaks = np.flatnonzero(np.diff(positions) != 1)
    starts = positions[np.concatenate(([0], breaks + 1))]
    stops = positions[np.concatenate((breaks, [len(positions) - 1]))] + 1
    return [[int(start), int(stop)] for start, stop in zip(starts, stops, strict=True)]


def runs(values: Sequence[int]) -> list[list[int]]:
    """Each value with how often it comes in a row.

    >>> runs((0, 0, 2, 0))
    [[0, 2], [2, 1], [0, 1]]
    """
    return [[value, len(list(same))] for value, same in groupby(values)]


class Expander:
    """Turns ranges into positions; equal lists share one tuple, all distinct ones together are bounded."""

    def __init__(self) -> None:
        self._known: dict[tuple[tuple[int, int], ...], tuple[int, ...]] = {}
        self._total = 0

    def __call__(self, ranges: Ranges, size: int, what: str, ordered: bool = True) -> tuple[int, ...]:
        """The positions of the ranges within a dimension of `size`; raises PlanError where they leave it."""
        key = tuple(ranges)
        for start, stop in key:
            if not 0 <= start < stop <= size:
                raise PlanError(f"{what}: range [{start}, {stop}] is empty or leaves 0..{size}")
        for (_, stop), (start, _) in pairwise(key):
            if ordered and start < stop:
                raise PlanError(f"{what}: ranges must ascend without overlap; {start} comes after {stop - 1}")
        if key not in self._known:
            self._count(sum(stop - start for start, stop in key), what)
            self._known[key] = tuple(i for start, stop in key for i in range(start, stop))
        return self._known[key]

    def runs(self, runs: Sequence[tuple[int, int]], what: str) -> tuple[int, ...]:
        """The values of `runs`, each as often as it says."""
        if any(times < 1 for _, times in runs):
            raise PlanError(f"{what}: a row is named less than once")
        self._count(sum(times for _, times in runs), what)
        return tuple(value for value, times in runs for _ in range(times))

    def _count(self, positions: int, what: str) -> None:
        self._total += positions
        if self._total > MAX_POSITIONS:
            raise PlanError(f"{what}: the plan expands to more than {MAX_POSITIONS} positions; refused")
