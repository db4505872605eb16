"""What removed channels still said on average, added to their consumers' biases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from structprune.observe import Twin, Use
from structprune.refit.batches import Batches
from structprune.refit.consumers import Consumer, pieces, tapped, targets
from structprune.refit.report import LayerRefit
from structprune.refit.statistics import relative

__all__ = ["fold"]

Index = Mapping[str, dict[int, np.ndarray]]


def fold(
    original: Twin, small: Twin, consumers: Sequence[Consumer], index: Index, batches: Batches
) -> list[LayerRefit]:
    """Add to each consumer's bias what the removed channels gave it on average in the original; a constant channel's
    whole share, then. Where there is no bias, the running mean of the batch norm that follows takes it.

    A consumer whose outputs are further from the original's with it, on held-back data, stays as it is; one without a
    place for a constant is passed over.
    """
    able = [one for one in consumers if one.cut and one.intercept]
    means = _means(original, able, batches)
    shifts = {}
    for one in able:
        if one in means:
            weight = original.parameters[one.parameter]
            gone = one.removed(weight, index[one.parameter])
            share = (gone @ means[one].unsqueeze(-1)).squeeze(-1)
            shifts[one] = share.flatten()[one.kept]
    gaps = _gaps(original, small, able, batches)
    done = []
    for one, shift in shifts.items():
        if one not in gaps:
            continue
        _, constant = one.rounded(one.matrix(), one.constant() + shift)
        result = LayerRefit(one.name, "fold", gaps[one].error(), gaps[one].error(constant - one.constant()))
        if result.taken:
            one.write(None, constant)
        done.append(result)
    return done


def _means(original: Twin, consumers: Sequence[Consumer], batches: Batches) -> dict[Consumer, Tensor]:
    """The mean of the rows that each consumer meets in the original, ``[G, N]``."""
    sums: dict[Consumer, Tensor] = {}
    counts: dict[Consumer, int] = {}

    def take(one: Consumer, use: Use) -> None:
        fitted = batches.fitted(targets(use).shape[1], held=False)
        for first, rows, _ in pieces(use):
            rows = rows[:, : max(fitted - first, 0)]
            sums[one] = sums.get(one, 0.0) + rows.sum(1)
            counts[one] = counts.get(one, 0) + rows.shape[1]

    for batch, held in batches:
        if not held:
            tapped(original, consumers, batch, take)
    return {one: total / counts[one] for one, total in sums.items() if counts[one]}


@dataclass
class _Gaps:
    """Sums over rows: of each output's differences from the original's and of their squares ``[g, o]``, of the squares
    of the original's, and how many rows there are.
    """

    sums: Tensor
    squares: Tensor
    whole: Tensor
    count: int = 0

    def add(self, y: Tensor, given: Tensor) -> None:
        self.sums += (y - given).sum(1)
        self.squares += (y - given).square().sum(1)
        self.whole += y.square().sum()
        self.count += y.shape[1]

    def error(self, shift: Tensor | float = 0.0) -> float:
        """The relative error once ``shift`` is added to what is given."""
        return relative((self.squares - 2 * shift * self.sums + self.count * shift**2).sum(), self.whole)


def _gaps(
    original: Twin, small: Twin, consumers: Sequence[Consumer], batches: Batches
) -> dict[Consumer, _Gaps]:
    """How the outputs of consumers differ from the original's on held-back data."""
    found: dict[Consumer, _Gaps] = {}
    wanted: dict[Consumer, list[Tensor]] = {}

    def keep(one: Consumer, use: Use) -> None:
        y = one.selected(targets(use))
        wanted.setdefault(one, []).append(y[:, batches.fitted(y.shape[1], bool(batches.held)) :].double())

    def compare(one: Consumer, use: Use) -> None:
        if not wanted.get(one):
            return  # values chose: the original used it less often
        y, given = wanted[one].pop(0), targets(use)
        given = given[:, batches.fitted(given.shape[1], bool(batches.held)) :].double()
        if given.shape != y.shape:
            return  # values chose: this use met other rows there
        if one not in found:
            found[one] = _Gaps(torch.zeros_like(one.shift), torch.zeros_like(one.shift), y.new_zeros(()))
        found[one].add(y, given)

    for batch, held in batches:
        if held or not batches.held:
            wanted.clear()
            tapped(original, consumers, batch, keep)
            tapped(small, consumers, batch, compare)
    return found
