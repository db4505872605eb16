"""The proof: the pruned network computes what the masked original computes.

In float64 and eval mode, on copies:

1. Everything that the plan removes from parameters and buffers is overwritten with noise, and the original is run so
   that no contraction listens to removed positions (they count as zero) and every statistic is taken over the kept
   ones. Two different noises must give the same output: the rest of the network does not listen to what was removed.
2. That output equals the pruned network's.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from structprune.arguments import typed
from structprune.changes import Change, changes_by_axis
from structprune.clone import structural_clone
from structprune.comparison import PRECISIONS, Precision, cast, largest_error
from structprune.cutting import Cut
from structprune.errors import InputError, StructpruneError, TraceError, VerificationError
from structprune.inputs import map_tensors
from structprune.masked_original import MaskedOriginal, begin
from structprune.outputs import Outputs, output_values
from structprune.plan import PruningPlan
from structprune.replay import Replay
from structprune.surgery import check_plan
from structprune.tensors import named_tensors, require_module
from structprune.trace import Run, run_traced

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
    for precision in PRECISIONS:
        try:
            return _prove(original, pruned, plan, example_inputs, precision, outputs)
        except _OriginalFails as failure:  # kernels that take no float64: prove in the widest that they take
            failed = failed or failure.__cause__ or failure  # type: ignore[assignment]
    if isinstance(failed, VerificationError):
        raise failed
    raise VerificationError(
        f"the original fails on the example inputs with {type(failed).__name__}: {failed}"
    ) from failed


_SINGLE = 1e-5  # in float64, where the network itself computes something in float32


_REPORT = "Nothing that must stay is cut, so this is an error in structprune: please report it. "


class _OriginalFails(Exception):
    """The original does not run in this precision, or gives nothing finite."""


def _prove(
    original: nn.Module,
    pruned: nn.Module,
    plan: PruningPlan,
    example_inputs: Any,
    precision: Precision,
    outputs: Outputs,
) -> VerifyReport:
    reference, small = _converted(original, precision), _converted(pruned, precision)
    inputs = _informative(example_inputs, precision)
    try:
        run = run_traced(reference, inputs, outputs=outputs)
        proof, first = begin(MaskedOriginal(original, reference, inputs, run, plan, outputs))
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


def _converted(model: nn.Module, precision: Precision) -> nn.Module:
    clone, _ = structural_clone(model, lambda tensor, _kind: _own(cast(tensor.detach(), precision), tensor))
    return clone.eval()


def _own(tensor: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    copied = tensor.clone() if tensor.data_ptr() == old.data_ptr() else tensor
    return nn.Parameter(copied, requires_grad=False) if isinstance(old, nn.Parameter) else copied


def _informative(example_inputs: Any, precision: Precision) -> Any:
    generator = torch.Generator().manual_seed(0)

    def better(tensor: torch.Tensor) -> torch.Tensor:
        tensor = cast(tensor.detach(), precision)
        plain = tensor.layout == torch.strided and tensor.is_floating_point()
        if plain and tensor.numel() > 1 and bool((tensor == tensor.flatten()[0]).all()):
            return torch.randn(tensor.shape, generator=generator).to(tensor)
        return tensor

    return map_tensors(copy.copy(example_inputs), better)


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


def _changes(run: Run, cut: Cut) -> tuple[Change, ...]:
    found = changes_by_axis(run.context.sites)
    return tuple(dict.fromkeys(change for leaf in cut for change in found.get(leaf, ())))
