"""Engines: who says which channels belong together. What follows, from scores to the proof, is the same for all.

``"structprune"`` infers it from one run of the model (`structprune.assembly`). ``"torch-pruning"`` takes it from that
package's dependency graph, for people who have customised pruners registered there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from structprune import assembly
from structprune.arguments import typed
from structprune.engines.by_torch_pruning import trace_by_torch_pruning
from structprune.errors import InputError
from structprune.graph import DependencyGraph
from structprune.outputs import Outputs

__all__ = ["ENGINES", "trace"]

ENGINES = ("structprune", "torch-pruning")


@typed
def trace(
    model: nn.Module,
    example_inputs: Any,
    engine: str = "structprune",
    engine_options: Mapping[str, Any] | None = None,
    outputs: Outputs = None,
) -> DependencyGraph:
    """Return the dependency graph of ``model``: which channels belong together, found by one run without arithmetic.

    ``example_inputs`` is one tensor, a tuple of positional arguments or a dict of keyword arguments. The model, its
    flags and the random state stay as they are. ``outputs`` names the parts of the forward's result that count (all by
    default): what else it returns, such as a cache, may get smaller.
    With ``engine="torch-pruning"`` the groups are those of
    `torch_pruning.DependencyGraph`, and ``engine_options`` what its pruners take: customized_pruners,
    unwrapped_parameters, ignored_layers, root_module_types, in_channel_groups, out_channel_groups, num_heads,
    forward_fn, output_transform, verbose. Raises TraceError where the forward fails or the model is wrapped, InputError
    for an unknown engine or option.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> [(g.name, g.size) for g in trace(net, torch.zeros(1, 4)).groups if g.frozen is None]
    [('0', 8)]
    """
    if engine == "torch-pruning":
        return trace_by_torch_pruning(model, example_inputs, engine_options or {}, outputs)
    if engine != "structprune":
        raise InputError(f"unknown engine {engine!r}: use one of {', '.join(ENGINES)}")
    if engine_options:
        raise InputError(
            f"engine_options={sorted(engine_options)} are torch-pruning's: pass engine='torch-pruning'"
        )
    return assembly.trace(model, example_inputs, outputs)
