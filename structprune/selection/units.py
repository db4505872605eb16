"""Units: the groups that must keep the same number of channels, and the numbers that all constraints allow
them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from structprune.errors import InputError
from structprune.selection.contract import Counts, GroupLike
from structprune.selection.matching import kept_groups, only_groups, per_group

__all__ = ["Constraints", "Unit", "build_units", "candidate_groups", "reachable"]

_ROUNDING = 1e-9  # 0.29 * 100 is 28.999999999999996, and means 29


@dataclass(frozen=True)
class Constraints:
    """What the caller asks for besides the budget."""

    multiple_of: int = 1
    min_channels: int | Mapping[str, int] = 1
    max_pruned: float | Mapping[str, float] = 1.0
    keep: str | Iterable[str] = ()
    only: str | Iterable[str] = ()
    alignment: Mapping[str, int] = field(default_factory=dict)  #: by group name: learned, not asked for

    def __post_init__(self) -> None:
        if (
            isinstance(self.multiple_of, bool)
            or not isinstance(self.multiple_of, int)
            or self.multiple_of < 1
        ):
            raise InputError(f"multiple_of must be an integer of at least 1, got {self.multiple_of!r}")
        for least in _values(self.min_channels):
            if isinstance(least, bool) or not isinstance(least, int) or least < 1:
                raise InputError(f"min_channels must be an integer of at least 1, got {least!r}")
        for share in _values(self.max_pruned):
            if not isinstance(share, (int, float)) or not 0 <= share <= 1:
                raise InputError(f"max_pruned is the largest share removed, between 0 and 1, got {share!r}")

    def __str__(self) -> str:
        """The constraints that differ from the defaults: 'multiple_of=8, keep=stem'."""
        named = [
            (name, value)
            for name, value, default in (
                ("multiple_of", self.multiple_of, 1),
                ("min_channels", self.min_channels, 1),
                ("max_pruned", self.max_pruned, 1.0),
                ("keep", self.keep, ()),
                ("only", self.only, ()),
            )
            if value != default and value != []
        ]
        return ", ".join(f"{name}={value}" for name, value in named)


@dataclass(frozen=True)
class Unit:
    """Groups that keep the same number of channels."""

    positions: tuple[int, ...]  #: in graph.groups
    size: int
    allowed: Counts  #: ascending; the last one is `size`
    curve: NDArray[
        np.float64
    ]  #: [size]: importance of the best channel, the second best, ...; mean over the groups

    @property
    def least(self) -> int:
        return int(self.allowed[0])


def build_units(
    groups: Sequence[GroupLike],
    curves: Mapping[int, NDArray[np.float64]],
    candidates: Iterable[int],
    bounds: Constraints,
) -> tuple[Unit, ...]:
    """The units that can be cut: tie classes all of whose groups are candidates and have more than one
    allowed count.

    A class with one group that stays whole stays whole, since its groups keep equal counts.
    """
    chosen = set(candidates)
    classes: dict[int, list[int]] = {}
    for position, group in enumerate(groups):
        classes.setdefault(group.tie, []).append(position)
    least = _least(groups, bounds)
    units = []
    for positions in classes.values():
        if chosen.issuperset(positions):
            size = groups[positions[0]].size
            aligned = (
                reachable(bounds.alignment.get(groups[position].name, 1), size) for position in positions
            )
            multiple = math.lcm(bounds.multiple_of, *aligned)
            allowed = _allowed(size, max(least[position] for position in positions), multiple)
            curve = np.mean([curves[position] for position in positions], axis=0)
            units.append(Unit(tuple(positions), size, allowed, curve))
    return tuple(unit for unit in units if len(unit.allowed) > 1)


def candidate_groups(groups: Sequence[GroupLike], bounds: Constraints) -> list[int]:
    """Positions of the free groups that `keep` and `only` leave to be cut."""
    kept = kept_groups(groups, bounds.keep)
    only = only_groups(groups, bounds.only)
    return [
        position
        for position, group in enumerate(groups)
        if group.frozen is None and position in only and position not in kept
    ]


def _least(groups: Sequence[GroupLike], bounds: Constraints) -> list[int]:
    """The fewest channels that each group may keep."""
    fewest = per_group("min_channels", bounds.min_channels, groups, 1)
    removable = per_group("max_pruned", bounds.max_pruned, groups, 1.0)
    return [
        min(group.size, max(few, group.size - int(group.size * share + _ROUNDING)))
        for group, few, share in zip(groups, fewest, removable, strict=True)
    ]


def reachable(alignment: int, size: int) -> int:
    """The alignment, halved until a group of this size has a choice at all."""
    while alignment > 1 and alignment >= size:
        alignment //= 2
    return alignment


def _allowed(size: int, least: int, multiple_of: int) -> Counts:
    """Multiples from `least` up, and the original size: a group is aligned or left whole."""
    first = -(-least // multiple_of) * multiple_of
    return np.unique(np.append(np.arange(first, size, multiple_of, dtype=np.int64), size))


def _values(value: object) -> Iterable[object]:
    return value.values() if isinstance(value, Mapping) else (value,)
