"""`Sensitivity`: what was measured, as plain data on disk and in memory, and the forecast that follows from it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import nn

from structprune.archive import write_text
from structprune.arguments import typed
from structprune.errors import InputError, StorageError
from structprune.plan import PruningPlan
from structprune.selection.contract import GraphLike
from structprune.sensitivity import records
from structprune.sensitivity.combining import Combination, fitted
from structprune.sensitivity.curves import Curve, Joint, mark_of
from structprune.sensitivity.losses import LOSSES
from structprune.sensitivity.weights import digests
from structprune.tensors import fingerprint

__all__ = ["Sensitivity"]

_ANEW = "measure it anew with structprune.sensitivity(model, graph, scores, data)"
_CLOSE = 1e-3  # relative: rounding is far below, a step of training far above


@dataclass(frozen=True)
class Sensitivity:
    """The loss of a network against the width of each of its groups, and a forecast of it for any plan.

    ``whole`` is the loss of the network that is not cut, measured as the others are; ``curves`` has one knob for all
    groups that keep the same number of channels; ``joint`` are the plans over all knobs from which follows how their
    rises combine. ``norms`` says whether batch norms were estimated anew in each network before it was measured.
    ``fingerprint`` is that of the traced network, ``operations`` the digest of what it does to its inputs, ``weights``
    has one of the values of each tensor, ``criterion`` is the name of the scores by which channels were kept.
    """

    fingerprint: str
    operations: str
    weights: Mapping[str, str]
    criterion: str
    loss: str
    norms: bool
    samples: int
    whole: float
    curves: tuple[Curve, ...]
    joint: tuple[Joint, ...] = ()

    @typed
    def forecast(self, plan: PruningPlan | Mapping[str, int]) -> float:
        """The loss that a plan, or channel counts by group name (the others whole), is expected to have.

        Raises InputError for a plan of another network, for counts that are no integers, and for a cut of a group that
        was not measured.
        """
        if isinstance(plan, PruningPlan):
            self._require_network(plan.fingerprint)
            plan = {group.name: group.count for group in plan.groups if group.count < group.size}
        return self.whole + float(self.combination(self._rises([plan]))[0])

    def require(self, model: nn.Module) -> None:
        """Pass where it was measured on this model: the same layers and widths, and the same values in all parameters
        and persistent buffers, whatever the device. `prune` and `sweep` ask it; `select`, which has no model, does not.

        Raises InputError, which names what differs; a dtype that rounds the values makes others of them.
        """
        self._require_network(fingerprint(model))
        present = digests(model)
        other = [name for name, digest in present.items() if self.weights.get(name) != digest]
        if other:
            more = f" and {len(other) - 1} more of {len(present)} tensors" if len(other) > 1 else ""
            raise InputError(
                f"the sensitivity is stale: {other[0]!r}{more} had other values when it was measured. Load the weights "
                f"that it was measured with, or {_ANEW}"
            )

    @cached_property
    def combination(self) -> Combination:
        """How the rises of single knobs combine, fitted to the joint plans."""
        measured = np.array([max(one.loss - self.whole, 0.0) for one in self.joint])
        return fitted(self._rises([one.counts for one in self.joint]), measured)

    @cached_property
    def agreement(self) -> float:
        """Spearman's rank correlation of forecast and measured loss over the joint plans, to which four numbers are
        fitted; NaN where there are fewer than three plans, or all are alike.
        """
        forecasts, losses = [self.forecast(one.counts) for one in self.joint], [o.loss for o in self.joint]
        if len(set(forecasts)) < 3 or len(set(losses)) < 3:
            return float("nan")
        return float(spearmanr(forecasts, losses).statistic)

    def worths(
        self, graph: GraphLike, scores: Mapping[str, NDArray[np.float64]], candidates: Sequence[int]
    ) -> dict[int, NDArray[np.float64]]:
        """What each channel of the candidates is worth, best first, float64 ``[size]`` by position in graph.groups.

        Over all groups the sum of what is kept is the greater, the less the forecast is. Raises InputError where the
        graph is of another network, or of one that does something else, scores are not those that were measured with,
        or a group was not measured.
        """
        self._require_network(graph.fingerprint)
        if graph.operations != self.operations:
            raise InputError(
                "the sensitivity was measured on a network of the same layers and widths whose code does something "
                f"else, another activation or constant say: {_ANEW}"
            )
        found = {}
        for position in candidates:
            group = graph.groups[position]
            curve = self._curve(group.name)
            self._require_scores(curve, group.name, scores[group.name])
            lost = self.combination.terms(curve.rises) / len(curve.groups)
            found[position] = np.append(0.0, -np.diff(lost))
        return found

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as JSON, over what the file held; raises StorageError where that cannot be, the old file kept."""
        write_text(path, self.to_json())

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Sensitivity:
        """What `save` wrote; raises StorageError for a file that is missing, damaged, or something else."""
        try:
            return Sensitivity.from_json(Path(path).read_bytes())
        except OSError as error:
            raise StorageError(f"{path} cannot be read: {error.strerror}") from error
        except StorageError as error:
            raise StorageError(f"{path}: {error}") from None

    def to_json(self) -> str:
        """The JSON text of it, the same for equal ones."""
        return records.write(self)

    @staticmethod
    def from_json(text: str | bytes) -> Sensitivity:
        """What `to_json` wrote; raises StorageError for text of any other form or schema version."""
        given = records.read(text)
        try:
            curves = tuple(Curve(**vars(one)) for one in given.pop("curves"))
            joint = tuple(Joint(**vars(one)) for one in given.pop("joint"))
            found = Sensitivity(**given, curves=curves, joint=joint)
            found._rises([one.counts for one in joint])
            found._require_losses()
        except InputError as error:
            raise StorageError(f"not a sensitivity: {error}") from None
        return found

    def __str__(self) -> str:
        shown = [f"{one.name}: {one.rises[one.size // 2 - 1]:.3g}" for one in self.curves[:20]]
        more = f" and {len(self.curves) - 20} more" if len(self.curves) > 20 else ""
        return (
            f"{self.loss} {self.whole:.3g} on {self.samples} samples; with half of its channels each raises it by "
            f"{', '.join(shown)}{more}"
        )

    def _rises(self, plans: Sequence[Mapping[str, int]]) -> NDArray[np.float64]:
        """What each knob alone raises the loss by: ``[plans, knobs]``."""
        knobs = {name: knob for knob, curve in enumerate(self.curves) for name in curve.groups}
        found = np.zeros((len(plans), len(self.curves)))
        for row, counts in enumerate(plans):
            for name, count in counts.items():
                curve = self._curve(name)
                if isinstance(count, bool) or not 1 <= count <= curve.size:
                    raise InputError(f"group {name!r} has {curve.size} channels and cannot keep {count}")
                found[row, knobs[name]] = curve.rises[count - 1]
        return found

    def _require_losses(self) -> None:
        curves = [loss for curve in self.curves for loss in curve.losses]
        least = min([self.whole, *curves, *(one.loss for one in self.joint)])
        if self.loss in LOSSES and least < 0:
            raise InputError(f"a loss of {self.loss!r} is {least:g}, and it cannot be negative")

    def _curve(self, name: str) -> Curve:
        if name not in self._by_group:
            raise InputError(
                f"the sensitivity to group {name!r} was not measured: measure it with the keep= and only= that are "
                "meant here"
            )
        return self._by_group[name]

    @cached_property
    def _by_group(self) -> dict[str, Curve]:
        return {name: curve for curve in self.curves for name in curve.groups}

    def _require_network(self, fingerprint: str) -> None:
        if fingerprint != self.fingerprint:
            raise InputError(f"the sensitivity was measured on a network of other layers or widths: {_ANEW}")

    def _require_scores(self, curve: Curve, name: str, scores: NDArray[np.float64]) -> None:
        marked, present = curve.marks[curve.groups.index(name)], mark_of(scores)
        if not np.allclose(present, marked, rtol=_CLOSE, atol=1e-12):
            by = f" (by {self.criterion})" if self.criterion else ""
            raise InputError(
                f"the sensitivity is stale: group {name!r} has other scores now than when it was measured{by}. "
                "Score by the same criterion and weights, or measure it anew"
            )
