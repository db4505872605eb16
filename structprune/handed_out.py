"""The sizes that a model's own code gets to see: integers that remember which dimension they are the size of."""

from __future__ import annotations

import operator
from typing import Any

import torch

from structprune import axes
from structprune.axes import Const, Expr, Frozen, product
from structprune.nodes import Size
from structprune.provenance import TracedInt, asked_by_user, plain, user_line
from structprune.rules import Context, FunctionCall
from structprune.rules.context import free

__all__ = ["SHAPE", "HandedOut"]

SHAPE = torch.Tensor.shape.__get__  # type: ignore[attr-defined]


class HandedOut:
    """What the code of the model that is traced in ``context`` is told about its tensors."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def shape(self, tensor: torch.Tensor) -> torch.Size:
        dims = self._context.dims.get(tensor)
        plain = SHAPE(tensor)
        if dims is None or all(isinstance(dim, Const) for dim in dims):
            return plain  # type: ignore[no-any-return]
        return torch.Size([self._traced(size, dim) for size, dim in zip(plain, dims, strict=True)])

    def _traced(self, size: int, dim: Expr) -> int:
        if not free(dim):
            return size
        self._context.exposed = self._context.exposed or asked_by_user()
        return TracedInt(size, Size(dim), self._context.ledger)

    def counted(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        shape = self.shape(args[0])
        chosen = args[1] if len(args) > 1 else kwargs.get("dim")
        if name == "size":
            return shape if chosen is None else shape[plain(chosen)]
        count: int = 1
        for size in shape:
            count = count * size
        return count

    def strides(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A stride of a contiguous tensor is the product of the sizes after it."""
        tensor, *rest = args
        chosen = rest[0] if rest else kwargs.get("dim")
        strides: tuple[int, ...] = tensor.stride()
        dims = self._context.dims.get(tensor)
        if dims is not None and tensor.is_contiguous():
            strides = tuple(self._traced(n, product(dims[i + 1 :])) for i, n in enumerate(strides))
        return strides if chosen is None else strides[plain(chosen)]

    def whole_slices(self, call: FunctionCall) -> None:
        """A slice that ends where its dimension does is no operation: it must go on reaching that far."""
        tensor, index = call.args[0], call.args[1] if isinstance(call.args[1], tuple) else (call.args[1],)
        if not all(isinstance(one, slice | int) for one in index):
            return
        for dim, one in zip(self._context.dims.get(tensor, ()), index, strict=False):
            stop = one.stop if isinstance(one, slice) else None
            if isinstance(stop, TracedInt) and plain(stop) >= dim.size:
                call.used.update(i for i, value in enumerate(call.ints) if value is stop)
                self._context.ledger.compare(
                    operator.ge, "ge", stop, TracedInt(dim.size, Size(dim), stop.ledger)
                )

    def leaves(self, name: str, tensor: torch.Tensor) -> None:
        """What happens to numbers outside of torch is not seen."""
        for dim in self._context.dims.get(tensor, ()):
            if free(dim):
                axes.freeze(dim, Frozen(f"{name}() takes these numbers out of torch", user_line()))
