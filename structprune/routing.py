"""Layers that values choose among: a router sends each row to a few of many experts, and an example reaches some.

What the others take and give must be cut with the rest all the same, or they no longer fit on the day they are chosen.
So the model is run again with every choice turned round (the best scores of a row are said to lie at other positions)
until each layer among them has been chosen. Where that does not help, what they share with their siblings stays.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from structprune import axes
from structprune.axes import Atom, Frozen
from structprune.rules.context import Dims
from structprune.tensors import aliases
from structprune.tracer import Tracer

__all__ = ["CHOICES", "Rerouted", "freeze_siblings"]

CHOICES = frozenset(("topk", "argmax", "argmin", "sort", "argsort", "max", "min", "multinomial"))


class Rerouted(Tracer):
    """A run on real tensors in which the ``turn``-th positions after each other are chosen, whatever the scores."""

    def __init__(self, turn: int, named: dict[str, Dims]) -> None:
        super().__init__("real", named)
        self.turn = turn

    def execute(self, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        out = super().execute(operation, args, kwargs)
        schema = getattr(operation, "_schema", None)
        if (
            schema is not None
            and schema.name.removeprefix("aten::") in CHOICES
            and args[0] in self.context.live
        ):
            _, _, names, defaults, _ = self._known.get(operation) or self._learn(operation)
            arguments = {**defaults, **dict(zip(names, args, strict=False)), **kwargs}
            chosen = out[-1] if isinstance(out, list | tuple) else out
            if chosen.dtype == torch.int64 and args[0].is_floating_point() and chosen.numel():
                chosen.copy_(_turned(args[0], arguments.get("dim", -1), chosen, self.turn))
        return out


def _turned(scores: torch.Tensor, dim: int | None, chosen: torch.Tensor, turn: int) -> torch.Tensor:
    """Return positions along ``dim`` that run through all of them, row after row, different ones within a row."""
    if dim is None:
        return torch.full_like(chosen, turn % scores.numel())
    choices = scores.shape[dim] if scores.ndim else 1
    width = chosen.shape[dim] if chosen.ndim and chosen.ndim == scores.ndim else 1
    rows = chosen.numel() // width
    step = width if width < choices else 1
    at = torch.arange(rows)[:, None] * step + torch.arange(width) + turn * rows * step
    if chosen.ndim == scores.ndim and chosen.ndim:
        shape = chosen.movedim(dim, -1).shape
        return (at % choices).view(shape).movedim(-1, dim)
    return (at % choices).view(chosen.shape)


def freeze_siblings(model: nn.Module, named: Mapping[str, Dims], unused: frozenset[str]) -> None:
    """Freeze what a layer shares with the rest where a layer of the same kind beside it was not reached."""
    known = aliases(model)
    for prefix, parent in model.named_modules():
        kinds: dict[Any, list[tuple[str, set[str]]]] = {}
        for child, module in parent.named_children():
            own = {name for name, _ in (*module.named_parameters(), *module.named_buffers())}
            path = f"{prefix}.{child}" if prefix else child
            inside = {known[f"{path}.{name}"] for name in own if f"{path}.{name}" in known}
            if inside:
                kinds.setdefault((type(module), frozenset(own)), []).append((path, inside))
        for siblings in kinds.values():
            missed = [path for path, inside in siblings if inside <= unused]
            for _, inside in siblings if missed else ():
                if not inside <= unused:
                    _freeze_shared(named, inside, missed[0])


def _freeze_shared(named: Mapping[str, Dims], inside: set[str], missed: str) -> None:
    shared = set(_leaves(named, set(named) - inside))
    reason = Frozen(
        f"{missed}, which may take and give the same, was not chosen by the values of this forward"
    )
    for leaf in _leaves(named, inside):
        if leaf in shared and leaf.frozen is None:
            leaf.frozen = reason


def _leaves(named: Mapping[str, Dims], names: set[str]) -> Iterator[Atom]:
    for name in names:
        for dim in named[name]:
            yield from axes.leaves(dim)
