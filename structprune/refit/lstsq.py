"""Least squares: each layer's weights are set to what best gives the original's outputs from the inputs it now has.

He, Zhang and Sun, "Channel Pruning for Accelerating Very Deep Neural Networks", 2017, reconstruct the consumers of a
cut so; here this goes on in the order in which layers run, so that each makes up for what those before it could not,
and the layers behind take part as well: their inputs are whole, but no longer the original's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from torch import Tensor

from structprune.observe import Twin, Use
from structprune.refit.batches import Batches
from structprune.refit.consumers import Consumer, pieces, tapped, targets
from structprune.refit.report import LayerRefit
from structprune.refit.solve import ridge_solution
from structprune.refit.statistics import Moments
from structprune.refit.targets import Targets

__all__ = ["refit_consumers"]


def refit_consumers(
    step: str,
    original: Twin,
    small: Twin,
    consumers: Sequence[Consumer],
    batches: Batches,
    ridge: Sequence[float],
    memory_bytes: int,
    left: dict[str, str],
    progress: Callable[[int, int], None] | None = None,
) -> list[LayerRefit]:
    """Refit layers one after the other; each takes one pass over the data through the cut network, up to its last use,
    those that read the same input one together. The original's outputs are kept from one pass for as many layers as
    fit in a quarter of ``memory_bytes``, and beside the largest layer's sums in the whole of it.

    Of several ``ridge`` the one with the smallest held-back error is taken, and none where that is not below the error
    of the weights that are there. One whose sums would take more than ``memory_bytes`` goes to ``left``.
    """
    done = list[LayerRefit]()
    groups = _together(consumers, memory_bytes)
    waiting = [one for group in groups if _bytes(group) <= memory_bytes for one in group]
    largest = max((size for group in groups if (size := _bytes(group)) <= memory_bytes), default=0)
    originals = Targets(original, batches, min(memory_bytes / 4, memory_bytes - largest))
    count = 0
    for group in groups:
        count += len(group)
        wanted = _bytes(group)
        if wanted > memory_bytes:
            left[group[0].name] = f"its sums take {wanted:,} bytes; memory_bytes={memory_bytes:,}"
            continue
        if not originals.holds(group):
            originals.gather(waiting)
        waiting = waiting[len(group) :]
        for one, (fit, held) in _moments(small, group, batches, originals).items():
            if fit.count and held.count:
                done.append(_refit(step, one, fit, held, ridge))
            elif one.cut:
                left[one.name] = (
                    "its rows in the cut network are not those of the original, or there are none"
                )
        if progress is not None:
            progress(count, len(consumers))
    return done


def _together(consumers: Sequence[Consumer], memory_bytes: int) -> list[list[Consumer]]:
    """The layers in order, those in one list that read the same input and whose sums fit in memory together."""
    groups = list[list[Consumer]]()
    for one in consumers:
        same = bool(groups) and one.stage >= 0 and groups[-1][-1].stage == one.stage
        if same and _bytes([*groups[-1], one]) <= memory_bytes:
            groups[-1].append(one)
        else:
            groups.append([one])
    return groups


def _bytes(group: Sequence[Consumer]) -> int:
    return sum(2 * Moments.bytes(one.matrix()) for one in group)


def _refit(step: str, one: Consumer, fit: Moments, held: Moments, ridge: Sequence[float]) -> LayerRefit:
    matrix, constant = one.matrix(), one.constant()
    before = held.error(matrix, constant)
    tried = [one.rounded(*ridge_solution(fit, matrix, constant, each, one.intercept)) for each in ridge]
    errors = [held.error(*each) for each in tried]
    best = errors.index(min(errors))
    result = LayerRefit(one.name, step, before, errors[best])
    if result.taken:
        one.write(*tried[best])
    return result


def _moments(
    small: Twin, group: Sequence[Consumer], batches: Batches, originals: Targets
) -> dict[Consumer, tuple[Moments, Moments]]:
    """The sums over the rows that each layer now meets and the outputs that it should give: to fit, and held back."""
    sums = {one: (Moments.zeros(one.matrix()), Moments.zeros(one.matrix())) for one in group}

    def take(wanted: Mapping[Consumer, list[Tensor]], held: bool, one: Consumer, use: Use) -> None:
        y = wanted[one].pop(0) if wanted[one] else None
        if y is None or targets(use).shape[1] != y.shape[1]:
            return  # values chose: the original used it less often, or on other rows
        fitted = batches.fitted(y.shape[1], held)
        for first, rows, some in pieces(use, y):
            cut = max(fitted - first, 0)
            assert some is not None
            sums[one][0].add(rows[:, :cut], some[:, :cut])
            sums[one][1].add(rows[:, cut:], some[:, cut:])

    for batch, held in batches:
        tapped(small, group, batch, partial(take, originals.of(group, batch), held))
    return sums
