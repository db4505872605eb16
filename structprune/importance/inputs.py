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
    """For each weight the root mean square over samples of weight x input, of each parameter's shape.

    The input of a convolution's weight are the positions that it slides over, summed. Only sums of squared inputs are
    kept: one number for each input of each layer.
    """
    twin = Twin(calibration.model)
    wanted = set(calibration.parameters)
    squares: dict[Place, Tensor] = {}
    weights: dict[Place, Tensor] = {}

    def each(use: Use) -> None:
        if use.place.parameter in wanted:
            found = use.square_sums().double()
            known = squares.get(use.place)
            squares[use.place] = found if known is None else known.add_(found)
            weights[use.place] = use.weight

    sums = Sums({name: twin.parameters[name] for name in calibration.parameters}, real=True)
    for batch in calibration:
        batch.through(twin, each)
        sums.count += batch.size
    require_observed(calibration, twin, {place.parameter for place in squares})
    for place, total in squares.items():
        energy = torch.zeros_like(sums.totals[place.parameter])
        weight = place.seen(weights[place]).flatten(2).abs().to(energy.dtype)
        place.put(energy, weight.square() * total.unsqueeze(1))
        sums.totals[place.parameter] += energy
    return {name: mean.sqrt_() for name, mean in sums.means().items()}


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
