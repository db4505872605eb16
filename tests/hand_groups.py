"""Groups written by hand, for tests that must not depend on a trace."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Member:
    tensor: str
    dim: int
    index: np.ndarray
    role: str
    outer: tuple[tuple[int, np.ndarray], ...] = ()


@dataclass(frozen=True)
class Group:
    name: str
    size: int
    members: tuple[Member, ...] = ()
    frozen: object | None = None
    tie: int = -1
    primary: bool = True
    by: tuple[str, ...] = ()
    rows: int = 1
    kind: str = "conv"
    rivals: tuple[str, ...] = ()
