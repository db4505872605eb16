"""The masked original where values decide what runs: each operation is judged and masked as it comes.

A replay follows the operations of a trace one by one. Once what is removed is silent, a router may choose other layers
than it chose in the trace. So here the rules speak again, on the axes that the trace has found and settled, and an
operation that reads across a removed position is run once more, masked.
"""

from __future__ import annotations

from typing import Any

import torch

from structprune.cutting import Cut
from structprune.replay import Replay
from structprune.rules import Call, Site
from structprune.rules.context import Dims, iter_tensors
from structprune.tracer import Tracer

__all__ = ["LiveReplay"]


class LiveReplay(Replay):
    """A masked run on real tensors that takes its own way; ``named`` are the settled dimensions of the tensors."""

    def __init__(self, named: dict[str, Dims], cut: Cut, generator: torch.Generator) -> None:
        super().__init__({}, cut, generator)
        self.named = named
        self._before: list[tuple[torch.Tensor, torch.Tensor]] = []

    def dispatch(self, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return Tracer.dispatch(self, operation, args, kwargs)

    def function(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return Tracer.function(self, function, args, kwargs)

    def judge(self, rule: Any, call: Call) -> None:
        for (
            leaf
        ) in self.cut:  # what a way of its own would have frozen is cut all the same, and must be masked
            leaf.frozen = None
        super().judge(rule, call)

    def execute(self, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        schema = getattr(operation, "_schema", None)
        written = schema is not None and schema.is_mutable
        self._before = (
            [(t, t.clone()) for t in iter_tensors((args, list(kwargs.values())))] if written else []
        )
        return operation(*args, **kwargs)

    def revised(self, site: Site, operation: Any, names: Any, args: Any, kwargs: Any, out: Any) -> Any:
        for tensor, before in self._before:
            if not torch.equal(tensor, before):
                tensor.copy_(before)
        new = (self._zeroed if site.axes else self._kept)(site, operation, names, args, kwargs)
        for old, tensor in zip(iter_tensors((out,)), iter_tensors((new,)), strict=True):
            if tensor is not old:
                self.context.dims[tensor] = self.context.dims[old]
        return new
