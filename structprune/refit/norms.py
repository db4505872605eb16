"""Batch norms: their running statistics, estimated anew on what reaches them in the cut network."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from structprune.importance.batches import Batch
from structprune.observe import Twin
from structprune.refit.batches import Batches
from structprune.tensors import named_tensors

__all__ = ["Norm", "RunningNorm", "estimate_norms", "running_norms", "watching_norms"]


@dataclass(frozen=True, eq=False)
class Norm:
    """One use of a batch norm with running statistics: these, and its input ``[b, c, ...]``."""

    mean: Tensor
    var: Tensor
    input: Tensor


class _Norms(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Hands over each use of a batch norm, whichever kernel it is: those that are given running statistics."""

    def __init__(self, held: set[int], see: Callable[[Norm], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.held, self.see = held, see

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled in here, and the guard would import the compiler

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        names = [argument.name for argument in func._schema.arguments]
        if "running_mean" in names:
            given = {**dict(zip(names, args, strict=False)), **(kwargs or {})}
            mean, var = given["running_mean"], given["running_var"]
            if id(mean) in self.held and id(var) in self.held:
                self.see(Norm(mean, var, given["input"]))
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def watching_norms(twin: Twin, see: Callable[[Norm], None]) -> Iterator[None]:
    """Call ``see`` for each use of a batch norm in a network that runs inside, before it happens."""
    buffers = list(twin.module.buffers())
    with _Norms({id(buffer) for buffer in buffers}, see):
        yield


class _Enough(BaseException):
    """The norm that was waited for has been seen as often as it is used."""


@dataclass(frozen=True, eq=False)
class RunningNorm:
    """A batch norm of a network by its running statistics, and how often a forward uses it."""

    name: str
    mean: Tensor
    var: Tensor
    uses: int


def running_norms(small: Twin, batch: Batch) -> list[RunningNorm]:
    """The batch norms of a network that have running statistics, in the order in which they run."""
    names = {id(tensor): name for name, tensor in named_tensors(small.module).items()}
    used: dict[int, list[Norm]] = {}
    with watching_norms(small, lambda norm: used.setdefault(id(norm.mean), []).append(norm)):
        batch.through(small)
    return [
        RunningNorm(names[key].rpartition(".")[0], norms[0].mean, norms[0].var, len(norms))
        for key, norms in used.items()
    ]


@torch.no_grad()
def estimate_norms(small: Twin, norms: Iterable[RunningNorm], batches: Batches) -> None:
    """Set the running mean and variance of each batch norm to those of all that reaches it.

    One after the other, in the order in which they run: each sees what the norms before it now give. The variance is
    the unbiased one over the data together, so it does not depend on how they are batched. How many batches a norm has
    seen, its momentum and its training flag stay. Held-back batches are left out.
    """
    for norm in norms:
        found = _moments(small, batches, norm)
        if found is not None:
            norm.mean.copy_(found[0])
            norm.var.copy_(found[1])


def _moments(small: Twin, batches: Batches, norm: RunningNorm) -> tuple[Tensor, Tensor] | None:
    """The mean and the unbiased variance per channel of all that reaches a norm, float64, by the pairwise updates of
    Chan, Golub and LeVeque 1979; None where less than two numbers do.
    """
    mean, squares = (torch.zeros_like(norm.mean, dtype=torch.float64) for _ in range(2))
    count, seen = 0, list[Tensor]()

    def take(used: Norm) -> None:
        if used.mean is norm.mean:
            seen.append(used.input.detach().double().transpose(0, 1).flatten(1))
            if len(seen) == norm.uses:
                raise _Enough

    for batch, held in batches:
        seen.clear()
        if not held:
            with contextlib.suppress(_Enough), watching_norms(small, take):
                batch.through(small)
        for rows in seen:
            new, center = rows.shape[1], rows.mean(1)
            if new:
                squares += (rows - center.unsqueeze(1)).square().sum(1)
                squares += (center - mean).square() * (count * new / (count + new))
                mean += (center - mean) * (new / (count + new))
                count += new
    return (mean, squares / (count - 1)) if count > 1 else None
