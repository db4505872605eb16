"""Which rows of each product belong to which sample of a batch, so that one pass does for all of them.

Whether samples meet (over the batch, or in what values choose), and in which order a forward lays them out, is not
guessed: a few samples run alone as well, and every product must read of them what it reads of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from structprune.errors import InputError
from structprune.importance.batches import Batch, sample_of
from structprune.observe import Twin, Use
from structprune.outputs import output_tensors

__all__ = ["Backward", "Run", "apart", "backward", "recorded", "stacked"]

_CLOSE = {
    torch.float64: 1e-9,
    torch.float32: 1e-4,
}  # of the largest number: how alike batches and single runs are


@dataclass(frozen=True, slots=True)
class Backward:
    """Where the gradient of what a product made arrives, and where that of its input goes: the place among what the
    arriving one's node passes on. None where there is none, or where another operation lies between.
    """

    output: GradientEdge
    input: GradientEdge | None
    place: int


@dataclass
class Run:
    """One run: its result, its products with parameters, and the way back through each, None where a product was made
    without gradients.

    ``plain`` says whether every product gave its rows times its weight and nothing but products read the parameters
    that were asked for.
    """

    output: Any = None
    uses: list[Use] = field(default_factory=list)
    ways: list[Backward | None] = field(default_factory=list)
    plain: bool = True

    def reads(self) -> tuple[object, ...]:
        """What the products are, whatever the numbers."""
        return tuple((use.place, use.input.shape) for use in self.uses)


def recorded(twin: Twin, batch: Batch, read: Iterable[str], check: bool = False) -> Run:
    """The run of a batch through a network with gradients; with ``check`` each product is worked out once more.

    ``read`` names the parameters that nothing but products may read.
    """
    run = Run()

    def each(use: Use) -> Callable[[], None]:
        run.plain = run.plain and (not check or _plain(use))
        run.uses.append(use)
        source = get_gradient_edge(use.input) if use.input.requires_grad else None
        return lambda: run.ways.append(_way(use.output, source))

    run.output = batch.through(twin, each)
    run.plain = run.plain and not any(name in twin.unread or name in twin.remade for name in read)
    return run


def _way(output: Tensor, source: GradientEdge | None) -> Backward | None:
    if not output.requires_grad:
        return None
    arrives = get_gradient_edge(output)
    goes = [] if source is None else [(source.node, source.output_nr)]
    places = [place for place, edge in enumerate(arrives.node.next_functions) if edge in goes]
    return Backward(arrives, source, places[0]) if len(places) == 1 else Backward(arrives, None, 0)


def backward(
    total: Tensor, ways: Mapping[int, Backward], each: Callable[[int, Tensor, Tensor | None], None]
) -> None:
    """Go back from a number, and call ``each`` for every product that it depends on, by its number in ``ways``: with
    the gradient of what the product made, and that of its input through this product alone, if that has one.

    No gradient of a parameter is worked out, and none is kept.
    """

    def hook(
        number: int, way: Backward, inputs: Sequence[Tensor | None], outputs: Sequence[Tensor | None]
    ) -> None:
        gradient = outputs[way.output.output_nr]
        if gradient is not None:
            each(number, gradient, inputs[way.place])

    passed = {number: way for number, way in ways.items() if way.input is not None}
    ends = {number: way.output for number, way in ways.items() if way.input is None}
    handles = [way.output.node.register_hook(partial(hook, number, way)) for number, way in passed.items()]
    try:
        asked = [*ends.values(), *_first(list(ways.values()))]
        found = torch.autograd.grad(total, asked, allow_unused=True) if asked else ()
    finally:
        for handle in handles:
            handle.remove()
    with torch.no_grad():
        for number, gradient in zip(ends, found, strict=False):
            if gradient is not None:
                each(number, gradient, None)


def _first(ways: Sequence[Backward]) -> list[GradientEdge]:
    """Where the gradients of inputs go from which no way leads to another product's: who asks for them has them all."""
    nodes, dead, found = {way.output.node for way in ways}, set[Any](), []
    for way in ways:
        if way.input is not None:
            seen, waiting = {way.input.node}, [way.input.node]
            while waiting and nodes.isdisjoint(seen):
                onward = {node for one in waiting for node, _ in one.next_functions if node is not None}
                waiting = list(onward - seen - dead)
                seen.update(waiting)
            if nodes.isdisjoint(seen):
                dead |= seen
                found.append(way.input)
    return found


def apart(twin: Twin, batch: Batch, run: Run, read: Iterable[str]) -> list[int] | None:
    """For each product of the run the number ``outer`` with which its rows are ``[outer, samples, inner]``; None where
    samples meet, or where a product gives something else than rows times the weight.
    """
    found: list[set[int]] | None = None
    for number in sorted({0, batch.size // 2, batch.size - 1}):
        try:
            alone = recorded(twin, batch.sample(number), read, check=True)
        except (
            InputError
        ):  # an input that samples share does not go in parts, say: what is one by one says so
            return None
        if not alone.plain or not _same_output(sample_of(run.output, number, batch.size), alone.output):
            return None
        if [use.place for use in alone.uses] != [use.place for use in run.uses]:
            return None
        pairs = zip(run.uses, alone.uses, strict=True)
        outers = [_outers(use, one, number, batch.size) for use, one in pairs]
        found = outers if found is None else [a & b for a, b in zip(found, outers, strict=True)]
    return None if found is None or not all(found) else [min(each) for each in found]


def stacked(use: Use, tensor: Tensor) -> Tensor:
    """The input, or a tensor of its shape, with what is laid out over samples in dim 0: images, or rows."""
    if use.place.sliding is not None:
        return tensor if tensor.ndim == use.weight.ndim else tensor.unsqueeze(0)
    return use.place.rows(tensor).movedim(1, 0)


def _outers(use: Use, alone: Use, number: int, size: int) -> set[int]:
    """The ways to lay out samples under which the batch's rows of this one are those of its run alone."""
    rows, own = stacked(use, use.input.detach()), stacked(alone, alone.input.detach())
    if rows.shape[1:] != own.shape[1:] or len(rows) != size * len(own):
        return set()
    ways = [outer for outer in range(1, len(own) + 1) if len(own) % outer == 0]
    return {
        outer
        for outer in ways
        if _close(rows.reshape(outer, size, -1, *rows.shape[1:])[:, number].flatten(0, 1), own)
    }


def _plain(use: Use) -> bool:
    """Whether the operation gives its rows times the weight, plus what it adds."""
    if use.place.sliding is not None:
        return True
    product = use.rows().detach() @ use.matrices().detach().mT
    if use.bias is not None:
        bias = use.bias.detach()
        if bias.numel() != product.shape[0] * product.shape[2]:
            return False
        product = product + bias.reshape(product.shape[0], 1, -1)
    return _close(product, use.laid(use.output.detach()))


def _same_output(part: Any, alone: Any) -> bool:
    pairs: Sequence[tuple[Tensor, Tensor]] = list(
        zip(output_tensors(part), output_tensors(alone), strict=False)
    )
    same = len(output_tensors(part)) == len(output_tensors(alone))
    return same and all(_close(a.detach(), b.detach()) for a, b in pairs)


def _close(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not a.is_floating_point():
        return bool((a == b).all())
    size = b.abs().max().item() if b.numel() else 0.0
    return not a.numel() or (a - b).abs().max().item() <= _CLOSE.get(a.dtype, 0.0) * max(size, 1e-30)
