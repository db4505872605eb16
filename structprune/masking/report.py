"""How sparse a model is, in counts."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from structprune.arguments import typed
from structprune.masking.mask import Mask
from structprune.masking.targets import Target, all_targets

__all__ = ["SparsityReport", "TensorSparsity", "nonzeros", "sparsity_report"]


@dataclass(frozen=True)
class TensorSparsity:
    """Size and non-zero weights of one tensor; `masked` says whether a mask holds its zeros."""

    name: str
    size: int
    nonzeros: int
    masked: bool

    @property
    def sparsity(self) -> float:
        return 1 - self.nonzeros / self.size if self.size else 0.0


@dataclass(frozen=True)
class SparsityReport:
    """The sparsity of every tensor that `sparsify` masks by default, or that is masked. Prints as a table."""

    tensors: tuple[TensorSparsity, ...]

    @property
    def size(self) -> int:
        return sum(tensor.size for tensor in self.tensors)

    @property
    def nonzeros(self) -> int:
        return sum(tensor.nonzeros for tensor in self.tensors)

    @property
    def sparsity(self) -> float:
        return 1 - self.nonzeros / self.size if self.size else 0.0

    def __str__(self) -> str:
        total = TensorSparsity("all", self.size, self.nonzeros, any(t.masked for t in self.tensors))
        width = max(len(tensor.name) for tensor in (*self.tensors, total))
        lines = [f"{'tensor':<{width}} {'weights':>12} {'non-zero':>12} {'sparsity':>9}  masked"]
        for tensor in (*self.tensors, total):
            lines.append(
                f"{tensor.name:<{width}} {tensor.size:>12,} {tensor.nonzeros:>12,} {tensor.sparsity:>9.2%}"
                f"  {'yes' if tensor.masked else 'no'}"
            )
        return "\n".join(lines)


@typed
def nonzeros(model: nn.Module) -> int:
    """The number of parameters that are not zero: biases and norms too, masks applied, tied tensors once."""
    return sum(int(target.slots[0].value().count_nonzero()) for target in all_targets(model))


def sparsity_report(model: nn.Module) -> SparsityReport:
    """Size and non-zeros of each weight tensor that `sparsify` takes by default, and of all masked ones."""
    targets = [target for target in all_targets(model) if target.by_default() or _masked(target)]
    return SparsityReport(tuple(_row(target) for target in targets))


def _row(target: Target) -> TensorSparsity:
    value = target.slots[0].value()
    return TensorSparsity(target.name, value.numel(), int(value.count_nonzero()), _masked(target))


def _masked(target: Target) -> bool:
    return any(isinstance(held, Mask) for slot in target.slots for held in slot.parametrizations())
