"""`refit`: what can be won back from calibration data after a cut, before any training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from numbers import Real
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from structprune.arguments import typed
from structprune.errors import InputError, PlanError
from structprune.importance.batches import Batch
from structprune.observe import Twin
from structprune.outputs import Outputs, chosen_outputs, output_tensors
from structprune.plan import PruningPlan
from structprune.refit.batches import Batches
from structprune.refit.consumers import Consumer
from structprune.refit.fold import fold
from structprune.refit.lstsq import refit_consumers
from structprune.refit.norms import RunningNorm, estimate_norms, running_norms
from structprune.refit.report import LayerRefit, RefitReport, StepReport
from structprune.refit.survey import survey
from structprune.replica import recompute, replica
from structprune.surgery import check_plan
from structprune.tensors import named_tensors, require_module

__all__ = ["STEPS", "refit", "steps_of", "transfer"]

STEPS = ("fold", "consumers", "lstsq", "bn")
"""What `refit` can do, in this order; "all" is each of them but "consumers", which "lstsq" holds."""


@typed
def refit(
    original: nn.Module,
    pruned: nn.Module,
    plan: PruningPlan,
    calibration: Iterable[Any],
    steps: str | Sequence[str] = "all",
    *,
    ridge: float | Sequence[float] = (1e-4, 1e-3, 1e-2, 1e-1),
    memory_bytes: int = 4 << 30,
    outputs: Outputs = None,
    progress: Callable[[int, int], None] | None = None,
) -> RefitReport:
    """Bring ``pruned`` closer to ``original`` on calibration inputs, without labels or training, and return how close
    it came after each step. ``pruned`` is what ``plan`` makes of ``original``; only its numbers change, in place.

    ``calibration`` is an iterable of batches, the same in every pass: each what `prune` takes as example inputs, or a
    pair (inputs, target); two arguments without a target are ``((a, b), None)``. A lone tensor is split into batches,
    and an iterator that can be read only once is kept in memory, up to 1 GiB. ``steps`` are some of "fold" (removed
    channels' mean share goes to their consumers' biases), "consumers" (the weights whose inputs are cut are refitted by
    least squares), "lstsq" (these and every layer behind them) and "bn" (batch norms' statistics are estimated anew),
    or "all". Each layer takes one pass over the data through the pruned network; the original runs once for as many
    layers as its outputs at them can be kept for.

    A quarter of the data is held back: a layer whose outputs get worse on it keeps its weights, and a step after which
    the network's outputs are worse, or not finite, is taken back. ``ridge``, relative to the mean diagonal of the Gram
    matrix, holds weights to what they were; of several the best on held-back data is taken. ``memory_bytes`` bounds the
    sums of one layer and the original's outputs that are kept, together; a quarter of it at most is for these.
    ``outputs`` are those that the plan was traced with; ``progress(done, total)`` is called after each layer. No bias
    is made where there is none, so that the state_dict keeps its names: a batch norm that follows takes the constant,
    or nothing does.

    Raises InputError for calibration data or steps that do not fit, PlanError where the plan is not ``original``'s, or
    ``pruned`` not its result. If it raises, or is interrupted, ``pruned`` is as it was.

    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> import structprune as sp
    >>> result = sp.prune(net, torch.zeros(1, 4), sp.Budget(channels=0.5))
    >>> report = refit(net, result.model, result.plan, torch.randn(256, 4))
    >>> report.steps[-1].error < report.steps[0].error
    True
    """
    check_plan(original, plan)
    _check_pruned(original, pruned, plan)
    wanted = steps_of(steps)
    ridges = _ridges(ridge)
    if not isinstance(memory_bytes, Real) or not memory_bytes >= 0:
        raise InputError(f"{memory_bytes=}: expected a number of bytes from 0 up")
    with torch.random.fork_rng(devices=[]):
        batches = Batches(calibration, original)
        work = replica(pruned, {})
        recompute(work)
        refitting = _Refit(Twin(original), Twin(work), plan, batches, outputs)
        report = refitting.run(wanted, ridges, memory_bytes, progress)
    transfer(refitting.small.module, pruned, refitting.written())
    return report


class _Refit:
    """One refit under way, on a copy of the pruned network."""

    def __init__(
        self, original: Twin, small: Twin, plan: PruningPlan, batches: Batches, outputs: Outputs
    ) -> None:
        self.original, self.small, self.plan = original, small, plan
        self.batches, self.outputs = batches, outputs
        self.steps: list[StepReport] = []
        self.consumers: list[Consumer] = []
        self.done: list[LayerRefit] = []
        self.left: dict[str, str] = {}
        self.norms: list[RunningNorm] = []

    def run(
        self,
        wanted: Sequence[str],
        ridges: Sequence[float],
        memory_bytes: int,
        progress: Callable[[int, int], None] | None,
    ) -> RefitReport:
        original, small, batches = self.original, self.small, self.batches
        self.steps.append(self._measured("cut"))
        first, _ = next(iter(batches))
        if {"fold", "consumers", "lstsq"} & set(wanted):
            self.consumers, self.left = survey(original, small, self.plan, first)
        if "fold" in wanted:
            index = {one.parameter: self.plan.index(one.parameter) for one in self.consumers}
            with self._step("fold"):
                self.done += fold(original, small, self.consumers, index, batches)
        for step in ("consumers", "lstsq"):
            if step in wanted:
                layers = [one for one in self.consumers if one.cut or step == "lstsq"]
                bounds = (ridges, memory_bytes, self.left, progress)
                with self._step(step):
                    self.done += refit_consumers(step, original, small, layers, batches, *bounds)
        if "bn" in wanted:
            self.norms = running_norms(small, first)
        if self.norms:
            with self._step("bn"):
                estimate_norms(small, self.norms, batches)
        norms = tuple(norm.name for norm in self.norms if self.steps[-1].taken)
        return RefitReport(tuple(self.steps), tuple(self.done), norms, tuple(self.left.items()), str(batches))

    def written(self) -> set[str]:
        """The names of the tensors that a step may have written to; a forward writes to copies of its own."""
        names = {id(tensor): name for name, tensor in named_tensors(self.small.module).items()}
        means = [one.mean for one in self.consumers if one.mean is not None]
        buffers = [*means, *(tensor for norm in self.norms for tensor in (norm.mean, norm.var))]
        return set(self.small.parameters) | {names[id(buffer)] for buffer in buffers}

    @contextmanager
    def _step(self, name: str) -> Iterator[None]:
        """Measure what a step gives, and take it back where the outputs' error rises."""
        tensors = named_tensors(self.small.module)
        before = {each: tensor.detach().clone() for each, tensor in tensors.items()}
        shifts = [one.shift for one in self.consumers]
        yield
        report = self._measured(name)
        best = [step for step in self.steps if step.taken][-1]
        if not (math.isfinite(report.error) and report.error <= best.error):
            report = replace(report, taken=False)
            with torch.no_grad():
                for each, values in before.items():
                    tensors[each].copy_(values)
            for one, shift in zip(self.consumers, shifts, strict=True):
                one.shift = shift
        self.steps.append(report)

    def _measured(self, step: str) -> StepReport:
        """How far the outputs are from the original's where these are finite, on the batches held back (on all, where
        none is); infinitely far where they are not finite there.
        """
        squares, whole, cosines, given, finite = 0.0, 0.0, list[float](), 0, 0
        for batch, held in self.batches:
            if held or not self.batches.held:
                pairs = (self._run(twin, batch) for twin in (self.original, self.small))
                for a, b in zip(*pairs, strict=True):
                    known = a.isfinite()
                    given, finite = given + known.numel(), finite + int(known.sum())
                    a, b = a.where(known, 0), b.where(known, 0)
                    squares += (a - b).square().sum().item()
                    whole += a.square().sum().item()
                    cosines += F.cosine_similarity(a, b, dim=1).tolist()
        if given and not finite:
            raise InputError(
                "the original gives no finite number on calibration: check its weights and the data"
            )
        if not math.isfinite(squares):
            return StepReport(step, math.inf, math.nan)
        error = math.sqrt(squares / whole) if whole else (math.inf if squares else 0.0)
        return StepReport(step, error, sum(cosines) / len(cosines) if cosines else math.nan)

    def _run(self, twin: Twin, batch: Batch) -> list[Tensor]:
        """What a network gives that holds numbers, ``[samples, numbers]``, float64."""
        result = chosen_outputs(batch.through(twin), self.outputs)
        found = [t for t in output_tensors(result) if t.is_floating_point() and t.ndim and t.numel()]
        return [t.double().reshape(t.shape[0] if t.ndim > 1 else 1, -1) for t in found]


@torch.no_grad()
def transfer(source: nn.Module, target: nn.Module, names: Iterable[str] | None = None) -> None:
    """Copy the numbers of named tensors (None: all) from a network into another of the same sizes; all or none."""
    new, old = named_tensors(source), named_tensors(target)
    changed = [name for name in (new if names is None else names) if not torch.equal(new[name], old[name])]
    before = {name: old[name].detach().clone() for name in changed}
    try:
        for name in changed:
            old[name].copy_(new[name])
    except BaseException:
        for name, values in before.items():
            old[name].copy_(values)
        raise
    recompute(target)


def _check_pruned(original: nn.Module, pruned: nn.Module, plan: PruningPlan) -> None:
    require_module(pruned)
    tensors = named_tensors(pruned)
    for name in plan.tensors:
        if name not in tensors or tuple(tensors[name].shape) != plan.new_shape(name):
            raise PlanError(
                f"pruned is not what the plan makes of original: tensor {name!r} has another shape there"
            )
    if any(tensor.is_meta for tensor in (*tensors.values(), *named_tensors(original).values())):
        raise InputError("a model on the meta device has no weights to refit: load them first")


def steps_of(steps: str | Sequence[str]) -> tuple[str, ...]:
    """The steps that are meant, by name; raises InputError for an unknown one."""
    if not isinstance(steps, Iterable):
        raise InputError(f"refit steps are {steps!r}: expected 'all', or some of {', '.join(STEPS)}")
    wanted = (
        ("fold", "lstsq", "bn") if steps == "all" else (steps,) if isinstance(steps, str) else tuple(steps)
    )
    unknown = [step for step in wanted if step not in STEPS]
    if unknown:
        raise InputError(f"refit step {unknown[0]!r}: expected 'all', or some of {', '.join(STEPS)}")
    return wanted


def _ridges(ridge: float | Sequence[float]) -> tuple[float, ...]:
    ridges = tuple(ridge) if isinstance(ridge, Iterable) else (ridge,)
    if not ridges or not all(isinstance(each, Real) and 0 <= each < math.inf for each in ridges):
        raise InputError(f"{ridge=}: expected a number from 0 up, or several")
    return ridges
