"""Penalties on single weights: L1, L2, and an L2 that grows on the channels that are to go."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from structprune.errors import InputError
from structprune.graph import DependencyGraph
from structprune.importance.groups import MemberTensor
from structprune.plan import GroupPlan, PruningPlan
from structprune.train.penalties.base import Penalty
from structprune.train.penalties.channels import Channels
from structprune.train.penalties.weights import (
    Weights,
    decay_,
    half_square_sum,
    magnitude_sum,
    soft_threshold_,
    weights_of,
)

__all__ = ["L1", "L2", "GrowingL2"]


class L1(Penalty[Weights]):
    """The sum of |w| over all weights of channels of free groups, each counted once.

    Tibshirani: Regression Shrinkage and Selection via the Lasso, JRSS B 58 (1996). Its proximal step is soft
    thresholding: single weights become exactly zero, whole channels only where all of theirs do. Raises what `Penalty`
    does.
    """

    def _belongs(self, member: MemberTensor) -> bool:
        return member.is_parameter

    def _parts(self, groups: tuple[Channels, ...]) -> tuple[Weights, ...]:
        return weights_of(groups)

    def _value(self, part: Weights) -> Tensor:
        return magnitude_sum(part)

    def _shrink(self, part: Weights, amount: float) -> None:
        soft_threshold_(part, amount)


class L2(Penalty[Weights]):
    """Half the sum of squares over all weights of channels of free groups, each counted once.

    Hoerl, Kennard: Ridge Regression, Technometrics 12 (1970). Its gradient is strength * weight, as that of an
    optimiser's `weight_decay`; it makes weights small, and none exactly zero. Raises what `Penalty` does.
    """

    def _belongs(self, member: MemberTensor) -> bool:
        return member.is_parameter

    def _parts(self, groups: tuple[Channels, ...]) -> tuple[Weights, ...]:
        return weights_of(groups)

    def _value(self, part: Weights) -> Tensor:
        return half_square_sum(part)

    def _shrink(self, part: Weights, amount: float) -> None:
        decay_(part, amount)


class GrowingL2(Penalty[Weights]):
    """Half the sum of squares over the weights of the channels that a plan removes, at a strength that grows.

    Wang, Qin, Zhang, Fu: Neural Pruning via Growing Regularization, ICLR 2021 (arXiv:2012.09243). The network learns to
    do without these channels while it still has them: their weights come near zero, so that `apply_plan` with the same
    plan loses little. The strength grows in proportion to the steps, up to `strength` after the share `growth` of them,
    and stays there. Weights shrink by about `learning rate * strength` in each step.

    Raises what `Penalty` does, and `InputError` for a plan of another model, or one that removes nothing.
    """

    def __init__(
        self,
        graph: DependencyGraph,
        plan: PruningPlan,
        strength: float = 1.0,
        *,
        growth: float = 0.75,
        proximal: bool = True,
    ) -> None:
        if not isinstance(graph, DependencyGraph) or not isinstance(plan, PruningPlan):
            raise InputError(
                f"GrowingL2 takes a graph and a plan, got a {type(graph).__name__} and a {type(plan).__name__}: what "
                "structprune.trace and structprune.select return"
            )
        if plan.fingerprint != graph.fingerprint:
            raise InputError("the plan is of another model than the graph: select one on this graph")
        self._gone = {group.name: _removed(group) for group in plan.groups if group.count < group.size}
        if not self._gone:
            raise InputError("the plan removes no channels, so there are none to penalise")
        super().__init__(graph, strength, proximal=proximal, growth=growth)
        self.groups = tuple(group for group in graph.groups if group.name in self._gone)

    def describe(self) -> dict[str, Any]:
        """What `Penalty` says, and how many channels of which groups are to go."""
        return {
            **super().describe(),
            "channels": {name: int(gone.sum()) for name, gone in self._gone.items()},
        }

    def _belongs(self, member: MemberTensor) -> bool:
        return member.is_parameter

    def _parts(self, groups: tuple[Channels, ...]) -> tuple[Weights, ...]:
        return weights_of(groups, {one.name: _by_channel(self._gone[one.name], one) for one in groups})

    def _value(self, part: Weights) -> Tensor:
        return half_square_sum(part)

    def _shrink(self, part: Weights, amount: float) -> None:
        decay_(part, amount)


def _removed(group: GroupPlan) -> Tensor:
    """Which channels go: bool `[size]`, or `[rows, size]` where rows keep their own."""
    keep = np.array(group.keep, dtype=np.int64)
    gone = np.ones((*keep.shape[:-1], group.size), dtype=bool)
    np.put_along_axis(gone, keep, False, axis=-1)
    return torch.as_tensor(gone)


def _by_channel(gone: Tensor, channels: Channels) -> Tensor:
    return gone.expand(channels.shape).reshape(-1)
