"""What selection needs from a dependency graph; anything of this shape can be selected on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from structprune import group_like
from structprune.budget import Budget
from structprune.plan import Keep, PruningPlan

__all__ = [
    "Counts",
    "FrozenLike",
    "GraphLike",
    "GroupLike",
    "Prices",
    "ViolationLike",
    "Worths",
]

Counts = NDArray[np.int64]
"""Channels kept, one number per group of the graph (frozen groups at their size)."""


@dataclass(frozen=True)
class Prices:
    """What networks cost on a runtime, as shares of the whole one, and the widths at which they are cheap.

    ``share`` takes counts ``[choices, groups]`` and gives ``[choices]``; ``limit`` is the most that a choice may take;
    ``alignment`` is by group name.
    """

    share: Callable[[Counts], NDArray[np.float64]]
    limit: float
    alignment: Mapping[str, int]


class FrozenLike(Protocol):
    @property
    def reason(self) -> str: ...
    @property
    def where(self) -> str: ...


class GroupLike(group_like.GroupLike, Protocol):
    @property
    def frozen(self) -> FrozenLike | None: ...
    @property
    def tie(self) -> int: ...
    @property
    def primary(self) -> bool: ...
    @property
    def kind(self) -> str: ...
    @property
    def rivals(self) -> Sequence[str]: ...


class ViolationLike(Protocol):
    @property
    def groups(self) -> Sequence[int]: ...
    @property
    def reason(self) -> str: ...


class GraphLike(Protocol):
    @property
    def fingerprint(self) -> str: ...
    @property
    def operations(self) -> str: ...
    @property
    def groups(self) -> Sequence[GroupLike]: ...
    def price(self, quantity: str, counts: Counts) -> float: ...
    def levels(self, quantity: str, counts: Counts) -> NDArray[np.float64]:
        """For counts ``[choices, groups]``, figures ``[choices, parts]``: the price is the largest of each row."""
        ...

    def governed(self, quantity: str) -> NDArray[np.float64]: ...
    def violations(self, counts: Counts) -> Sequence[ViolationLike]: ...
    def plan(
        self,
        keep: Mapping[str, Keep],
        *,
        budget: Budget | None = None,
        criterion: str = "",
        scope: str = "",
    ) -> PruningPlan: ...


class Worths(Protocol):
    """Says what channels are worth by something else than their scores: by the loss that a network has without them."""

    def worths(
        self, graph: GraphLike, scores: Mapping[str, NDArray[np.float64]], candidates: Sequence[int]
    ) -> dict[int, NDArray[np.float64]]:
        """What each channel of the groups at these positions is worth, best first: float64 ``[size]``."""
        ...
