"""Which rows of each product belong to which sample of a batch, so that one pass does for all of them.

Whether samples meet (over the batch, or in what values choose), and in which order a forward lays them out, is not
guessed: a few samples run alone as well, and every product must read of them what it reads of the batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils._python_dispatch import TorchDispatchMode

from structprune.importance.batches import Batch
from structprune.inputs import map_tensors
from structprune.observe import Twin, Use
from structprune.outputs import output_tensors
from structprune.rules.context import iter_tensors

__all__ = ["Run", "apart", "recorded", "sample_of", "stacked"]

_CLOSE = {
    torch.float64: 1e-9,
    torch.float32: 1e-4,
}  # of the largest number: how alike batches and single runs are


@dataclass
class Run:
    """One run: its result, its products with parameters, and where the gradient of each one's output arrives.

    ``edges`` are None where a product was made without gradients. ``plain`` says whether every product gave its rows
    times its weight and nothing but products read the parameters that were asked for.
    """

    output: Any = None
    uses: list[Use] = field(default_factory=list)
    edges: list[GradientEdge | None] = field(default_factory=list)
    plain: bool = True

    def reads(self) -> tuple[object, ...]:
        """What the products are, whatever the numbers."""
        return tuple((use.place, use.input.shape) for use in self.uses)


def recorded(twin: Twin, batch: Batch, read: Iterable[str], check: bool = False) -> Run:
    """The run of a batch through a network with gradients; with ``check`` each product is worked out once more.

    ``read`` names the parameters that nothing but products may read.
    """
    run = Run()
    edges = _Edges(run, {_storage(twin.parameters[name]) for name in read})

    def each(use: Use) -> None:
        with edges.aside():
            run.plain = run.plain and (not check or _plain(use))
        run.uses.append(use)

    with edges:
        run.output = batch.through(twin, each)
    edges.settle()
    of_products = sum(edges.touches((use.weight, use.bias)) for use in run.uses)
    run.plain = run.plain and edges.reads == of_products
    return run


class _Edges(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes where a product's gradient arrives as soon as autograd knows it, before anything is written over it; and
    counts the operations that read the memory of parameters, other than to look at it in another way.
    """

    def __init__(self, run: Run, watched: set[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.run, self.watched, self.reads, self.counts = run, watched, 0, True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled in here, and the guard would import the compiler

    def settle(self) -> None:
        for use in self.run.uses[len(self.run.edges) :]:
            self.run.edges.append(get_gradient_edge(use.output) if use.output.requires_grad else None)

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """What happens inside is not the network's own."""
        self.counts = False
        yield
        self.counts = True

    def touches(self, tensors: Any) -> bool:
        return any(_storage(tensor) in self.watched for tensor in iter_tensors(tensors))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.settle()
        out = func(*args, **(kwargs or {}))
        if not self.counts:
            return out
        made = list(iter_tensors((out,)))
        if made and not self.touches(made) and self.touches((args, list((kwargs or {}).values()))):
            self.reads += 1
        return out


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def sample_of(tree: Any, number: int, size: int) -> Any:
    """One sample of a batch: of every tensor whose dim 0 has the batch's size, that part."""

    def one(tensor: Tensor) -> Tensor:
        return tensor[number : number + 1] if tensor.ndim and tensor.shape[0] == size else tensor

    return map_tensors(tree, one)


def apart(twin: Twin, batch: Batch, run: Run, read: Iterable[str]) -> list[int] | None:
    """For each product of the run the number ``outer`` with which its rows are ``[outer, samples, inner]``; None where
    samples meet, or where a product gives something else than rows times the weight.
    """
    found: list[set[int]] | None = None
    for number in sorted({0, batch.size // 2, batch.size - 1}):
        args, kwargs, target = sample_of((batch.args, batch.kwargs, batch.target), number, batch.size)
        sample = Batch(args, kwargs, target, 1, batch.number)
        alone = recorded(twin, sample, read, check=True)
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
