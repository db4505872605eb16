"""From one traced run to the dependency graph: demands settled, channels told from other axes, groups named."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from torch import nn

from structprune import axes
from structprune.axes import Atom, Expr, Frozen, Prod, Sum
from structprune.changes import changes_by_axis
from structprune.constraints import Settlement, settle
from structprune.cutting import partner, places
from structprune.graph import ChannelGroup, DependencyGraph, Member
from structprune.outputs import Outputs
from structprune.plan import REMAINING
from structprune.ragged import outer_axes
from structprune.recognition import recognise
from structprune.rehearsal import rehearse
from structprune.tensors import fingerprint, slots, stored_slots
from structprune.trace import Run, run_traced
from structprune.wrappers import refuse_wrapped

__all__ = ["trace"]

_OUTPUT = Frozen("model output")
Outer = Mapping[Atom, tuple[Atom, ...]]


def trace(model: nn.Module, example_inputs: Any, outputs: Outputs = None) -> DependencyGraph:
    """Return the dependency graph of ``model``: which channels belong together, found by one run without arithmetic.

    ``example_inputs`` is one tensor, a tuple of positional arguments or a dict of keyword arguments. The model, its
    flags and the random state stay as they are. Raises TraceError where the forward fails or the model is wrapped.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> [(g.name, g.size) for g in trace(net, torch.zeros(1, 4)).groups if g.frozen is None]
    [('0', 8)]
    """
    refuse_wrapped(model)
    run = run_traced(model, example_inputs, outputs=outputs)
    settled = settle_run(run)
    if rehearse(model, example_inputs, run, settled):
        settled = settle_run(run)
    return graph_of(run, settled, model, outer_axes(run))


def assemble(run: Run, model: nn.Module) -> DependencyGraph:
    """Return the graph of a traced run."""
    settled = settle_run(run)
    return graph_of(run, settled, model, outer_axes(run))


def graph_of(
    run: Run, settled: Settlement, model: nn.Module, outer: Outer = MappingProxyType({})
) -> DependencyGraph:
    """Return the graph of a run whose axes are final; ``outer`` are the axes over which each may be ragged."""
    # not named_parameters(): a wrapper may leave its own name out there
    parameters = frozenset(slot.name for slot in slots(model) if slot.kind == "parameter")
    present = getattr(model, REMAINING, {})
    stored = {name: slot.tensor.element_size() for name, slot in stored_slots(model).items()}
    return DependencyGraph(
        _groups(run, settled, outer), run, settled, fingerprint(model), parameters, present, stored
    )


def settle_run(run: Run) -> Settlement:
    """Return what holds for every cut of a traced run; its axes are final afterwards."""
    for dims in run.outputs:
        for dim in dims:
            axes.freeze(dim, _OUTPUT)
    return settle(run.context.ledger, lambda: _freeze_what_is_no_channel(run))


def _freeze_what_is_no_channel(run: Run) -> bool:
    """A channel is produced by a layer and contracted away again; other axes are tables, or lead nowhere."""
    produced = _leaves(run.context.produced)
    consumed = _leaves(run.context.consumed)
    used = _leaves(dim for name, dims in run.named.items() if name not in run.unused for dim in dims)
    changed = False
    for leaf in _leaves(dim for dims in run.named.values() for dim in dims):
        if leaf.frozen is None and not (leaf in produced and leaf in consumed):
            does = "produces" if leaf not in produced else "reads"
            reason = f"no layer {does} these positions" if leaf in used else "not used by this forward"
            leaf.frozen = Frozen(reason)
            changed = True
    return changed


def _leaves(exprs: Iterable[Expr]) -> dict[Atom, None]:
    seen: dict[int, Expr] = {}
    for expr in exprs:
        expr = axes.normal(expr)
        seen.setdefault(id(expr), expr)
    return {leaf: None for expr in seen.values() for leaf in axes.leaves(expr)}


def _groups(run: Run, settled: Settlement, outer: Outer) -> tuple[ChannelGroup, ...]:
    found: dict[Atom, list[Member]] = {}
    known: dict[int, tuple[Expr, Any]] = {}
    for name, dims in run.named.items():
        for number, raw in enumerate(dims):
            expr = axes.normal(raw)
            if id(expr) not in known:
                known[id(expr)] = (expr, axes.members(expr))
            role = "kernel" if _is_kernel(expr) else run.context.roles.get(id(raw), "affine")
            for n, (leaf, index) in enumerate(known[id(expr)][1] if role != "kernel" else ()):
                beside = _outer(dims, number, n, outer[leaf]) if leaf in outer else ()
                found.setdefault(leaf, []).append(Member(name, number, index, role, beside))
    names = _names(found)
    classes = settled.classes()
    rivals = _rivals(expr for expr, _ in known.values())
    secondary = set(rivals) - _preferred(rivals)
    kinds, changes = recognise(run), changes_by_axis(run.context.sites)
    ties: dict[Atom, int] = {}
    return tuple(
        ChannelGroup(
            names[leaf],
            leaf.size,
            tuple(members),
            leaf.frozen,
            ties.setdefault(classes.get(leaf, leaf), len(ties)),
            leaf not in secondary,
            leaf,
            by=tuple(names[other] for other in outer.get(leaf, ())),
            rows=math.prod(other.size for other in outer.get(leaf, ())),
            kind=kinds[leaf],
            rivals=tuple(names[other] for other in rivals.get(leaf, ())),
            changes=changes.get(leaf, ()),
        )
        for leaf, members in found.items()
    )


def _outer(
    dims: Sequence[Expr], dim: int, number: int, outer: Sequence[Atom]
) -> tuple[tuple[int, np.ndarray], ...]:
    """Return where the axes ``outer`` of the atom ``number`` of a dimension lie, and their index at each position."""
    found = places(dims)
    atoms = [n for n, place in enumerate(found) if isinstance(place.leaf, Atom)]
    own = [n for n in atoms if found[n].dim == dim][number]
    at = (partner(found, own, leaf) for leaf in outer)
    index = dict(zip(atoms, (index for one in dims for _, index in axes.members(one)), strict=True))
    return tuple((found[n].dim, index[n]) for n in at if n is not None)


def _is_kernel(expr: Expr) -> bool:
    return isinstance(expr, Atom) and expr.frozen is axes.KERNEL


def _names(found: dict[Atom, list[Member]]) -> dict[Atom, str]:
    """A group goes by the layer that produces it; where several do, they are numbered."""
    base = {leaf: _layer(members) for leaf, members in found.items()}
    shared: dict[str, list[Atom]] = {}
    for leaf, name in base.items():
        shared.setdefault(name, []).append(leaf)
    taken = {name for name, atoms in shared.items() if len(atoms) == 1}
    names: dict[Atom, str] = {}
    for name, atoms in shared.items():
        number = 0
        for leaf in atoms:
            names[leaf] = name
            while len(atoms) > 1 and (names[leaf] == name or names[leaf] in taken):
                names[leaf] = f"{name}[{number}]"
                number += 1
            taken.add(names[leaf])
    return names


def _layer(members: list[Member]) -> str:
    chosen = next((m for m in members if m.role == "out"), None)
    if chosen is None:
        member = members[0]
        return f"{member.tensor.removesuffix('.weight')}.in" if member.role == "in" else member.tensor
    return chosen.tensor.removesuffix(".weight")


def _rivals(exprs: Iterable[Expr]) -> dict[Atom, dict[Atom, None]]:
    """Return for each free factor of a dimension the other ones."""
    rivals: dict[Atom, dict[Atom, None]] = {}
    for expr in exprs:
        for group in _products(expr):
            opened = [_open(item) for item in group]
            for number, factor in enumerate(opened):
                others = [leaf for i, item in enumerate(opened) if i != number for leaf in item]
                for leaf in factor:
                    rivals.setdefault(leaf, {}).update((other, None) for other in others if other is not leaf)
    return rivals


def _preferred(rivals: Mapping[Atom, Iterable[Atom]]) -> set[Atom]:
    """Return the factors that are cut by default, no two of them of one dimension: the others stay whole."""
    chosen: set[Atom] = set()
    for leaf in sorted(rivals, key=lambda leaf: (-leaf.size, leaf.uid)):
        if chosen.isdisjoint(rivals[leaf]):
            chosen.add(leaf)
    return chosen


def _open(expr: Expr) -> list[Atom]:
    return [leaf for leaf in axes.leaves(expr) if leaf.frozen is None]


def _products(expr: Expr) -> Iterator[tuple[Expr, ...]]:
    expr = axes.normal(expr)
    if isinstance(expr, Prod):
        yield expr.factors
        for item in expr.factors:
            yield from _products(item)
    elif isinstance(expr, Sum):
        for part in expr.parts:
            yield from _products(part)
