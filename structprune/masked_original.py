"""The network without what a plan removes, in its full size: what the pruned one is held to.

Removed slices are overwritten with noise, no contraction listens to removed positions, and every statistic is taken
over the kept ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from structprune import axes
from structprune.assembly import settle_run
from structprune.comparison import largest_error
from structprune.cutting import Cut, positions
from structprune.gathering import removed, take
from structprune.live import LiveReplay
from structprune.outputs import Outputs, output_tensors, output_values
from structprune.plan import PruningPlan
from structprune.records import LAYOUT
from structprune.recovery import cut_by
from structprune.replay import OtherOperations, Replay, noise
from structprune.tensors import named_tensors
from structprune.trace import Run, Tracer, run_traced

__all__ = ["MaskedOriginal", "begin"]


class MaskedOriginal:
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


class LiveMaskedOriginal(MaskedOriginal):
    """The masked original decides for itself what it runs, where its values choose or its control flow reads them."""

    def masked(self, seed: int, observe: Any = None) -> list[torch.Tensor]:
        replay = LiveReplay(self.run.named, self.cut, self._filled(seed))
        run = run_traced(self.reference, self.inputs, replay, self.outputs)
        return output_values(run.kept)

    def first_difference_of_noises(self, tolerance: float) -> str:
        return "the model's outputs"

    def first_difference(self, small: nn.Module, tolerance: float) -> str:
        return "the model's outputs"


def begin(proof: MaskedOriginal) -> tuple[MaskedOriginal, list[torch.Tensor]]:
    """Return a proof that follows the operations as they really run, and its first outputs."""
    try:
        if not proof.run.chooses:
            return proof, proof.masked(seed=1)
    except OtherOperations:  # real tensors took other kernels than meta ones: trace on real ones
        if proof.run.kind != "real":
            run = run_traced(proof.reference, proof.inputs, Tracer("real"), proof.outputs)
            return begin(
                MaskedOriginal(proof.given, proof.reference, proof.inputs, run, proof.plan, proof.outputs)
            )
    live = LiveMaskedOriginal(
        proof.given, proof.reference, proof.inputs, proof.run, proof.plan, proof.outputs
    )
    return live, live.masked(seed=1)


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
