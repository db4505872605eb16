"""The order in which channels come back: from the least that constraints allow, step by step, to the whole
network.

A *step* widens one unit from one allowed count to the next. A scope is an order of all steps; the budget then
only asks how far along the order one may go. So every scope shares one search, exact counts and one treatment
of ties.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from structprune.selection.contract import Counts, GroupLike
from structprune.selection.units import Unit

__all__ = ["SCOPES", "Steps", "normalised", "ranked_steps", "structure"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Steps:
    """All steps of all units, in some order; steps of one unit always come in order."""

    unit: NDArray[np.int64]  #: [steps] the unit that is widened
    delta: Counts  #: [steps] by how many channels
    end: Counts  #: [steps] to how many channels
    share: Floats  #: [steps] the same as a share of the unit's channels
    value: Floats  #: [steps] mean importance of the channels that the step brings back

    def __getitem__(self, order: NDArray[np.int64] | NDArray[np.bool_]) -> Steps:
        counts = (self.unit[order], self.delta[order], self.end[order])
        return Steps(*counts, self.share[order], self.value[order])


def normalised(scores: Floats, normalize: str) -> Floats:
    """Scores of one group made comparable with other groups': divided by the group's mean magnitude ("mean").

    Raw norms grow with fan-in and kernel size: ranked globally as they are ("none"), whole layers of small
    weights would go first, and layers end at one channel.
    """
    mean = float(np.abs(scores).mean()) if scores.size else 0.0
    return scores / mean if normalize == "mean" and mean > 0 else scores


def ranked_steps(units: Sequence[Unit], groups: Sequence[GroupLike], scope: str) -> Steps:
    """All steps in the order of `scope`, most important first."""
    steps = _all_steps(units)
    return steps[SCOPES[scope](steps, units, groups)]


def _all_steps(units: Sequence[Unit]) -> Steps:
    unit, delta, end, share, value = [], [], [], [], []
    for position, one in enumerate(units):
        ends = np.concatenate([[0.0], np.cumsum(one.curve)])
        widths = np.diff(one.allowed)
        unit.append(np.full(len(widths), position, dtype=np.int64))
        delta.append(widths)
        end.append(one.allowed[1:])
        share.append(one.allowed[1:] / one.size)
        # The running minimum keeps a unit's steps in order where rounding in the sums would swap equal ones.
        value.append(np.minimum.accumulate((ends[one.allowed[1:]] - ends[one.allowed[:-1]]) / widths))
    return Steps(*(np.concatenate(column) for column in (unit, delta, end, share, value)))


def _layer(steps: Steps, units: Sequence[Unit], groups: Sequence[GroupLike]) -> NDArray[np.int64]:
    """The same share everywhere: the narrowest unit is widened first."""
    return np.lexsort((-steps.value, steps.share))


def _global(steps: Steps, units: Sequence[Unit], groups: Sequence[GroupLike]) -> NDArray[np.int64]:
    """By importance alone; equal ones by share, so that ties are spread over the units and empty none of
    them.
    """
    return np.lexsort((steps.share, -steps.value))


def _isomorphic(steps: Steps, units: Sequence[Unit], groups: Sequence[GroupLike]) -> NDArray[np.int64]:
    """By importance among units of one structure; all structures keep the same share of their channels.

    Fang, Ma, Mi, Wang: Isomorphic Pruning for Vision Models, ECCV 2024 (arXiv:2407.04616): scores of
    different sub-structures follow different distributions and cannot be compared.
    """
    classes: dict[Hashable, list[int]] = {}
    for position, unit in enumerate(units):
        classes.setdefault(tuple(structure(groups[group]) for group in unit.positions), []).append(position)
    class_share = np.empty(len(steps.unit))
    for members in classes.values():
        inside = np.flatnonzero(np.isin(steps.unit, members))
        inside = inside[_global(steps[inside], units, groups)]
        kept = sum(units[member].least for member in members) + np.cumsum(steps.delta[inside])
        class_share[inside] = kept / sum(units[member].size for member in members)
    return np.lexsort((steps.share, -steps.value, class_share))


def structure(group: GroupLike) -> Hashable:
    """What a group is made of, whatever its width: how often each kind of tensor takes part, by which dim and
    role.
    """
    kinds = sorted((member.role, member.tensor.rpartition(".")[2], member.dim) for member in group.members)
    return tuple(kinds)


Scope = Callable[[Steps, Sequence[Unit], Sequence[GroupLike]], NDArray[np.int64]]
SCOPES: MappingProxyType[str, Scope] = MappingProxyType(
    {"layer": _layer, "global": _global, "isomorphic": _isomorphic}
)
