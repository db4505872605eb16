"""`select`: from scores and a budget to the channels that stay.

Widths first, channels second: the constraints give every group the counts that it may keep, the scope puts
all channels in one order, the budget says how far along it one may go, and each group keeps its best
channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches

import numpy as np
from numpy.typing import NDArray

from structprune.arguments import typed
from structprune.budget import Budget
from structprune.errors import InputError
from structprune.plan import Keep, PruningPlan
from structprune.selection.budgeting import VALUE, Task
from structprune.selection.comparisons import counts_in_order
from structprune.selection.contract import Counts, GraphLike, GroupLike, Prices, Worths
from structprune.selection.ranking import SCOPES, normalised
from structprune.selection.units import Constraints, Unit, build_units, candidate_groups

__all__ = ["best", "kept_importance", "scores_of", "select", "value_units"]

Scores = Mapping[str, NDArray[np.float64]]
_FAINT = 1e-6  # of a group's mean: what a channel counts at least, whatever its score


@typed
def select(
    graph: GraphLike,
    scores: Scores,
    budget: Budget,
    scope: str | None = None,
    multiple_of: int | None = None,
    min_channels: int | Mapping[str, int] = 1,
    max_pruned: float | Mapping[str, float] = 1.0,
    keep: str | Iterable[str] = (),
    only: str | Iterable[str] = (),
    *,
    normalize: str = "mean",
    original: float | Mapping[str, float] | None = None,
    criterion: str = "",
    ragged: bool = True,
    prices: Prices | None = None,
    sensitivity: Worths | None = None,
) -> PruningPlan:
    """The plan that keeps the most important channels under `budget`.

    `scope` ranks channels within each group ("layer": every group keeps the same share), over all groups
    ("global"), or over groups of one structure ("isomorphic"); "value" keeps the most importance for the price,
    whatever the order. Default: "layer" for a budget in channels, "value" for a latency, for the peak of memory and
    for several quantities at once, else "global". With "layer", `Budget(channels=r)` keeps floor(r * size) channels
    of each group, at least `min_channels`; every other budget bounds the sum over the network, never exceeds it, and
    is filled as far as whole channels allow. Of several quantities each one holds.

    `multiple_of` aligns widths; a group keeps a multiple of it, or is left whole. Default: 1, or what was learned of
    the runtime where the budget is a latency, whose `prices` come from measurement. `min_channels`, and
    `max_pruned` (largest share of a group removed), hold for every group, or per name or glob in a mapping.
    `keep` holds whole every group with a member in the named modules; `only` restricts the cut to groups that
    the named modules produce. All of these take group names, module names, globs, and kinds
    (`structprune.KINDS`: "heads", "mlp", "residual", ...). A layer or group of that very name comes first, and
    "kind:mlp" is the kind all the same. What stays whole by default, because it is one factor of a dimension
    whose other one is cut (heads, beside their width), is cut where `only` asks for its kind.

    `normalize` ("mean" or "none") says whether scores are divided by their group's mean before groups are
    compared; Network Slimming compares them raw. `original` is the price of the network that `budget` is a
    fraction of, for several quantities by name (default: what the graph knows of the network before it was ever
    pruned, else `graph` itself); for channels, the sum of the sizes of the free groups that are cut by default or
    asked for. `criterion` is
    only recorded. A group that may keep its own channels in each channel of others (each head, each group of a
    convolution) keeps the best of each, as many in all of them; with `ragged=False` the same in all, by the sum
    of their scores. With `sensitivity` (`structprune.sensitivity`), of the same network and scores, widths are those
    whose forecast loss is least under the budget (scope "value"), and scores only say which channels a group keeps.

    Raises InputError for arguments that are wrong or name nothing, and BudgetError, with the reachable range,
    for a budget that cannot be met.
    """
    if budget.timed and prices is None:
        raise InputError(
            f"{budget}: a latency is measured; prune does it, or give prices=, as forecast_latency(...).prices(0.5)"
        )
    learned = prices.alignment if prices is not None and multiple_of is None else {}
    bounds = Constraints(
        1 if multiple_of is None else multiple_of,
        min_channels,
        max_pruned,
        _listed(keep),
        _listed(only),
        learned,
    )
    scope = _scope(scope, budget, sensitivity is not None)
    candidates = candidate_groups(graph.groups, bounds)
    scores = {group.name: scores_of(group, scores, ragged) for group in (graph.groups[n] for n in candidates)}
    curves = _curves(graph.groups, scores, candidates, normalize)
    if sensitivity is not None:
        curves = sensitivity.worths(graph, scores, candidates)
    elif scope == VALUE:
        curves = _weighted(graph, curves)
    units = build_units(graph.groups, curves, candidates, bounds)
    limit = Task(graph, tuple(candidates), units, budget, bounds, prices if budget.timed else None).limit(
        scope, original
    )
    counts = counts_in_order(graph, units, limit)
    kept = {
        group.name: best(scores[group.name], int(count))
        for group, count in zip(graph.groups, counts, strict=True)
        if count < group.size
    }
    return graph.plan(kept, budget=budget, criterion=criterion, scope=scope)


def value_units(
    graph: GraphLike,
    scores: Scores,
    alignment: Mapping[str, int],
    *,
    keep: str | Iterable[str] = (),
    only: str | Iterable[str] = (),
) -> tuple[Unit, ...]:
    """The units that `select` chooses widths for under the scope "value": their widths, and what each is worth."""
    bounds = Constraints(keep=_listed(keep), only=_listed(only), alignment=alignment)
    candidates = candidate_groups(graph.groups, bounds)
    found = {graph.groups[n].name: scores_of(graph.groups[n], scores, ragged=True) for n in candidates}
    curves = _weighted(graph, _curves(graph.groups, found, candidates, "mean"))
    return build_units(graph.groups, curves, candidates, bounds)


def best(scores: NDArray[np.float64], count: int) -> Keep:
    """The `count` best channels (of each row), in channel order; among equal scores the first ones, never more
    than `count`.

    >>> best(np.array([1.0, 2.0, 2.0, 2.0]), 2)
    (1, 2)
    """
    order = np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable", axis=-1)[..., :count]
    chosen = np.sort(order, axis=-1)
    return tuple(chosen.tolist()) if chosen.ndim == 1 else tuple(map(tuple, chosen.tolist()))


def _listed(patterns: str | Iterable[str]) -> tuple[str, ...]:
    return (patterns,) if isinstance(patterns, str) else tuple(patterns)


def _scope(scope: str | None, budget: Budget, losses: bool) -> str:
    if losses and scope not in (None, VALUE):
        raise InputError(
            f"{scope=}: with sensitivity= widths are chosen by the loss, which is the scope {VALUE!r}"
        )
    if losses:
        return VALUE
    if scope is None:
        quantities = [limit.quantity for limit in budget.limits]
        if budget.timed or "peak_memory" in quantities or len(quantities) > 1:
            return VALUE
        return "layer" if quantities == ["channels"] else "global"
    if scope not in (*SCOPES, VALUE):
        raise InputError(f"unknown scope {scope!r}: use one of {', '.join((*SCOPES, VALUE))}")
    return scope


def _curves(
    groups: Sequence[GroupLike], scores: Scores, candidates: Sequence[int], normalize: str
) -> dict[int, NDArray[np.float64]]:
    """The normalised scores of each candidate, best first; where rows choose by themselves, summed over the rows."""
    if normalize not in ("mean", "none"):
        raise InputError(f"normalize must be 'mean' or 'none', got {normalize!r}")
    return {
        position: normalised(_best_first(scores[groups[position].name]), normalize) for position in candidates
    }


def _weighted(graph: GraphLike, curves: Mapping[int, NDArray[np.float64]]) -> dict[int, NDArray[np.float64]]:
    """The curves under which the sum over groups stands for the harmonic mean of what each keeps of its importance,
    weighted by the MACs that it governs: one head of three is more than one neuron of a thousand.

    A network is a chain. A plain sum would empty some layers to leave others whole, and a geometric mean lets wide and
    narrow layers take turns; under the harmonic one, layers of like channels at like prices keep the same share, and
    only importance and the runtime's prices lead away from that.
    """
    governed = graph.governed("macs")
    return {position: _in_series(curve) * governed[position] for position, curve in curves.items()}


def kept_importance(
    graph: GraphLike,
    scores: Scores,
    counts: Counts,
    *,
    candidates: Iterable[int] | None = None,
    ragged: bool = True,
) -> float:
    """The share of the importance that stays when each group keeps the best ``counts`` of its channels, in (0, 1].

    It is what the scope "value" keeps the most of: the harmonic mean of what each group that may be cut keeps of its
    scores, weighted by the MACs that it governs. ``candidates`` are the positions of these groups (default: all that
    are free and cut by default).
    """
    if candidates is None:
        candidates = [n for n, group in enumerate(graph.groups) if group.frozen is None and group.primary]
    governed = graph.governed("macs")
    whole, lost = 0.0, 0.0
    for position in candidates:
        group, weight = graph.groups[position], float(governed[position])
        kept = _kept(_best_first(scores_of(group, scores, ragged)))
        whole += weight
        lost += weight * float(kept[-1] / kept[counts[position] - 1])
    return whole / lost if lost else 1.0


def _in_series(curve: NDArray[np.float64]) -> NDArray[np.float64]:
    """By how much each channel, the best first, lowers the inverse of the share that is kept; the first counts as 1.

    >>> _in_series(np.array([3.0, 2.0, 1.0])).round(3).tolist()  # 3, 5, 6 of 6 are kept: the inverses are 2, 1.2, 1
    [1.0, 0.8, 0.2]
    """
    kept = _kept(curve)
    return np.concatenate([[1.0], -np.diff(kept[-1] / kept)])


def _kept(curve: NDArray[np.float64]) -> NDArray[np.float64]:
    """What is kept with the first channel, the first two, ...: a channel without a score counts for a little."""
    kept: NDArray[np.float64] = np.cumsum(np.maximum(curve, _FAINT * (float(np.abs(curve).mean()) or 1.0)))
    return kept


def _best_first(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    ranked = np.sort(scores, axis=-1)[..., ::-1]
    return ranked if ranked.ndim == 1 else ranked.sum(axis=0)


def scores_of(group: GroupLike, scores: Scores, ragged: bool) -> NDArray[np.float64]:
    """float64 [size], or [rows, size] where the rows choose by themselves."""
    if group.name not in scores:
        close = get_close_matches(group.name, list(scores), n=3)
        raise InputError(
            f"no scores for group {group.name!r}: score the same graph" + f" (close: {close})" * bool(close)
        )
    values = np.asarray(scores[group.name], dtype=np.float64)
    by_row = bool(group.by) and values.shape == (group.rows, group.size)
    fits = by_row or values.shape == (group.size,)
    if not fits or not np.isfinite(values).all():
        raise InputError(
            f"scores of group {group.name!r} must be {group.size} finite numbers, got shape {values.shape}"
            + (" with NaN or infinity" if fits else "")
        )
    return values.sum(axis=0) if by_row and not ragged else values
