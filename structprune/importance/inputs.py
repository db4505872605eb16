"""What reaches the weights of each channel: Wanda's criterion, weight times the size of its input."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from structprune.errors import InputError
from structprune.importance.calibration import Calibration, Sums
from structprune.importance.groups import GroupTensors
from structprune.importance.reductions import abs_sum
from structprune.importance.registry import criterion
from structprune.observe import Place, Twin, Use

__all__ = ["contributions", "require_observed", "wanda"]


def contributions(calibration: Calibration) -> dict[str, Tensor]:
    """For each weight that reads channels the root mean square over samples of weight x input, of its shape; where
    no weight reads a group's channels, for those that make them.

    The input of a convolution's weight are the positions that it slides over, summed. Only sums of squared inputs are
    kept: one number for each input of each layer, and for each of a sample at a convolution.
    """
    twin = Twin(calibration.model)
    wanted = set(calibration.readers)
    energies: dict[Place, _Energy] = {}

    def each(use: Use) -> None:
        if use.place.parameter in wanted:
            energies.setdefault(use.place, _Energy(use.weight)).add(use)

    sums = Sums({name: twin.parameters[name] for name in calibration.readers}, real=True)
    for batch in calibration:
        batch.through(twin, each)
        sums.count += batch.size
    require_observed(calibration, twin, {place.parameter for place in energies})
    for place, energy in energies.items():
        found = torch.zeros_like(sums.totals[place.parameter])
        weight = place.seen(energy.weight).flatten(2).abs().to(found.dtype)
        place.put(found, weight.square() * energy.total(place).unsqueeze(1))
        sums.totals[place.parameter] += found
    return {name: mean.sqrt_() for name, mean in sums.means().items()}


class _Energy:
    """The sum of squares of what reaches a weight, swept once for all batches whose samples have one size."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight
        self.swept: Tensor | float = 0.0
        self.squares: Tensor | None = None

    def add(self, use: Use) -> None:
        self.weight, found = use.weight, use.squares().double()
        if self.squares is not None and self.squares.shape != found.shape:
            self.total(use.place)
        self.squares = found if self.squares is None else self.squares.add_(found)

    def total(self, place: Place) -> Tensor:
        """The sum over all rows so far, ``[groups, inputs]``."""
        assert self.squares is not None
        total = self.swept + place.swept(self.squares)
        self.swept, self.squares = total, None
        return total


def require_observed(calibration: Calibration, twin: Twin, observed: set[str]) -> None:
    """Raise InputError for a consumer that the data reached otherwise than by a product that is understood."""
    for name in calibration.consumers:
        if name in twin.unread and name not in observed:
            raise InputError(
                f"the input of {name!r} is not known: it meets the data in the operation {twin.unread[name]!r}, "
                "which is no matrix product or convolution of torch's. Use a criterion that takes the loss instead: "
                "'taylor' or 'fisher'"
            )


@criterion(contributions)
def wanda(group: GroupTensors) -> NDArray[np.float64]:
    """The sum of |weight| x (root mean square of its input) over each channel's consumers: float64 [size].

    Sun, Liu, Bair, Kolter: A Simple and Effective Pruning Approach for Large Language Models, ICLR 2024
    (arXiv:2306.11695): there for single weights; here for a channel, over all weights that read it. Takes inputs alone,
    no labels. Where no weight reads a channel (queries and keys, which are multiplied with each other), over the
    weights that make it.
    """
    return group.total(abs_sum, group.consumers or None, of=_statistic)


def _statistic(weight: Tensor, statistic: Tensor) -> Tensor:
    return statistic
