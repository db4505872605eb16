"""What a pruner does to a layer, found by letting it: customised pruners are code, and say nothing about themselves.

A pruner is run on copies of its layer. In the first two copies it shows which dimensions it cuts and which integers it
changes. In the others every number says where it stood, and the pruner removes, copy by copy, the channels whose number
has a certain bit: the bits of a position in which it went are the channel it belongs to. The dimensions that are not
cut are one position wide there, so this costs little however large the layer is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from structprune import layers
from structprune.engines.tags import read_tags, tagged
from structprune.replica import replica
from structprune.tensors import slots

__all__ = ["Cuts", "PrunerError", "Unclear", "probe"]

_Sizes = dict[str, tuple[int, ...]]
_Integers = dict[tuple[str, tuple[str | int, ...]], int]


class Unclear(Exception):
    """A pruner does something else than leaving out positions for each channel; the message says what."""


class PrunerError(Exception):
    """A pruner failed on a copy of its layer."""


@dataclass(frozen=True)
class Cuts:
    """What one function of a pruner does to one layer.

    ``positions`` gives for each tensor (its name within the layer) and dimension the channel of every position (int64,
    -1: none). ``integers`` gives for each integer of the layer (module, path) the value it has, and by how much it
    falls for each channel.
    """

    positions: Mapping[tuple[str, int], np.ndarray]
    integers: Mapping[tuple[str, tuple[str | int, ...]], tuple[int, int]]


def probe(
    layer: nn.Module | nn.Parameter, prune: Callable[[Any, list[int]], Any], channels: np.ndarray
) -> Cuts:
    """Return what ``prune(layer, indices)`` cuts; ``channels`` (int64) is the channel at each index, -1 for none.

    The layer stays as it is. Raises Unclear, and PrunerError where the pruner fails.
    """
    return _Probe(layer, prune, channels).cuts()


class _Probe:
    def __init__(
        self, layer: nn.Module | nn.Parameter, prune: Callable[[Any, list[int]], Any], channels: np.ndarray
    ) -> None:
        self.layer = layer
        self.prune = prune
        self.channels = channels
        self.count = int(channels.max(initial=-1)) + 1
        held = {"": layer} if isinstance(layer, nn.Parameter) else {s.name: s.tensor for s in slots(layer)}
        self.tensors: dict[str, torch.Tensor] = dict(held)

    def cuts(self) -> Cuts:
        # Counted from 1, every channel has a bit, and no bit is in all of them but where one is alone.
        halves = [self.chosen(0), self.chosen(0, 0)]
        shapes, integers = zip(*(self.sizes(indices) for indices in halves), strict=True)
        cut = {
            name: [
                dim
                for dim, size in enumerate(tensor.shape)
                if any(found[name][dim] != size for found in shapes)
            ]
            for name, tensor in self.tensors.items()
        }
        positions = self.positions({name: dims for name, dims in cut.items() if dims}, shapes)
        return Cuts(positions, self.slopes(integers))

    def chosen(self, bit: int, value: int = 1) -> list[int]:
        """Return the indices whose channel, counted from 1, has ``value`` in a bit."""
        numbers = np.where(self.channels >= 0, self.channels + 1, 0)
        return np.flatnonzero((numbers > 0) & ((numbers >> bit & 1) == value)).tolist()

    def run(
        self, indices: list[int], stand_in: Callable[[str, torch.Tensor], torch.Tensor]
    ) -> tuple[dict[str, torch.Tensor], Any]:
        """Return the layer's tensors after the pruner has run on a copy that holds stand-ins, and the copy."""
        if isinstance(self.layer, nn.Parameter):
            return {"": self.called(stand_in("", self.layer), indices)}, None
        copy = replica(
            self.layer, {id(tensor): stand_in(name, tensor) for name, tensor in self.tensors.items()}
        )
        self.called(copy, indices)
        after = {slot.name: slot.tensor for slot in slots(copy)}
        gone = self.tensors.keys() - after.keys()
        if gone:
            raise Unclear(f"it takes {sorted(gone)[0]!r} away")
        return after, copy

    def called(self, layer: Any, indices: list[int]) -> Any:
        try:
            return self.prune(layer, indices) if indices else layer
        except Exception as error:  # the boundary around the pruner, which may be the user's
            raise PrunerError(f"{type(error).__name__}: {error}") from error

    def sizes(self, indices: list[int]) -> tuple[_Sizes, _Integers]:
        after, copy = self.run(indices, lambda _, tensor: _zeros(tensor))
        for name, tensor in self.tensors.items():
            if after[name].ndim != tensor.ndim:
                raise Unclear(f"it gives {name!r} another number of dimensions")
        return {name: tuple(after[name].shape) for name in self.tensors}, _integers(copy)

    def positions(
        self, cut: Mapping[str, list[int]], shapes: tuple[_Sizes, ...]
    ) -> dict[tuple[str, int], np.ndarray]:
        """Decode every position; a pruner that looks at the dimensions it leaves alone gets those whole."""
        try:
            return self.decoded(cut, shapes, narrow=True)
        except (PrunerError, Unclear):
            return self.decoded(cut, shapes, narrow=False)

    def decoded(
        self, cut: Mapping[str, list[int]], shapes: tuple[_Sizes, ...], narrow: bool
    ) -> dict[tuple[str, int], np.ndarray]:
        codes = {
            (name, dim): np.zeros(self.tensors[name].shape[dim], np.int64)
            for name in cut
            for dim in cut[name]
        }

        def stand_in(name: str, tensor: torch.Tensor) -> torch.Tensor:
            return tagged(tensor, cut[name], narrow) if name in cut else _zeros(tensor)

        for bit in range(self.count.bit_length()):
            after, _ = self.run(self.chosen(bit), stand_in)
            for name, dims in cut.items():
                kept = read_tags(after[name], tuple(self.tensors[name].shape), dims)
                if kept is None:
                    raise Unclear(f"it does more to {name!r} than leaving out positions")
                for dim, stays in zip(dims, kept, strict=True):
                    codes[name, dim][np.setdiff1d(np.arange(len(codes[name, dim])), stays)] |= 1 << bit
        self.check(codes, shapes)
        return {key: code - 1 for key, code in codes.items()}

    def check(self, codes: Mapping[tuple[str, int], np.ndarray], shapes: tuple[_Sizes, ...]) -> None:
        """Pass if the decoded positions explain what the two halves did."""
        for (name, dim), code in codes.items():
            expected = [int(((code == 0) | (code & 1 != parity)).sum()) for parity in (1, 0)]
            found = [shape[name][dim] for shape in shapes]
            if code.max(initial=0) > self.count or expected != found:
                raise Unclear(
                    f"what it removes from {name!r} for several channels is not what it removes for each"
                )

    def slopes(
        self, integers: tuple[_Integers, ...]
    ) -> dict[tuple[str, tuple[str | int, ...]], tuple[int, int]]:
        """Return the integers that fell by the same number for each channel of both halves, and that number."""
        if isinstance(self.layer, nn.Parameter):
            return {}
        sizes = [-(-self.count // 2), self.count // 2]  # the channels of the two halves
        found = {}
        for place, number in _integers(self.layer).items():
            falls = [number - half.get(place, number) for half in integers]
            if any(falls):
                slopes = {fall / size for fall, size in zip(falls, sizes, strict=True) if size}
                slope = int(slopes.pop())
                if slopes or slope * sizes[0] != falls[0] or slope < 0 or slope * self.count > number:
                    where = ".".join(map(str, (place[0], *place[1]))).lstrip(".")
                    raise Unclear(f"it does not lower {where} by the same number for each channel")
                found[place] = number, slope
        return found


def _zeros(tensor: torch.Tensor) -> torch.Tensor:
    """Return zeros of the same shape that take no memory; what is no number of a dimension stays as it is."""
    if not tensor.ndim:
        return tensor.detach().clone()
    return _like(tensor, torch.zeros((), dtype=torch.float16).expand(tensor.shape))


def _like(tensor: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    return nn.Parameter(values, requires_grad=False) if isinstance(tensor, nn.Parameter) else values


def _integers(layer: nn.Module | None) -> _Integers:
    """Every integer attribute of a layer and the modules inside it that torch.nn's types do not define."""
    found: _Integers = {}
    for prefix, module in layer.named_modules() if layer is not None else ():
        known = layers.declared(module)
        for name, value in vars(module).items():
            if name in known or name.startswith("__"):
                continue
            for path, item in _inside(value, (name,)):
                found[prefix, path] = item
    return found


def _inside(value: object, path: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], int]]:
    if type(value) is int:
        yield path, value
    elif isinstance(value, tuple | list):
        for number, item in enumerate(value):
            yield from _inside(item, (*path, number))
