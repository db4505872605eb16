"""The proof: the pruned network computes what the masked original computes.

In float64 and eval mode, on copies:

1. Everything that the plan removes from parameters and buffers is overwritten with noise, and the original is run so
   that no contraction listens to removed positions (they count as zero) and every statistic is taken over the kept
   ones. Two different noises must give the same output: the rest of the network does not listen to what was removed.
2. That output equals the pruned network's.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from structprune import axes
from structprune.arguments import typed
from structprune.assembly import settle_run
from structprune.changes import Change, changes_by_axis
from structprune.clone import structural_clone
from structprune.cutting import Cut, positions
from structprune.errors import InputError, StructpruneError, TraceError, VerificationError
from structprune.gathering import removed, take
from structprune.inputs import map_tensors
from structprune.live import LiveReplay
from structprune.outputs import Outputs, output_tensors, output_values
from structprune.plan import PruningPlan
from structprune.recovery import cut_by
from structprune.replay import OtherOperations, Replay, noise
from structprune.surgery import check_plan
from structprune.tensors import named_tensors, require_module
from structprune.trace import Run, Tracer, run_traced
from structprune.tracer import LAYOUT

__all__ = ["Change", "VerifyReport", "verify"]


@dataclass(frozen=True)
class VerifyReport:
    """What was proven, and how exactly.

    ``max_error`` is the largest relative difference between pruned and masked original, ``noise_error`` between two
    different noises in the removed channels; both are at most ``tolerance``. ``changes`` lists the statistics that are
    taken over fewer channels than before.
    """

    max_error: float
    noise_error: float
    tolerance: float
    changes: tuple[Change, ...]

    def __str__(self) -> str:
        text = f"proven: largest relative error {self.max_error:.1e} (at most {self.tolerance:.0e})"
        return text + (f"; {len(self.changes)} statistics over fewer channels" if self.changes else "")


@typed
def verify(
    original: nn.Module,
    pruned: nn.Module,
    plan: PruningPlan,
    example_inputs: Any,
    outputs: Outputs = None,
) -> VerifyReport:
    """Return the report of a proof that ``pruned`` computes what ``original`` computes without the removed channels.

    Both models stay as they are. ``outputs`` are those that the plan was traced with.
    Inputs whose numbers are all the same are replaced by random ones, which show more.
    Raises VerificationError, naming the first layer that differs; PlanError where the plan is not ``original``'s;
    TraceError where its forward draws random numbers, so that no two runs can be compared.
    """
    check_plan(original, plan)
    require_module(pruned)
    if any(tensor.is_meta for tensor in named_tensors(original).values()):
        raise InputError(
            "a model on the meta device has no weights to verify: pass verify=False, or give it weights"
        )
    failed: Exception | None = None
    for precision in _PRECISIONS:
        try:
            return _prove(original, pruned, plan, example_inputs, precision, outputs)
        except _OriginalFails as failure:  # kernels that take no float64: prove in the widest that they take
            failed = failed or failure.__cause__ or failure  # type: ignore[assignment]
    if isinstance(failed, VerificationError):
        raise failed
    raise VerificationError(
        f"the original fails on the example inputs with {type(failed).__name__}: {failed}"
    ) from failed


@dataclass(frozen=True)
class _Precision:
    """A dtype to prove in, and how much two computations may differ there."""

    dtype: torch.dtype | None  # None: each tensor's own
    tolerance: float


_PRECISIONS = (_Precision(torch.float64, 1e-9), _Precision(torch.float32, 1e-4), _Precision(None, 5e-2))
_SINGLE = 1e-5  # in float64, where the network itself computes something in float32


_REPORT = "Nothing that must stay is cut, so this is an error in structprune: please report it. "


class _OriginalFails(Exception):
    """The original does not run in this precision, or gives nothing finite."""


def _prove(
    original: nn.Module,
    pruned: nn.Module,
    plan: PruningPlan,
    example_inputs: Any,
    precision: _Precision,
    outputs: Outputs,
) -> VerifyReport:
    reference, small = _converted(original, precision), _converted(pruned, precision)
    inputs = _informative(example_inputs, precision)
    try:
        run = run_traced(reference, inputs, outputs=outputs)
        proof, first = _begin(_Proof(original, reference, inputs, run, plan, outputs))
        second = proof.masked(seed=2)
    except StructpruneError as error:
        raise (_OriginalFails() if isinstance(error, TraceError) else error) from error
    except Exception as error:  # the boundary around the user's forward
        raise _OriginalFails from error
    narrow = proof.run.narrow and precision.dtype == torch.float64
    tolerance = _SINGLE if narrow else precision.tolerance
    if not any(tensor.numel() for tensor in first):
        raise VerificationError(
            "the model returns nothing on the example inputs that could be compared: give inputs on which it does"
        )
    numbers = [tensor for tensor in first if tensor.is_floating_point() and tensor.numel()]
    if numbers and not any(bool(tensor.isfinite().any()) for tensor in numbers):
        nothing = "no output has a finite number on the example inputs: nothing can be compared on them"
        raise _OriginalFails from VerificationError(nothing)  # masks of a dtype's least number can do that
    noise_error = largest_error(first, second)
    if not noise_error <= tolerance:
        raise VerificationError(
            f"the network listens to removed channels: two fillings of them differ by {noise_error:.1e} relative, "
            f"first in {proof.first_difference_of_noises(tolerance)}. {proof.cut_though_frozen() or _REPORT}"
            "The model given is untouched."
        )
    max_error = largest_error(first, _outputs_of(small, inputs, outputs))
    if not max_error <= tolerance and proof.is_random(first, tolerance):
        raise TraceError(
            "the original's forward draws random numbers in eval mode, so two networks cannot be compared: make it "
            "deterministic (dropout only in training, a generator with a fixed seed), or pass verify=False"
        )
    if not max_error <= tolerance:
        raise VerificationError(
            f"the pruned network differs from the masked original by {max_error:.1e} relative "
            f"(allowed: {tolerance:.0e}), first in {proof.first_difference(small, tolerance)}. "
            f"{proof.cut_though_frozen()}The model given is untouched."
        )
    return VerifyReport(max_error, noise_error, tolerance, _changes(proof.run, proof.cut))


def _begin(proof: _Proof) -> tuple[_Proof, list[torch.Tensor]]:
    """Return a proof that follows the operations as they really run, and its first outputs."""
    try:
        if not proof.run.chooses:
            return proof, proof.masked(seed=1)
    except OtherOperations:  # real tensors took other kernels than meta ones: trace on real ones
        if proof.run.kind != "real":
            run = run_traced(proof.reference, proof.inputs, Tracer("real"), proof.outputs)
            return _begin(_Proof(proof.given, proof.reference, proof.inputs, run, proof.plan, proof.outputs))
    live = _LiveProof(proof.given, proof.reference, proof.inputs, proof.run, proof.plan, proof.outputs)
    return live, live.masked(seed=1)


class _Proof:
    """The runs of the masked original; the removed slices of ``reference``, a copy of ``given``, are overwritten
    each time.
    """

    def __init__(
        self,
        given: nn.Module,
        reference: nn.Module,
        inputs: Any,
        run: Run,
        plan: PruningPlan,
        outputs: Outputs = None,
    ) -> None:
        settle_run(run)
        self.given = given
        self.reference = reference
        self.tensors = named_tensors(reference)
        self.inputs = inputs
        self.run = run
        self.plan = plan
        self.outputs = outputs
        self.cut = cut_by(plan, run)
        counted = [index for index, record in enumerate(run.records) if record.operation not in LAYOUT]
        place = {index: number for number, index in enumerate(counted)}
        self.records = [run.records[index] for index in counted]
        self.operations = [record.operation for record in self.records]
        self.sites = {place[s.index]: s for s in run.context.sites if _touches(s.arguments, self.cut)}

    def masked(self, seed: int, observe: Any = None) -> list[torch.Tensor]:
        """Return the outputs of the masked original with removed channels filled by the noise of ``seed``."""
        generator = self._filled(seed)
        replay = Replay(self.sites, self.cut, generator, self.operations, observe)
        run = run_traced(self.reference, self.inputs, replay, self.outputs)
        if replay.context.index != len(self.operations):
            raise OtherOperations(
                f"{replay.context.index} operations, where the trace had {len(self.operations)}"
            )
        return output_values(run.kept)

    def cut_though_frozen(self) -> str:
        """Return a sentence about something that the plan cuts though the trace says that it must stay, or nothing."""
        for name, dims in self.run.named.items():
            for number, dim in enumerate(dims):
                for leaf in axes.leaves(dim):
                    if leaf in self.cut and leaf.frozen is not None:
                        return (
                            f"The plan cuts dimension {number} of {name!r}, which must stay: {leaf.frozen}. "
                        )
        return ""

    def _filled(self, seed: int) -> torch.Generator:
        """Fill what is removed with noise, in the weights as they were given: a forward may write to its own."""
        generator = torch.Generator().manual_seed(seed)
        given = dict(self.given.named_parameters())
        with torch.no_grad():
            for name, parameter in self.reference.named_parameters():
                parameter.copy_(given[name])
        for name, dims in self.run.named.items():
            _fill_removed(self.tensors[name], dims, self.cut, generator)
        return generator

    def is_random(self, first: list[torch.Tensor], tolerance: float) -> bool:
        """Return whether the masked original gives other outputs under another seed of torch's random numbers."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch.initial_seed() + 1)
            return not largest_error(first, self.masked(seed=1)) <= tolerance

    def first_difference_of_noises(self, tolerance: float) -> str:
        seen: dict[int, list[torch.Tensor]] = {}
        self.masked(1, lambda index, _layer, out: seen.setdefault(index, self._kept_outputs(index, out)))
        return self._compared(seen, lambda observe: self.masked(2, observe), tolerance, True)

    def first_difference(self, small: nn.Module, tolerance: float) -> str:
        seen: dict[int, list[torch.Tensor]] = {}
        self.masked(1, lambda index, _layer, out: seen.setdefault(index, self._kept_outputs(index, out)))

        def again(observe: Any) -> None:
            run_traced(small, self.inputs, Replay({}, {}, torch.Generator(), observe=observe), self.outputs)

        return self._compared(seen, again, tolerance, False)

    def _kept_outputs(self, index: int, out: Any) -> list[torch.Tensor]:
        found = []
        writes = self.records[index].writes if index < len(self.records) else ()
        for tensor, (_, dims, _) in zip(output_tensors(out), writes, strict=False):
            found.append(take(tensor, positions(dims, self.cut)).clone())
        return found

    def _compared(
        self, seen: dict[int, list[torch.Tensor]], again: Any, tolerance: float, select: bool
    ) -> str:
        differing: list[str] = []

        def observe(index: int, layer: str, out: Any) -> None:
            found = self._kept_outputs(index, out) if select else output_tensors(out)
            if not differing and index in seen and not largest_error(seen[index], found) <= tolerance:
                record = self.records[index]
                differing.append(f"layer {layer or '<root>'!r} (operation {record.operation})")

        again(observe)
        return differing[0] if differing else "the model's outputs"


