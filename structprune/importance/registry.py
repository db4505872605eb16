"""The table of criteria: which name stands for which function, and what it collects from data beforehand.

A criterion is a file: a statistic that streams through the data where one is needed, and a pure function of a group
and what was collected, under the decorator `criterion`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from numpy.typing import ArrayLike

__all__ = [
    "CRITERIA",
    "Collector",
    "Criterion",
    "Needs",
    "criterion",
    "draws",
    "is_ours",
    "needs_of",
    "options_of",
]

Criterion = Callable[..., ArrayLike | torch.Tensor]
"""`criterion(group: GroupTensors, **options)` -> one number per channel, higher is more important."""

Collector = Callable[..., Mapping[str, Any]]
"""`collect(calibration: Calibration, **options)` -> a statistic for each parameter, by its name."""

_Function = TypeVar("_Function", bound=Criterion)


@dataclass(frozen=True)
class Needs:
    """What a criterion asks for beside the model: the statistic it collects, and whether that takes labels."""

    collect: Collector
    labels: bool


_CRITERIA: dict[str, Criterion] = {}
_NEEDS: dict[Criterion, Needs] = {}
CRITERIA: Mapping[str, Criterion] = MappingProxyType(_CRITERIA)
"""The criteria by name, in the order in which they were registered."""


def criterion(collect: Collector | None = None, *, labels: bool = False) -> Callable[[_Function], _Function]:
    """Register a function as the criterion of its name; `collect` makes its statistics, with `labels` from a loss.

    Raises ValueError for a name that is taken.
    """

    def register(function: _Function) -> _Function:
        name = function.__name__
        if name in _CRITERIA:
            raise ValueError(f"criterion {name!r} is registered already: {_CRITERIA[name].__module__}")
        _CRITERIA[name] = function
        if collect is not None:
            _NEEDS[function] = Needs(collect, labels)
        return function

    return register


def is_ours(function: Criterion) -> bool:
    """Whether a criterion is one of this package's own, which write into nothing that they are given."""
    return str(getattr(function, "__module__", "")).startswith(f"{__package__}.")


def needs_of(function: Criterion) -> Needs | None:
    """What a criterion collects from data; None where it reads the model alone."""
    try:
        return _NEEDS.get(function)
    except TypeError:  # a callable without a hash
        return None


def options_of(function: Criterion) -> tuple[set[str], set[str]]:
    """The names of the options that a criterion takes, and of those that what it collects takes."""
    needs = needs_of(function)
    asked = [function] if needs is None else [function, needs.collect]
    named = [set(list(inspect.signature(one).parameters)[1:]) for one in asked]
    return named[0], named[1] if len(named) > 1 else set()


def draws(criterion: str) -> bool:
    """Whether a criterion of this name draws random numbers, and so takes a seed."""
    return criterion in CRITERIA and any("seed" in names for names in options_of(CRITERIA[criterion]))
