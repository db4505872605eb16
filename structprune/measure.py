"""What a network costs without running it: MACs, params, peak activation memory, bytes on disk."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from structprune.assembly import trace
from structprune.graph import DependencyGraph
from structprune.tensors import named_tensors
from structprune.trace import Record

__all__ = ["count_macs", "count_params", "macs_by_operation", "peak_activation_bytes", "weight_bytes"]


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


def count_params(model: nn.Module) -> int:
    """Return the number of elements of all parameters, tied ones counted once.

    >>> count_params(nn.Linear(4, 8))
    40
    """
    return sum(parameter.numel() for parameter in model.parameters())


def weight_bytes(model: nn.Module) -> int:
    """Return the bytes of all parameters and buffers, tied ones counted once: about the size of a file of them.

    >>> weight_bytes(nn.Linear(4, 8))
    160
    """
    return sum(tensor.numel() * tensor.element_size() for tensor in named_tensors(model).values())


def macs_by_operation(graph: DependencyGraph) -> Mapping[tuple[str, str], int]:
    """Return the MACs of every (layer, operation) of a traced network, in the order of their first run."""
    found: dict[tuple[str, str], int] = {}
    for layer, operation, factors in graph.run.context.costs:
        macs = math.prod(factor.size for factor in factors)
        found[layer, operation] = found.get((layer, operation), 0) + macs
    return found


def peak_activation_bytes(model: nn.Module, example_inputs: Any) -> int:
    """Return the most memory (bytes) that intermediate results and outputs take at once in one eager forward.

    Each storage lives from the operation that makes it to the last that touches it. Inputs, weights and the work space
    inside a kernel are not counted.

    >>> import torch
    >>> peak_activation_bytes(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), torch.zeros(1, 4))
    40
    """
    records = trace(model, example_inputs).run.records
    return max(_live_bytes(records), default=0)


@dataclass(slots=True)
class _Life:
    born: int
    last: int
    bytes: int


def _live_bytes(records: list[Record]) -> list[int]:
    lives: dict[int, _Life] = {}
    written: set[int] = set()
    for time, record in enumerate(records):
        for place in record.reads:
            if place in lives:
                lives[place].last = time
        for place, dims, itemsize in record.writes:
            size = math.prod(dim.size for dim in dims) * itemsize
            if place in lives:
                lives[place].last = time
                lives[place].bytes = max(lives[place].bytes, size)
            elif place not in record.reads and place not in written:
                lives[place] = _Life(time, time, size)
            written.add(place)
        written.update(record.reads)
    changes = [0] * (len(records) + 1)
    for life in lives.values():
        changes[life.born] += life.bytes
        changes[life.last + 1] -= life.bytes
    levels, level = [], 0
    for change in changes:
        level += change
        levels.append(level)
    return levels
