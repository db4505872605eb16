"""One run of a model without arithmetic: every tensor dimension gets an axis expression.

The run uses meta tensors, which hold no memory; where a model needs devices it uses fake tensors, and where it reads
values the real ones.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from structprune import axes
from structprune.axes import Const
from structprune.caches import fresh_results
from structprune.clone import structural_clone
from structprune.errors import InputError, TraceError
from structprune.inputs import map_tensors, normalize_inputs, tensors_in
from structprune.interrupts import interrupts_kept
from structprune.leftovers import forget
from structprune.outputs import Outputs, chosen_outputs, output_integers, output_tensors
from structprune.provenance import TracedInt
from structprune.records import Held, Record, Step, operations_digest
from structprune.routing import CHOICES, Rerouted, freeze_siblings
from structprune.rules import Context
from structprune.rules.context import Dims, constants, iter_tensors
from structprune.rules.scales import factors_of
from structprune.stand_ins import SUBSTITUTES, random_state, transparent_functionals
from structprune.tensors import slots
from structprune.tracer import INPUT, RuleError, Tracer
from structprune.watching import watching

__all__ = ["Record", "Run", "Tracer", "run_traced", "surroundings"]

_TURNS = 16  # runs with other choices, at most, before what is still not chosen freezes its siblings


@dataclass(slots=True)
class Run:
    """What one traced run found out."""

    context: Context
    named: dict[str, Dims]
    outputs: tuple[Dims, ...]
    records: list[Record]
    kind: str
    narrow: bool
    unused: frozenset[str]
    kept: list[Any] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    turned: list[Run] = field(default_factory=list)  # the runs with other choices
    given: tuple[Held, ...] = ()  # the model's inputs
    returned: frozenset[int] = frozenset()  # the storages of its outputs
    operations: str = ""  # the digest of what is done to the inputs; none where values may have a say in it

    @property
    def chooses(self) -> bool:
        """Whether values may decide which layers run: it ran on real ones, and chose the best of some scores."""
        return self.kind == "real" and any(record.operation in CHOICES for record in self.records)


def run_traced(
    model: nn.Module, example_inputs: Any, tracer: Tracer | None = None, outputs: Outputs = None
) -> Run:
    """Return what a run of ``model`` says about its dimensions: on meta tensors if it can, else on fake
    or real ones.

    ``outputs`` is the part of the forward's result that counts.
    """
    args, kwargs = normalize_inputs(example_inputs)
    sizes = [tuple(tensor.shape) for tensor in tensors_in((args, kwargs)) if tensor.ndim]
    if sizes and all(shape[0] == 0 for shape in sizes):
        raise InputError(f"no samples in the example input: its shape is {list(sizes[0])}; give at least one")
    if tracer is not None:
        run = _run(model, args, kwargs, tracer, outputs)
        return _reach(model, args, kwargs, run, outputs) if type(tracer) is Tracer else run
    first: Exception | None = None
    # A cache on the model may be keyed by device: only fake tensors, which name the real one, find what it holds.
    kinds: dict[int, str] = {}
    for slot in slots(model):
        kinds.setdefault(id(slot.tensor), slot.kind)
    cached = "attribute" in kinds.values()
    for kind in ("fake", "real") if cached else ("meta", "fake", "real"):
        if kind == "real" and any(p.is_meta for p in model.parameters()):
            break
        tracer = Tracer(kind)
        try:
            return _reach(model, args, kwargs, _run(model, args, kwargs, tracer, outputs), outputs)
        except (RuleError, InputError):
            raise
        except Exception as error:  # noqa: BLE001 - the public boundary around the user's forward: any error it can raise
            first = error if first is None or kind == "real" else first
            traceback.clear_frames(error.__traceback__)
            tracer.context.dims.clear()
            tracer.context.live.clear()
            tracer.context.derived.clear()
            tracer.context.factors.clear()
            forget(tracer.made)
    assert first is not None
    raise TraceError(
        f"the model's forward failed on the example inputs with {type(first).__name__}: {first}. "
        "Check that model(*example_inputs) runs by itself in eval mode."
    ) from first


def _reach(model: nn.Module, args: Any, kwargs: Any, run: Run, outputs: Outputs) -> Run:
    """Let a run whose steps depend on values learn about the layers that those values have not chosen."""
    if not run.unused or run.kind != "real":
        return run
    main = run.context
    for turn in range(_TURNS if run.chooses else 0):
        tracer = Rerouted(turn, run.named)
        main.ledger.open = True
        tracer.context.ledger, tracer.context.roles = main.ledger, main.roles
        tracer.context.produced, tracer.context.consumed = main.produced, main.consumed
        try:
            other = _run(model, args, kwargs, tracer, outputs)
        except RuleError:
            raise
        except Exception:  # noqa: BLE001 - the user's forward, which may not bear such a choice: siblings freeze instead
            break
        finally:
            main.ledger.open = False
        before, run.unused = run.unused, run.unused & other.unused
        run.outputs += other.outputs
        run.turned.append(other)
        if turn and run.unused == before:
            break
    freeze_siblings(model, run.named, run.unused)
    return run


def _run(model: nn.Module, args: Any, kwargs: Any, tracer: Tracer, outputs: Outputs) -> Run:
    replace, admit, mode = SUBSTITUTES[tracer.kind]()
    context = tracer.context
    with torch.inference_mode(False):  # operations on tensors that were made in it are not taken apart
        clone, tensors = structural_clone(model, replace, context.ledger)
        args, kwargs = map_tensors((args, kwargs), admit)
    named = tracer.named
    if named is None:
        named = {name: tuple(axes.atom(size) for size in tensor.shape) for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        context.dims[tensor] = named[name]
    context.factors.update(factors_of(tensors, named))
    for tensor in tensors_in((args, kwargs)):
        context.dims[tensor] = tuple(Const(size, INPUT) for size in tensor.shape)
        context.live[tensor] = 0
    given = tuple(tracer.places.held(tensor) for tensor in tensors_in((args, kwargs)))
    clone.eval()
    _follow_layers(clone, context)
    with interrupts_kept(), surroundings(tracer, mode), fresh_results(clone):
        result = chosen_outputs(clone(*args, **kwargs), outputs)
    for number in output_integers(result):
        if isinstance(number, TracedInt):  # a size that the caller gets to see
            context.ledger.number(number)
    context.ledger.open = False
    found = tuple(context.dims.get(tensor) or constants(tensor) for tensor in output_tensors(result))
    returned = frozenset(map(tracer.places.of, output_tensors(result)))
    unused = frozenset(name for name, tensor in tensors.items() if id(tensor) not in tracer.read)
    run = Run(
        context,
        named,
        found,
        tracer.records,
        tracer.kind,
        tracer.narrow,
        unused,
        given=given,
        returned=returned,
    )
    if tracer.kind == "real":
        run.kept.append(result)
        handed = {id(held) for tensor in output_tensors(result) for held in (tensor, tensor._base)}
        del clone, args, kwargs, tensors, tensor
        forget([made for made in tracer.made if id(made()) not in handed])
        return run
    run.steps, run.operations = tracer.steps, operations_digest(tracer.steps)
    del clone, result, args, kwargs, tensors, tensor
    context.dims.clear()
    context.live.clear()
    context.derived.clear()
    context.factors.clear()
    forget(tracer.made)
    return run


@contextmanager
def surroundings(tracer: Tracer, mode: AbstractContextManager[Any]) -> Iterator[None]:
    """Run what is inside under ``tracer``: no gradients, no fused kernels, the random state put back."""
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        mode,
        transparent_functionals(),
        random_state(tracer.kind),
        watching(tracer),
    ):
        yield


def _follow_layers(clone: nn.Module, context: Context) -> None:
    for name, module in clone.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue

        def enter(_module: Any, _args: Any, name: str = name) -> None:
            stack.append(context.layer)
            context.layer = name

        def leave(_module: Any, _args: Any, out: Any) -> None:
            name, context.layer = context.layer, stack.pop()
            tensor = next(iter_tensors((out,)), None)
            if tensor is not None:
                context.results.setdefault(name, []).append(context.dims.get(tensor) or constants(tensor))

        module._forward_pre_hooks[-1] = enter
        module._forward_pre_hooks.move_to_end(-1, last=False)
        module._forward_hooks[-1] = leave
    stack: list[str] = []
