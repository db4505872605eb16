"""What the original gives where layers are refitted: kept from one pass over the data for as many layers as fit.

The original stays as it is while the cut network changes, so that it need not run anew for each layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from structprune.importance.batches import Batch
from structprune.observe import Twin, Use
from structprune.refit.batches import Batches
from structprune.refit.consumers import Consumer, tapped, targets

__all__ = ["Targets"]


class Targets:
    """The outputs that layers should give, those of a batch at a time; at most ``room`` bytes of them are kept.

    What does not fit is worked out batch by batch when it is asked for.
    """

    def __init__(self, original: Twin, batches: Batches, room: float) -> None:
        self._original, self._batches, self._room = original, batches, room
        self._kept: dict[Consumer, dict[int, list[Tensor]]] = {}  # in the order of the layers, by batch
        self._sizes: dict[Consumer, int] = {}  # bytes of those of the largest batch so far
        self._total = 0

    def gather(self, layers: Sequence[Consumer]) -> None:
        """Keep the outputs of as many of the layers, from the first on, as fit; in one pass over the data."""
        self._total = 0
        self._kept = {one: {} for one in layers[: self._fitting(layers)]}
        for batch, _ in self._batches:
            if not self._kept:
                return
            tapped(self._original, self._kept, batch, partial(self._keep, batch.number))
            while self._fitting(list(self._kept)) < len(self._kept):
                self._drop()

    def holds(self, layers: Sequence[Consumer]) -> bool:
        """Whether the outputs of all these layers are kept."""
        return all(one in self._kept for one in layers)

    def of(self, layers: Sequence[Consumer], batch: Batch) -> dict[Consumer, list[Tensor]]:
        """For each layer its outputs ``[g, r, o]`` on the batch, one for each of its uses; handed out once."""
        found = {one: self._kept[one].pop(batch.number, []) if one in self._kept else [] for one in layers}
        missing = [one for one in layers if one not in self._kept]
        if missing:
            tapped(self._original, missing, batch, lambda one, use: found[one].append(_given(one, use)))
        return found

    def _fitting(self, layers: Sequence[Consumer]) -> int:
        """How many of the layers, from the first on, will fit when all batches are as those seen so far."""
        total = 0
        for number, one in enumerate(layers):
            total += self._sizes.get(one, 0) * len(self._batches)
            if total > self._room:
                return number
        return len(layers)

    def _keep(self, number: int, one: Consumer, use: Use) -> None:
        if one not in self._kept:
            return
        here = self._kept[one].setdefault(number, [])
        here.append(_given(one, use))
        self._total += _bytes(here[-1:])
        self._sizes[one] = max(self._sizes.get(one, 0), _bytes(here))
        while self._total > self._room:
            self._drop()

    def _drop(self) -> None:
        """Give up the last layer that is kept."""
        _, outputs = self._kept.popitem()
        self._total -= sum(map(_bytes, outputs.values()))


def _given(one: Consumer, use: Use) -> Tensor:
    return one.selected(targets(use))


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
