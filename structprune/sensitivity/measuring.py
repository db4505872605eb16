"""`sensitivity`: each group is cut alone to a few widths, and what comes out is held against the original."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from structprune.arguments import typed
from structprune.errors import InputError
from structprune.graph import DependencyGraph
from structprune.importance import Batch, Criterion, Loss, criterion_name
from structprune.importance.batches import batches_of, iterable_of_batches
from structprune.importance.chance import require_seed
from structprune.observe import Twin
from structprune.outputs import Outputs
from structprune.select import best, scores_of
from structprune.selection.units import Constraints, Unit, build_units, candidate_groups
from structprune.selectors import module_names
from structprune.sensitivity.curves import Curve, Joint, mark_of
from structprune.sensitivity.losses import Meter, loss_name
from structprune.sensitivity.norms import estimate_norms
from structprune.sensitivity.result import Sensitivity
from structprune.sensitivity.weights import digests
from structprune.surgery import apply_plan

__all__ = ["sensitivity"]

_WIDTHS = (0.9, 0.75, 0.5, 0.25, 0.1)
_CENTRES = (0.4, 0.95)  # the mean share that a joint plan keeps of every group
_SPREADS = (0.0, 0.1, 0.25)  # and how far groups are from it
_TRIES = 20

Scores = Mapping[str, NDArray[np.float64]]


@typed
def sensitivity(
    model: nn.Module,
    graph: DependencyGraph,
    scores: Scores,
    data: Iterable[Any],
    *,
    loss: str | Loss = "outputs",
    widths: Iterable[float] = _WIDTHS,
    joint: int = 12,
    norms: bool = True,
    criterion: str | Criterion = "",
    keep: str | nn.Module | Iterable[str | nn.Module] = (),
    only: str | nn.Module | Iterable[str | nn.Module] = (),
    outputs: Outputs = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Sensitivity:
    """Return the loss of the network against the width of each free group, its best channels by ``scores`` kept.

    Groups that must keep the same number of channels are one knob. Each is cut alone, to the shares ``widths`` of its
    channels and to a single one, and ``joint`` random plans cut all of them, from which follows how single losses
    combine (`Sensitivity.forecast`). ``data`` is an iterable of batches, or of pairs (inputs, target), read once and
    kept in memory; a few hundred samples do. ``loss`` is "outputs", the squared error of the outputs relative to the
    original's (0: the same, 1: as wrong as zeros), or "kl", the divergence of the softmax over their last dimension
    from the original's, neither of which needs a target; or "cross_entropy", or a function of (output, target), a mean
    over the batch. With ``norms`` the statistics of batch norms are estimated anew on the data in every network, the
    whole one too, before it is measured; without, networks are measured as the cut leaves them. ``criterion`` is only
    recorded. ``keep``, ``only`` and ``outputs`` are those of `prune`, ``seed`` is that of the random plans, and
    ``progress(done, total)`` is called after each network. The model is only read.

    Li, Kadav, Durdanovic, Samet, Graf: Pruning Filters for Efficient ConvNets, ICLR 2017 (arXiv:1608.08710), section
    4.1, measures layers so; the joint plans, and one knob for what is coupled, are added.

    Raises InputError for data, a loss or shares that do not fit, and where no group is free.

    >>> import structprune as sp
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> graph = sp.trace(net, torch.zeros(1, 4))
    >>> found = sensitivity(net, graph, sp.score(net, graph, "l2"), torch.randn(64, 4))
    >>> [(curve.groups, curve.widths) for curve in found.curves]
    [(('0',), (1, 2, 4, 6, 7, 8))]
    >>> found.forecast({"0": 2}) > found.forecast({"0": 6})
    True
    """
    shares = _shares(widths)
    if joint < 0:
        raise InputError(f"{joint=}: expected a number of plans, from 0 up")
    require_seed(seed)
    with torch.random.fork_rng(devices=[]):  # a loader that shuffles draws
        batches = list(batches_of(model, iterable_of_batches(data, "data")))
    if not batches:
        raise InputError("data gives no sample: it is empty, or an iterator that was read to its end")
    bounds = Constraints(keep=module_names(model, keep), only=module_names(model, only))
    candidates = candidate_groups(graph.groups, bounds)
    flat = {position: np.ones(graph.groups[position].size) for position in candidates}
    units = build_units(graph.groups, flat, candidates, bounds)
    if not units:
        raise InputError("no group of this model can be cut: `structprune inspect` says why")
    given = {graph.groups[n].name: scores_of(graph.groups[n], scores, ragged=True) for n in candidates}
    cutter = _Cutter(model, graph, units, given)
    steps = [cutter.alone(unit, shares) for unit in range(len(units))]
    plans = list(cutter.drawn(joint, np.random.default_rng(seed)))
    meter = Meter(Twin(model), batches, loss, outputs)
    total, done = 1 + sum(map(len, steps)) + len(plans), 0

    def measured(kept: Sequence[int]) -> float:
        nonlocal done
        value = _measured(cutter.network(kept), meter, batches if norms else ())
        done += 1
        if progress is not None:
            progress(done, total)
        return value

    whole = measured(cutter.sizes)
    curves = tuple(
        cutter.curve(unit, [(kept[unit], measured(kept)) for kept in step], whole)
        for unit, step in enumerate(steps)
    )
    return Sensitivity(
        fingerprint=graph.fingerprint,
        operations=graph.operations,
        weights=digests(model),
        criterion=criterion_name(criterion),
        loss=loss_name(loss),
        norms=norms,
        samples=sum(batch.size for batch in batches),
        whole=whole,
        curves=curves,
        joint=tuple(Joint(cutter.counts(kept), measured(kept)) for kept in plans),
    )


def _measured(twin: Twin, meter: Meter, batches: Sequence[Batch]) -> float:
    if batches:
        estimate_norms(twin, batches)
    return meter(twin)


def _shares(widths: Iterable[float]) -> list[float]:
    found = [float(share) for share in widths]
    if not found or not all(0 < share < 1 for share in found):
        raise InputError(f"widths are shares of a group's channels between 0 and 1, got {found}")
    return found


@dataclass(frozen=True)
class _Cutter:
    """Networks with some of their units cut, their best channels kept; counts are one per unit."""

    model: nn.Module
    graph: DependencyGraph
    units: tuple[Unit, ...]
    scores: Scores

    @property
    def sizes(self) -> list[int]:
        return [unit.size for unit in self.units]

    def alone(self, unit: int, shares: Sequence[float]) -> list[list[int]]:
        """The counts with this unit at each of the shares and at one channel, as far as the model's code allows."""
        size = self.units[unit].size
        widths = sorted({1, *(min(max(round(share * size), 1), size - 1) for share in shares)})
        found = [[*self.sizes[:unit], width, *self.sizes[unit + 1 :]] for width in widths]
        allowed = [kept for kept in found if self._keeps_decisions(kept)]
        if not allowed:
            raise InputError(
                f"group {self._names(unit)[0]!r} cannot be cut by itself: the model's code compares its width with "
                "another one. Leave it out, keep=, or name what is to be measured, only="
            )
        return allowed

    def drawn(self, number: int, rng: np.random.Generator) -> Iterator[list[int]]:
        """Random counts over all units: alike, or far from each other; fewer where the model's code forbids many."""
        for _ in range(number):
            for _ in range(_TRIES):
                spread = rng.choice(_SPREADS) * rng.uniform(-1, 1, len(self.units))
                share = np.clip(rng.uniform(*_CENTRES) + spread, 0.0, 1.0)
                kept = np.maximum(np.round(self.sizes * share), 1).astype(int).tolist()
                if kept != self.sizes and self._keeps_decisions(kept):
                    yield kept
                    break

    def network(self, kept: Sequence[int]) -> Twin:
        counts = self.counts(kept)
        keep = {name: best(self.scores[name], count) for name, count in counts.items()}
        return Twin(apply_plan(self.model, self.graph.plan(keep)) if keep else self.model)

    def counts(self, kept: Sequence[int]) -> dict[str, int]:
        """The channels that each group keeps, of those that are cut."""
        return {
            name: count
            for unit, count in enumerate(kept)
            if count < self.units[unit].size
            for name in self._names(unit)
        }

    def curve(self, unit: int, points: Sequence[tuple[int, float]], whole: float) -> Curve:
        names, size = self._names(unit), self.units[unit].size
        widths, losses = zip(*points, (size, whole), strict=True)
        return Curve(names, size, widths, losses, tuple(mark_of(self.scores[name]) for name in names))

    def _names(self, unit: int) -> tuple[str, ...]:
        return tuple(self.graph.groups[position].name for position in self.units[unit].positions)

    def _keeps_decisions(self, kept: Sequence[int]) -> bool:
        counts = self.counts(kept)
        return not self.graph.violations(
            np.array([counts.get(group.name, group.size) for group in self.graph.groups], dtype=np.int64)
        )
