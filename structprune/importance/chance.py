"""Chance as importance: the baseline that every other criterion has to beat."""

from __future__ import annotations

import zlib
from numbers import Integral

import numpy as np
from numpy.typing import NDArray

from structprune.errors import InputError
from structprune.importance.groups import GroupTensors
from structprune.importance.registry import criterion

__all__ = ["random", "require_seed"]


def require_seed(seed: object) -> None:
    """Raise InputError for what is no integer from 0 up."""
    if not isinstance(seed, Integral) or seed < 0:
        raise InputError(f"{seed=}: expected an integer from 0 up")


@criterion()
def random(group: GroupTensors, *, seed: int = 0) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1) that depend on `seed` and the group's name alone: float64 `shape`.

    Mittal, Bhardwaj, Khapra, Ravindran: Recovering from Random Pruning, WACV 2018 (arXiv:1801.10447): after
    fine-tuning, random choice comes close to many criteria, so a table without it shows little.
    """
    require_seed(seed)
    return np.random.default_rng([seed, zlib.crc32(group.name.encode())]).random(group.shape)
