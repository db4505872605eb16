"""Finding the layers that can be refitted: where both networks multiply a weight with what reaches it.

Both networks run the same code, so the n-th use of a weight in the one is that in the other. Which outputs of the
original stay, and which of its inputs are gone, is read off the positions that the plan keeps of the weight, as each
operation sees them; so it holds for any layout, and for heads and groups that keep channels of their own.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from structprune.gathering import take
from structprune.importance.batches import Batch
from structprune.observe import Place, Twin, Use
from structprune.plan import PruningPlan
from structprune.refit.consumers import Consumer, pieces, targets
from structprune.refit.norms import Norm, watching_norms

__all__ = ["survey"]

_EXACT = {torch.float64: 1e-8, torch.float32: 1e-3}  # how well a product has to be one; other dtypes: 0.1


def survey(
    original: Twin, small: Twin, plan: PruningPlan, batch: Batch
) -> tuple[list[Consumer], dict[str, str]]:
    """The layers of a cut network in the order in which they run, from the first consumer of the cut on, and the
    consumers that cannot be refitted, with the reason.
    """
    wide, narrow, left = _Seen(original), _Seen(small), {}
    batch.through(original, wide.use)
    with watching_norms(small, narrow.norm):
        batch.through(small, narrow.use)
    found: list[Consumer] = []
    for name, places in narrow.places.items():
        try:
            found += _consumers(name, wide.places.get(name, []), places, narrow, plan)
        except _Unfit as reason:
            left[name] = str(reason)
    found.sort(key=lambda one: narrow.order[one.parameter, one.uses[0]])
    first = next((number for number, one in enumerate(found) if one.cut), len(found))
    return found[first:], left


class _Unfit(Exception):
    """Why a weight cannot be refitted."""


class _Seen:
    """Where one run uses weights, in which order, and the norms that follow."""

    def __init__(self, twin: Twin) -> None:
        self.twin = twin
        self.places: dict[str, list[Place]] = {}
        self.biases: dict[tuple[str, int], Tensor] = {}
        #: of each bias and running mean: the weights whose products it meets
        self.takers: dict[object, set[str]] = {}
        self.order: dict[tuple[str, int], int] = {}
        self.flaws: dict[str, str] = {}
        self.means: dict[tuple[str, int], Tensor] = {}
        self.stages: dict[tuple[str, int], int] = {}
        self._made: dict[int, tuple[weakref.ref[Tensor], tuple[str, int]]] = {}
        self.stage = 0
        self._read: tuple[Tensor, int] | None = (
            None  # by the last product; held, so that its memory is its own
        )

    def use(self, use: Use) -> None:
        name = use.place.parameter
        if use.bias is not None:
            self.takers.setdefault(_memory(use.bias), set()).add(name)
        places = self.places.setdefault(name, [])
        key = (name, len(places))
        places.append(use.place)
        self.order[key] = len(self.order)
        read = (use.input, use.input._version)
        if self._read is None or _storage(self._read[0]) != _storage(read[0]) or self._read[1] != read[1]:
            self.stage, self._read = self.stage + 1, read
        self.stages[key] = self.stage
        self._made[id(use.output)] = (weakref.ref(use.output), key)
        if use.bias is not None:
            self.biases[key] = use.bias
        flaw = _flaw(use, self.twin.parameters)
        if flaw is not None:
            self.flaws.setdefault(name, flaw)

    def norm(self, norm: Norm) -> None:
        made = self._made.get(id(norm.input))
        if made is not None and made[0]() is norm.input:
            self.means[made[1]] = norm.mean
            self.takers.setdefault(_memory(norm.mean), set()).add(made[1][0])
        else:
            self.takers.setdefault(_memory(norm.mean), set()).add("")


def _memory(tensor: Tensor) -> object:
    return _storage(tensor), tensor.storage_offset()


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _flaw(use: Use, parameters: Mapping[str, Tensor]) -> str | None:
    """Why this use is not that of a weight as it is, in a plain product with at most a vector added; None: it is."""
    if use.weight.untyped_storage()._cdata != parameters[use.place.parameter].untyped_storage()._cdata:
        return "its values are computed from other tensors before they are used"
    if use.weight.ndim < 2:
        return "it is a vector"
    matrix = use.matrices().detach()
    added: Tensor | float = 0.0
    if use.bias is not None:
        held = {parameter.untyped_storage()._cdata for parameter in parameters.values()}
        if use.bias.numel() != matrix.shape[:2].numel() or use.bias.untyped_storage()._cdata not in held:
            return f"{use.operation} adds something else than a bias to its product"
        added = use.bias.detach().double().reshape(matrix.shape[0], 1, -1)
    y = targets(use)
    _, rows, some = next(pieces(use, y), (0, None, None))
    if rows is None or some is None or rows.shape[:2] != some.shape[:2]:
        return f"the rows of {use.operation} are not those of its result"
    gap = (rows @ matrix.double().mT + added - some).abs().max().item() if some.numel() else 0.0
    if not gap <= _EXACT.get(y.dtype, 0.1) * max(some.abs().max().item() if some.numel() else 0.0, 1e-30):
        return f"{use.operation} gives something else than the product with it"
    return None


def _consumers(
    name: str, wide: list[Place], narrow: list[Place], seen: _Seen, plan: PruningPlan
) -> list[Consumer]:
    """What can be refitted of one weight: each part of it that operations use."""
    parameter = seen.twin.parameters[name]
    shape = plan.shapes.get(name, tuple(parameter.shape))
    numbers = torch.arange(math.prod(shape), dtype=torch.float64, device=parameter.device).view(shape)
    left = take(numbers, plan.index(name))
    if len(wide) != len(narrow):
        if name not in plan.tensors:
            return []
        raise _Unfit(f"the original uses it {len(wide)} times, the cut network {len(narrow)} times")
    parts: dict[Place, list[int]] = {}
    for number, place in enumerate(narrow):
        parts.setdefault(place, []).append(number)
    pairs = {place: (wide[uses[0]].matrices(numbers), place.matrices(left)) for place, uses in parts.items()}
    cut = {place for place, (whole, some) in pairs.items() if whole.shape[-1] != some.shape[-1]}
    flawed = name in seen.flaws or name in seen.twin.unread
    if flawed and not cut:
        return []
    if name in seen.flaws:
        raise _Unfit(seen.flaws[name])
    if name in seen.twin.unread:
        raise _Unfit(f"{seen.twin.unread[name]} reads it as well")
    used = torch.cat([some.flatten() for _, some in pairs.values()])
    if len(used) != len(torch.unique(used)):
        if not cut:
            return []
        raise _Unfit("several operations use parts of it that overlap")
    labels = {place: name if len(parts) == 1 else f"{name}[{at}]" for at, place in enumerate(parts)}
    return [
        _consumer(
            labels[place],
            place in cut,
            (wide[parts[place][0]], place),
            parts[place],
            _kept(*pairs[place]),
            seen,
        )
        for place in parts
    ]


def _consumer(
    label: str, cut: bool, places: tuple[Place, Place], uses: Sequence[int], kept: Tensor, seen: _Seen
) -> Consumer:
    """One layer with the place that takes its constant: a bias or a running mean that is its own alone."""
    name = places[1].parameter
    biases = {_memory(bias) if (bias := seen.biases.get((name, use))) is not None else None for use in uses}
    if len(biases) > 1:
        raise _Unfit("its uses add different biases")
    bias = seen.biases.get((name, uses[0]))
    means = {_memory(mean): mean for use in uses if (mean := seen.means.get((name, use))) is not None}
    followed = bias is None and len(means) == 1 and all((name, use) in seen.means for use in uses)
    mean = next(iter(means.values())) if followed else None
    takes = bias if bias is not None else mean
    own = takes is not None and seen.takers[_memory(takes)] == {name}
    shift = torch.zeros(kept.shape, dtype=torch.float64, device=kept.device)
    stage = seen.stages[name, uses[0]] if len(uses) == 1 else -1
    parameter = seen.twin.parameters[name]
    mean = mean if own else None
    return Consumer(label, cut, stage, parameter, tuple(uses), kept, *places, bias, mean, own, shift)


def _kept(wide: Tensor, narrow: Tensor) -> Tensor:
    """Which row of the original's matrices ``[G, O, N]`` each row of the cut ones ``[g, o, n]`` comes from."""
    groups, out, width = wide.shape
    row = torch.full((int(wide.max()) + 1,), -1, dtype=torch.int64, device=wide.device)
    row[wide.long().flatten()] = torch.arange(groups * out, device=wide.device).repeat_interleave(width)
    kept = row[narrow.long()]
    if not bool((kept == kept[..., :1]).all()) or bool((kept < 0).any()):
        raise _Unfit("the cut joins inputs of several of its outputs")
    return kept[..., 0]
