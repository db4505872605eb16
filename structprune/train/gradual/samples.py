"""What a data set holds at a few places, as digests: whether it is the one that a run began with, at a bounded cost.

A data set may draw: crops, flips, noise. What it draws is no sign of other data, so only what is the same each time
that an item is looked up counts, here and there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch.utils.data import Dataset, default_collate

from structprune.inputs import named_tensors
from structprune.randomness import seeded

__all__ = ["Samples", "differing", "samples_of"]

Samples: TypeAlias = "dict[str, str | None]"
"""By the place in an item ("inputs", "targets", or a part of them): a digest over some items, None where it varies."""

_ITEMS = 8  # that are looked up, evenly spread
_TIMES = (
    3  # that each of them is: drawn alike by chance, a flip say, all of them are once in (1 / 4) ** 8 times
)


def samples_of(data: Dataset[Any] | None) -> Samples:
    """What some items of a data set are: nothing for None. The random state stays as it was."""
    if data is None:
        return {}
    count = len(data)  # type: ignore[arg-type]
    places = sorted({number * count // _ITEMS for number in range(min(_ITEMS, count))} | {count - 1})
    found: list[Mapping[str, str]] = []
    for time in range(_TIMES):
        with seeded(time):
            found.append(_digests([data[place] for place in places]))
    names = dict.fromkeys(name for one in found for name in one)
    return {name: _agreed([one.get(name) for one in found]) for name in names}


def differing(before: Samples, now: Samples) -> list[str]:
    """The places at which two data sets hold other values, where neither draws them.

    >>> differing({"inputs": "a", "targets": None}, {"inputs": "b", "targets": "c"})
    ['inputs']
    """
    fixed = [name for name, value in before.items() if value is not None]
    return [name for name in fixed if now.get(name, "") not in (before[name], None)]


def _digests(items: Sequence[Any]) -> dict[str, str]:
    """Of each part of items, as a loader makes tensors of them, the sha256 (hex) over all of them."""
    sums: dict[str, Any] = {}
    for item in items:
        whole = default_collate([item])
        pair = isinstance(whole, list | tuple) and len(whole) == 2
        for part, tree in zip(("inputs", "targets"), whole, strict=True) if pair else [("items", whole)]:
            for path, tensor in named_tensors(tree):
                digest = sums.setdefault(f"{part} {path}".rstrip(), hashlib.sha256())
                digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return {name: digest.hexdigest() for name, digest in sums.items()}


def _agreed(values: Sequence[str | None]) -> str | None:
    return values[0] if len(set(values)) == 1 else None
