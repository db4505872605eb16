"""What a network costs without running it: MACs, params, peak activation memory, bytes on disk."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import nn

from structprune.arguments import typed
from structprune.assembly import trace
from structprune.graph import DependencyGraph
from structprune.tensors import stored_slots

__all__ = ["count_macs", "count_params", "macs_by_operation", "peak_activation_bytes", "weight_bytes"]


@typed
def count_macs(model: nn.Module, example_inputs: Any) -> int:
    """Return the multiply-accumulates of one forward on ``example_inputs``; 1 MAC is 2 FLOPs.

    Counted are contractions (matrix products, convolutions, attention), from the shapes of one run without arithmetic.
    Norms, activations, pooling and resizing are not: no table of MACs agrees on them, and they are little of the time.

    >>> import torch
    >>> count_macs(nn.Linear(4, 8), torch.zeros(3, 4))
    96
    """
    graph = trace(model, example_inputs)
    return round(graph.price("macs", graph.sizes()))


@typed
def count_params(model: nn.Module) -> int:
    """Return the number of elements of all parameters, tied ones counted once.

    >>> count_params(nn.Linear(4, 8))
    40
    """
    return sum(parameter.numel() for parameter in model.parameters())


@typed
def weight_bytes(model: nn.Module) -> int:
    """Return the bytes of the weights as `save` writes them, the file's header aside: of all parameters, persistent
    buffers and tensors in plain attributes, each in its dtype and tied ones once.

    >>> weight_bytes(nn.Linear(4, 8))
    160
    """
    stored = stored_slots(model).values()
    return sum(slot.tensor.numel() * slot.tensor.element_size() for slot in stored)


def macs_by_operation(graph: DependencyGraph) -> Mapping[tuple[str, str], int]:
    """Return the MACs of every (layer, operation) of a traced network, in the order of their first run."""
    found: dict[tuple[str, str], int] = {}
    for layer, operation, factors in graph.run.context.costs:
        macs = math.prod(factor.size for factor in factors)
        found[layer, operation] = found.get((layer, operation), 0) + macs
    return found


@typed
def peak_activation_bytes(model: nn.Module, example_inputs: Any) -> int:
    """Return the most memory (bytes) that inputs, intermediate results and outputs take at once in one forward.

    The inputs are held throughout, as the caller holds them; each other storage lives from the operation that makes it
    to the last that is given it or a view of it, and outputs to the end. Weights, the work space inside a kernel, and
    what Python holds on to longer than it is used are not counted: torch's eager mode takes at least this much where
    it runs the same operations, a runtime that plans its memory about this much.

    >>> import torch
    >>> peak_activation_bytes(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), torch.zeros(1, 4))
    56
    """
    graph = trace(model, example_inputs)
    return round(graph.price("peak_memory", graph.sizes()))
