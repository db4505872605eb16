"""`rewrite`: a model as a graph that computes the same, and in which every size is a number that can follow a cut."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from structprune.arguments import typed
from structprune.clone import structural_clone
from structprune.comparison import largest_error, widest
from structprune.errors import TraceError
from structprune.inputs import batch_size, map_tensors, normalize_inputs, repeat_batch
from structprune.interrupts import interrupts_kept
from structprune.outputs import output_tensors
from structprune.plan import REMAINING
from structprune.replica import replica
from structprune.rewriting.attention import replace_attention
from structprune.rewriting.exported import exported
from structprune.rewriting.literals import lift_sizes
from structprune.rewriting.module import RewrittenModule
from structprune.rewriting.sizes import write_out_sizes
from structprune.rewriting.symbolic import symbolic
from structprune.trace import run_traced
from structprune.wrappers import refuse_wrapped

__all__ = ["rewrite"]

_EXACT, _SINGLE = 1e-9, 1e-5  # in float64; where the model itself computes something in float32
_AS_IS = 1e-4  # in the model's own dtypes


@typed
def rewrite(model: nn.Module, example_inputs: Any) -> nn.Module:
    """Return a module that computes what ``model`` computes, with nothing of it tied to how the code is written.

    Sizes written as literals (``view(-1, 64 * 16 * 16)``), read from another tensor (``reshape(B, N, C)``) or asserted
    (torch.nn.MultiheadAttention) become integers of their own that a cut can correct; numbers that scale
    (``head_dim ** -0.5``) keep their value. The result is independent of ``model``, has its state_dict names, and
    works in training as in inference. It is a graph: by torch.fx, where layers stay modules, else by torch.export.
    Before it is returned, it is compared with ``model`` in float64, on the example and on another batch size.

    Raises TraceError, with the reasons, where neither gives a graph that computes the same: control flow that depends
    on values, say.

    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    >>> sorted(rewrite(net, torch.zeros(1, 1, 6, 6)).state_dict()) == sorted(net.state_dict())
    True
    """
    refuse_wrapped(model)
    if isinstance(model, RewrittenModule):
        return replica(model, {})
    inputs = normalize_inputs(example_inputs)
    copied = replace_attention(replica(model, {}))
    judge = _Judge(model, inputs)
    reasons = []
    for capture in (symbolic, exported):
        try:
            with interrupts_kept():
                made = _finished(capture, copied, inputs)
            reason = judge.objection(made, strict=capture is symbolic)
        except Exception as error:  # noqa: BLE001 - the boundary around the user's forward under two tracers
            reason = f"{type(error).__name__}: {_first_line(error)}"
        if not reason:
            if hasattr(model, REMAINING):
                vars(made)[REMAINING] = dict(getattr(model, REMAINING))
            return made
        reasons.append(f"{capture.__name__}: {reason}")
    raise TraceError(
        f"{type(model).__name__} cannot be rewritten as a graph. {'; '.join(reasons)}. Prune it without rewrite=True, "
        "which runs the code as it is, or take the control flow that depends on values out of the forward"
    )


def _finished(capture: Callable[..., RewrittenModule], model: nn.Module, inputs: Any) -> RewrittenModule:
    made = capture(model, *inputs)
    if capture is symbolic:
        write_out_sizes(made, inputs)
    lift_sizes(made, inputs)
    for module in made.modules():
        if isinstance(module, torch.fx.GraphModule):
            _tidy(module)
    return made


def _tidy(module: torch.fx.GraphModule) -> None:
    """Take away attributes that are read and not used, and what the trace noted beside its steps: tensors too."""
    for node in reversed(module.graph.nodes):
        node.meta = {}
        if node.op == "get_attr" and not node.users:
            module.graph.erase_node(node)
    module.recompile()


class _Judge:
    """Compares what was made with the original, both in eval mode and in float64, or as they are where the original
    does not run in float64: it makes float32 tensors of its own, say.
    """

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        try:
            self._prepare(model, inputs, widest)
            self.tolerance = _SINGLE if run_traced(self.model, self.inputs).narrow else _EXACT
        except Exception:  # noqa: BLE001 - the boundary around the user's forward: any error it can raise
            run_traced(model, inputs)  # raises TraceError where the forward fails as it is, too
            self._prepare(model, inputs, lambda tensor: tensor)
            self.tolerance = _AS_IS

    def _prepare(self, model: nn.Module, inputs: Any, cast: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.cast = cast
        self.model = _converted(model, cast)
        self.inputs = map_tensors(inputs, cast)
        self.expected = output_tensors(self._outputs(self.model, self.inputs))

    def objection(self, made: nn.Module, strict: bool) -> str:
        """Return what ``made`` does otherwise, "" for nothing; ``strict`` asks for another batch size too."""
        made = _converted(made, self.cast)
        error = largest_error(self.expected, output_tensors(self._outputs(made, self.inputs)))
        if not error <= self.tolerance:
            return f"its outputs differ from the original's by {error:.1e} relative"
        return self._on_another_batch(made) if strict else ""

    def _on_another_batch(self, made: nn.Module) -> str:
        inputs = repeat_batch(self.inputs, batch_size(self.inputs) + 1)
        try:
            expected = output_tensors(self._outputs(self.model, inputs))
        except Exception:  # noqa: BLE001 - the boundary around the user's forward, which may be written for one size
            return ""
        error = largest_error(expected, output_tensors(self._outputs(made, inputs)))
        return (
            ""
            if error <= self.tolerance
            else f"on another batch size its outputs differ by {error:.1e} relative"
        )

    @staticmethod
    def _outputs(model: nn.Module, inputs: Any) -> Any:
        args, kwargs = inputs
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return model(*args, **kwargs)


def _converted(model: nn.Module, cast: Callable[[torch.Tensor], torch.Tensor]) -> nn.Module:
    def copied(tensor: torch.Tensor, _kind: str) -> torch.Tensor:
        new = cast(tensor.detach()).clone()
        return nn.Parameter(new, requires_grad=False) if isinstance(tensor, nn.Parameter) else new

    return structural_clone(model, copied)[0].eval()


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