class _LiveProof(_Proof):
    """The masked original decides for itself what it runs, where its values choose or its control flow reads them."""

    def masked(self, seed: int, observe: Any = None) -> list[torch.Tensor]:
        replay = LiveReplay(self.run.named, self.cut, self._filled(seed))
        run = run_traced(self.reference, self.inputs, replay, self.outputs)
        return output_values(run.kept)

    def first_difference_of_noises(self, tolerance: float) -> str:
        return "the model's outputs"

    def first_difference(self, small: nn.Module, tolerance: float) -> str:
        return "the model's outputs"


def _converted(model: nn.Module, precision: _Precision) -> nn.Module:
    clone, _ = structural_clone(model, lambda tensor, _kind: _own(_cast(tensor.detach(), precision), tensor))
    return clone.eval()


def _cast(tensor: torch.Tensor, precision: _Precision) -> torch.Tensor:
    if tensor.is_complex() and precision.dtype == torch.float64:
        return tensor.to(torch.complex128)
    return tensor.to(precision.dtype) if tensor.is_floating_point() and precision.dtype else tensor


def widest(tensor: torch.Tensor) -> torch.Tensor:
    """Return ``tensor`` in double precision where it holds floats or complex numbers, else itself."""
    return _cast(tensor, _PRECISIONS[0])


