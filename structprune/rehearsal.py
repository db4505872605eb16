"""A rehearsal of the cut on tensors without numbers: does the code do the same once its sizes are smaller?

Most that code does with a size is seen as it happens. What C code does with the digits of an int is not: `1.0 / n`,
`math.log(n)`, `range(n)`. So where a model's own code has been handed sizes, the model is run once more, cut, and held
against the trace: the same calls with the same numbers in them. Which sizes make
the difference is found by halving, and those are frozen.
"""

from __future__ import annotations

import random
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from structprune import axes, edits, layers
from structprune.axes import Atom, Frozen
from structprune.clone import structural_clone
from structprune.constraints import Settlement, involved
from structprune.inputs import map_tensors, normalize_inputs
from structprune.leftovers import forget
from structprune.operands import numbers, on_meta
from structprune.provenance import Comparison, is_library, user_line
from structprune.records import Step
from structprune.rules import lookup_function
from structprune.rules.context import Dims
from structprune.stand_ins import SUBSTITUTES
from structprune.tensors import named_tensors
from structprune.trace import Run, surroundings
from structprune.tracer import READERS, Tracer

__all__ = ["rehearse"]

_SHARES = (0.2, 0.9)
_RUNS = 64
_AS_NUMBER = "the code uses this size as a number"
_OTHER_STEPS = "the code takes other steps where this size changes"
_FAILS = "the code does not follow this size: its forward fails where it is cut"


