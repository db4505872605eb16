"""What a plan is made of, and what each part is held to: the groups, the attribute edits, kept positions, shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from structprune.errors import PlanError
from structprune.kept import ByRow, Kept, checked_positions

__all__ = ["AttributeEdit", "GroupPlan", "checked_kept", "checked_shares", "require_unique", "size_of"]

_QUANTITIES = ("channels", "file_size", "macs", "params", "peak_memory")


@dataclass(frozen=True)
class GroupPlan:
    """The channels of one group that stay: sorted, unique indices below `size`; else raises PlanError.

    With `by`, the names of other groups, `keep` holds one such tuple for each channel that those groups have together
    before the cut (row-major, in the order of `by`), all of one length: each head keeps its own.
    """

    name: str
    size: int
    keep: tuple[int, ...] | tuple[tuple[int, ...], ...]
    by: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "by", tuple(self.by))
        object.__setattr__(self, "keep", self._rows() if self.by else self._checked(self.keep))

    @property
    def count(self) -> int:
        """How many channels stay (with `by`: in each of those groups' channels)."""
        first = self.keep[0]
        return len(first) if isinstance(first, tuple) else len(self.keep)

    def _rows(self) -> tuple[tuple[int, ...], ...]:
        rows = tuple(self._checked(row) for row in self.keep)
        if len({len(row) for row in rows}) != 1:
            raise PlanError(f"group {self.name!r}: expected rows of one length, got {str(self.keep)[:80]}")
        return rows

    def _checked(self, keep: Any) -> tuple[int, ...]:
        return checked_positions(keep, self.size, f"group {self.name!r}")


@dataclass(frozen=True)
class AttributeEdit:
    """An integer that the model's Python reads, before and after the cut.

    `module` is a qualified module name ("" is the root). `path` leads from it to the integer: an attribute,
    then list or tuple indices, dict keys or attributes, as in `("groups",)` or `("config", "num_heads")`.
    """

    module: str
    path: tuple[str | int, ...]
    old: int
    new: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", tuple(self.path))
        if not self.path or not isinstance(self.path[0], str):
            raise PlanError(f"{self}: the path must begin with an attribute name")
        if any(isinstance(step, str) and step.startswith("__") for step in self.path):
            raise PlanError(
                f"{self}: names that begin with two underscores are Python's own, not a layer's size"
            )

    def __str__(self) -> str:
        path = ".".join(map(str, self.path))
        return f"attribute edit {self.module or '<root>'}: {path} {self.old} -> {self.new}"


def checked_shares(remaining: Mapping[str, float]) -> dict[str, float]:
    for name, share in remaining.items():
        if name not in _QUANTITIES or not 0 < share <= 1:
            raise PlanError(
                f"remaining: expected shares of {', '.join(_QUANTITIES)} in (0, 1], got {name}={share}"
            )
    return {name: float(share) for name, share in remaining.items()}


def checked_kept(
    keep: Kept, shape: tuple[int, ...], dim: int, name: str, done: dict[tuple[int, int], Kept]
) -> Kept:
    size = size_of(shape, dim, name)
    key = (id(keep), size)  # one list serves many tensors: it is checked once, and stays one object
    if key not in done:
        what = f"tensor {name!r} dim {dim}"
        done[key] = (
            keep.checked(size, what) if isinstance(keep, ByRow) else checked_positions(keep, size, what)
        )
    return done[key]


def size_of(shape: tuple[int, ...], dim: int, name: str) -> int:
    if not isinstance(dim, int) or not 0 <= dim < len(shape):
        raise PlanError(
            f"tensor {name!r}: dim {dim} is not one of the {len(shape)} dims of shape {list(shape)}"
        )
    return shape[dim]


def require_unique(kind: str, names: Sequence[str]) -> None:
    if len(set(names)) != len(names):
        twice = sorted(name for name in set(names) if names.count(name) > 1)
        raise PlanError(f"{kind} named twice: {twice[:3]}")