def _own(tensor: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    copied = tensor.clone() if tensor.data_ptr() == old.data_ptr() else tensor
    return nn.Parameter(copied, requires_grad=False) if isinstance(old, nn.Parameter) else copied


def _informative(example_inputs: Any, precision: _Precision) -> Any:
    generator = torch.Generator().manual_seed(0)

    def better(tensor: torch.Tensor) -> torch.Tensor:
        tensor = _cast(tensor.detach(), precision)
        plain = tensor.layout == torch.strided and tensor.is_floating_point()
        if plain and tensor.numel() > 1 and bool((tensor == tensor.flatten()[0]).all()):
            return torch.randn(tensor.shape, generator=generator).to(tensor)
        return tensor

    return map_tensors(copy.copy(example_inputs), better)


def _touches(arguments: Any, cut: Cut) -> bool:
    return any(leaf in cut for dims in arguments.values() for dim in dims for leaf in axes.leaves(dim))


@torch.no_grad()
def _fill_removed(tensor: torch.Tensor, dims: Any, cut: Cut, generator: torch.Generator) -> None:
    index = positions(dims, cut)
    if any(at.ndim > 1 for at in index.values()):
        tensor.copy_(torch.where(removed(tensor, index), noise(tensor.shape, tensor, generator), tensor))
        return
    for dim, at in index.items():
        gone = torch.as_tensor(np.setdiff1d(np.arange(tensor.shape[dim]), at), device=tensor.device)
        shape = [len(gone) if other == dim else size for other, size in enumerate(tensor.shape)]
        tensor.index_copy_(dim, gone, noise(shape, tensor, generator))


def _outputs_of(small: nn.Module, inputs: Any, outputs: Outputs) -> list[torch.Tensor]:
    replay = Replay({}, {}, torch.Generator())
    try:
        return output_values(run_traced(small, inputs, replay, outputs).kept)
    except StructpruneError:
        raise
    except Exception as error:  # the boundary around the user's forward on the pruned tensors
        raise VerificationError(
            f"the pruned network fails in layer {replay.context.layer or '<root>'!r} "
            f"with {type(error).__name__}: {error}"
        ) from error


def largest_error(expected: list[torch.Tensor], found: list[torch.Tensor]) -> float:
    """Return the largest difference relative to the largest expected number of each tensor; infinite for
    other shapes.
    """
    if len(expected) != len(found):
        return math.inf
    return max((_error(a, b) for a, b in zip(expected, found, strict=True)), default=math.inf)


def _error(a: torch.Tensor, b: torch.Tensor) -> float:
    if a.shape != b.shape:
        return math.inf
    if not (a.is_floating_point() or a.is_complex()):
        return 0.0 if torch.equal(a, b) else math.inf
    a, b = widest(a), widest(b)
    same = (a == b) | (a.isnan() & b.isnan())
    scale = a[a.isfinite()].abs().max().item() if bool(a.isfinite().any()) else 0.0
    difference = torch.where(same, torch.zeros_like(a), a - b).abs()
    if not difference.numel():
        return 0.0
    largest = difference.nan_to_num(nan=math.inf).max().item()
    return largest / scale if scale > 0 else (0.0 if largest == 0 else math.inf)


def _changes(run: Run, cut: Cut) -> tuple[Change, ...]:
    found = changes_by_axis(run.context.sites)
    return tuple(dict.fromkeys(change for leaf in cut for change in found.get(leaf, ())))
