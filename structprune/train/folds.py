"""Folds of a data set, by scikit-learn's splitters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import Dataset

from structprune.errors import InputError

__all__ = ["Fold", "Splitter", "folds_of"]

Fold = tuple[np.ndarray, np.ndarray]


class Splitter(Protocol):
    """What scikit-learn's splitters have in common (KFold, StratifiedKFold, ShuffleSplit, ...)."""

    def split(self, X: Any, y: Any = None, groups: Any = None) -> Iterator[tuple[Any, Any]]: ...


def folds_of(data: Dataset[Any], folds: int | Splitter | Iterable[tuple[Any, Any]], seed: int) -> list[Fold]:
    """The indices to train on and those held out, of each fold.

    A number makes as many folds, shuffled by `seed`: stratified where all targets are single integers. Raises
    InputError where the data cannot be divided so, or scikit-learn is missing.
    """
    try:
        from sklearn.model_selection import KFold, StratifiedKFold, check_cv
    except ImportError as error:
        raise InputError(
            "cross-validation needs scikit-learn; install it with: pip install structprune[train]"
        ) from error
    if not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
        raise InputError(f"data must be a data set with a length, whose items can be looked up: {data!r}")
    classes = _classes(data)
    places = np.arange(len(data))
    try:
        if isinstance(folds, int):
            kind = KFold if classes is None else StratifiedKFold
            folds = kind(folds, shuffle=True, random_state=seed)
        parts = list(check_cv(folds).split(places, classes))
    except ValueError as error:
        raise InputError(f"the data cannot be divided into these folds: {error}") from error
    found = [(np.asarray(inside), np.asarray(outside)) for inside, outside in parts]
    if len(found) < 2 or any(not len(inside) or not len(outside) for inside, outside in found):
        raise InputError(f"{folds!r} gives {len(found)} folds; at least two are needed, none of them empty")
    return found


def _classes(data: Dataset[Any]) -> np.ndarray | None:
    """The class of each item, int64; None where a target is anything but one integer."""
    found = []
    for place in range(len(data)):  # type: ignore[arg-type]
        target = torch.as_tensor(data[place][1])
        if target.numel() != 1 or target.is_floating_point() or target.is_complex():
            return None
        found.append(int(target))
    return np.array(found, dtype=np.int64)