class _Recorder(Tracer):
    """Keeps what is not to change, and where it stands."""

    def dispatch(self, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.kind == "meta":
            args, kwargs = on_meta(operation, args, kwargs)
        out = self.execute(operation, args, kwargs)
        self.note(out)
        if not self.muted:
            self.steps[-1].numbers.extend(numbers(operation, args, kwargs))
        return out

    def function(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = getattr(function, "__name__", "")
        if name == "__get__" or name in READERS:
            return function(*args, **kwargs)
        self.began(name, args, kwargs)
        self.steps[-1].where = user_line()
        self.muted = lookup_function(function) is not None
        try:
            return function(*args, **kwargs)
        finally:
            self.muted = False


def rehearse(model: nn.Module, example_inputs: Any, run: Run, settled: Settlement) -> bool:
    """Freeze the axes whose cut changes what the code does otherwise than through sizes; return whether any was."""
    handed = run.context.exposed or _own_attributes(model, settled) or _reads_layers(model)
    if run.kind == "real" or not handed:
        return False
    return _Stage(model, example_inputs, run, settled).freeze()


def _own_attributes(model: nn.Module, settled: Settlement) -> bool:
    """Whether an integer that follows a cut belongs to a module of the user's, whose code may do anything with it."""
    owners = {one.module for one, expr in settled.attributes.items() if any(_open(expr))}
    return any(not type(model.get_submodule(name)).__module__.startswith("torch.") for name in owners)


def _reads_layers(model: nn.Module) -> bool:
    """Whether a forward of the user's names what torch's layers call their sizes, as in `self.fc.in_features`."""
    kinds = {type(module) for module in model.modules()}
    own = [kind for kind in kinds if not kind.__module__.startswith("torch.")]
    words = {
        word for kind in own for word in getattr(getattr(kind.forward, "__code__", None), "co_names", ())
    }
    plain = (one for one in model.modules() if type(one) not in own and not parametrize.is_parametrized(one))
    return bool(words) and any(not words.isdisjoint(layers.declared(one)) for one in plain)


def _open(expr: axes.Expr) -> Iterator[Atom]:
    return (leaf for leaf in axes.leaves(expr) if leaf.frozen is None)


class _Stage:
    """Runs of one model under other counts, and what they have in common."""

    def __init__(self, model: nn.Module, example_inputs: Any, run: Run, settled: Settlement) -> None:
        self.model = model
        self.inputs = normalize_inputs(example_inputs)
        self.run = run
        self.settled = settled
        self.runs = 0
        self.names = {id(tensor): name for name, tensor in named_tensors(model).items()}

    def freeze(self) -> bool:
        classes = self._classes()
        frozen = False
        while classes:
            found = self._guilty(classes)
            if found is None:
                break
            guilty, reason = found
            for leaf in (leaf for one in guilty for leaf in one):
                leaf.frozen = reason
            classes = [one for one in classes if one not in guilty]
            frozen = True
        return frozen

    def _classes(self) -> list[tuple[Atom, ...]]:
        """Return the free axes, together where they keep the same number."""
        tied = self.settled.classes()
        found: dict[Atom, list[Atom]] = {}
        atoms = dict.fromkeys(leaf for dims in self.run.named.values() for dim in dims for leaf in _open(dim))
        for leaf in atoms:
            if leaf.size > 1:
                found.setdefault(tied.get(leaf, leaf), []).append(leaf)
        return [tuple(one) for one in found.values()]

    def _guilty(self, classes: list[tuple[Atom, ...]]) -> tuple[list[tuple[Atom, ...]], Frozen] | None:
        """Return the fewest classes that halving finds to change the run, with the reason; None where nothing does."""
        reason = self._difference(classes)
        if reason is None or len(classes) == 1 or self.runs > _RUNS:
            return None if reason is None else (classes, reason)
        middle = len(classes) // 2
        for half in (classes[:middle], classes[middle:]):
            found = self._guilty(half)
            if found is not None:
                return found
        return classes, reason  # only together

    def _difference(self, classes: list[tuple[Atom, ...]]) -> Frozen | None:
        """Return how a run differs in which these classes are cut; None where it does not."""
        counts = self._counts(classes)
        self.runs += 1
        try:
            steps = self._steps(counts)
        except Exception as error:  # noqa: BLE001 - the user's forward under a cut: that it fails is the finding
            where = _line(error)
            traceback.clear_frames(error.__traceback__)
            return Frozen(_FAILS, where)
        for before, after in zip(self.run.steps, steps, strict=False):
            if before.function != after.function:
                return Frozen(_OTHER_STEPS, after.where)
            if repr(before.numbers) != repr(after.numbers):  # by their digits, so that nan is nan
                return Frozen(_AS_NUMBER, after.where)
        return Frozen(_OTHER_STEPS) if len(self.run.steps) != len(steps) else None

    def _counts(self, classes: list[tuple[Atom, ...]]) -> dict[Atom, int]:
        """Return smaller counts under which every comparison in the code turns out as before."""
        generator = random.Random(len(classes))
        drawn = {one: round(one[0].size * generator.uniform(*_SHARES)) for one in classes}
        counts = {leaf: min(max(kept, 1), leaf.size - 1) for one, kept in drawn.items() for leaf in one}
        home = {leaf: one for one in classes for leaf in one}
        while flipped := [c for c in self.settled.comparisons if not self._holds(c, counts)]:
            behind = involved(self.settled, (flipped[0].left, flipped[0].right))
            moved = [leaf for one in behind for leaf in home.get(one, ()) if counts[leaf] < leaf.size]
            if not moved:
                break
            for leaf in moved:  # nearer to the whole, and at last not cut at all
                counts[leaf] += max(1, (leaf.size - counts[leaf]) // 4)
        return {leaf: count for leaf, count in counts.items() if count < leaf.size}

    def _holds(self, comparison: Comparison, counts: Mapping[Atom, int]) -> bool:
        left, right = (
            node.value(counts, self.settled.attributes) for node in (comparison.left, comparison.right)
        )
        return comparison.function(left, right) == comparison.truth

    def _steps(self, counts: Mapping[Atom, int]) -> list[Step]:
        replace, admit, mode = SUBSTITUTES[self.run.kind]()

        def small(tensor: torch.Tensor, kind: str) -> torch.Tensor:
            name = self.names.get(id(tensor))
            dims = self.run.named[name] if name is not None else ()
            new: torch.Tensor = replace(_narrowed(tensor, dims, counts), kind)
            return new

        clone, _ = structural_clone(self.model, small)
        self._edit(clone, counts)
        args, kwargs = map_tensors(self.inputs, admit)
        recorder = _Recorder(self.run.kind)
        clone.eval()  # not under the recorder: a module's own train() may call functions of torch
        try:
            with surroundings(recorder, mode):
                clone(*args, **kwargs)
        finally:
            del clone, args, kwargs
            forget(recorder.made)
        return recorder.steps

    def _edit(self, clone: nn.Module, counts: Mapping[Atom, int]) -> None:
        for attribute, expr in self.settled.attributes.items():
            new = axes.size_under(expr, counts)
            if new != attribute.number:
                edits.write(clone.get_submodule(attribute.module), attribute.path, new, [])
        if counts:
            for name, module in self.model.named_modules():
                layers.refresh(clone.get_submodule(name), layers.truthful(module))


def _narrowed(tensor: torch.Tensor, dims: Dims, counts: Mapping[Atom, int]) -> torch.Tensor:
    """Return a tensor of the size that is left, laid out in memory in the same order."""
    view = tensor.detach()
    for axis, dim in enumerate(dims):
        size = axes.size_under(dim, counts)
        if size != dim.size:
            view = view.narrow(axis, 0, size)
    if view.shape == tensor.shape:
        return tensor
    new = torch.empty_like(view, device="meta" if tensor.is_meta else None)
    return nn.Parameter(new, requires_grad=False) if isinstance(tensor, nn.Parameter) else new


def _line(error: BaseException) -> str:
    """Return ``file.py:12`` of the innermost line of the user's that an error came through."""
    found = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        if not is_library(frame.f_code.co_filename):
            found = f"{frame.f_code.co_filename.rsplit('/', 1)[-1]}:{line}"
    return found
