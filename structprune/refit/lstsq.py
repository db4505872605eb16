"""Least squares: each consumer's weights are set to what best gives the original's outputs from the inputs it now has.

He, Zhang and Sun, "Channel Pruning for Accelerating Very Deep Neural Networks", 2017, reconstruct a layer so; here
every consumer is, in the order in which they run, so that each makes up for what those before it could not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor

from structprune.observe import Twin, Use
from structprune.refit.batches import Batches
from structprune.refit.consumers import Consumer, pieces, tapped, targets
from structprune.refit.report import ConsumerRefit
from structprune.refit.solve import ridge_solution
from structprune.refit.statistics import Moments

__all__ = ["refit_consumers"]


def refit_consumers(
    original: Twin,
    small: Twin,
    consumers: Sequence[Consumer],
    batches: Batches,
    ridge: Sequence[float],
    memory_bytes: int,
    left: dict[str, str],
    progress: Callable[[int, int], None] | None = None,
) -> list[ConsumerRefit]:
    """Refit the consumers one after the other; each takes one pass over the data through both networks, up to its
    last use.

    Of several ``ridge`` the one with the smallest held-back error is taken, and none where that is not below the error
    of the weights that are there. A consumer whose sums would take more than ``memory_bytes`` goes to ``left``.
    """
    done = []
    for number, one in enumerate(consumers):
        wanted = 2 * Moments.bytes(one.matrix())
        if wanted > memory_bytes:
            left[one.name] = f"its sums take {wanted:,} bytes; memory_bytes={memory_bytes:,}"
            continue
        fit, held = _moments(original, small, one, batches)
        if fit.count and held.count:
            done.append(_refit(one, fit, held, ridge))
        else:
            left[one.name] = (
                "its rows in the cut network are not those that it has in the original, or there are none"
            )
        if progress is not None:
            progress(number + 1, len(consumers))
    return done


def _refit(one: Consumer, fit: Moments, held: Moments, ridge: Sequence[float]) -> ConsumerRefit:
    matrix, constant = one.matrix(), one.constant()
    before = held.error(matrix, constant)
    tried = [one.rounded(*ridge_solution(fit, matrix, constant, each, one.intercept)) for each in ridge]
    errors = [held.error(*each) for each in tried]
    best = errors.index(min(errors))
    result = ConsumerRefit(one.name, "lstsq", before, errors[best])
    if result.taken:
        one.write(*tried[best])
    return result


def _moments(original: Twin, small: Twin, one: Consumer, batches: Batches) -> tuple[Moments, Moments]:
    """The sums over the rows that a consumer now meets and the outputs that it should give: to fit, and held back."""
    fit, held_back = Moments.zeros(one.matrix()), Moments.zeros(one.matrix())
    wanted: list[Tensor] = []

    def keep(_: Consumer, use: Use) -> None:
        wanted.append(one.selected(targets(use)))

    def take(held: bool, _: Consumer, use: Use) -> None:
        y = wanted.pop(0) if wanted else None
        if y is None or targets(use).shape[1] != y.shape[1]:
            return  # values chose: the original used it less often, or on other rows
        fitted = batches.fitted(y.shape[1], held)
        for first, rows, some in pieces(use, y):
            cut = max(fitted - first, 0)
            assert some is not None
            fit.add(rows[:, :cut], some[:, :cut])
            held_back.add(rows[:, cut:], some[:, cut:])

    for inputs, held in batches:
        wanted.clear()
        tapped(original, [one], inputs, keep)
        tapped(small, [one], inputs, partial(take, held))
    return fit, held_back
