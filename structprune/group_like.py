"""What scoring and choosing both need of a dependency graph's groups; anything of this shape can be scored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["GroupLike", "MemberLike"]


class MemberLike(Protocol):
    @property
    def tensor(self) -> str: ...
    @property
    def dim(self) -> int: ...
    @property
    def index(self) -> NDArray[np.int64]: ...
    @property
    def role(self) -> str: ...
    @property
    def outer(self) -> Sequence[tuple[int, NDArray[np.int64]]]: ...


class GroupLike(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def members(self) -> Sequence[MemberLike]: ...
    @property
    def frozen(self) -> object | None: ...
    @property
    def by(self) -> Sequence[str]: ...
    @property
    def rows(self) -> int: ...
