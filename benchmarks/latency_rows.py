"""The networks that the latency benchmark times by turns: one dense, and its cuts of comparable size."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Any

from torch import nn

import structprune as sp
from benchmarks.by_torch_pruning import MODES, cut, nearest

__all__ = ["AGAIN", "BY_LATENCY", "BY_MACS", "DENSE", "ROWS", "UNSTRUCTURED", "by_latency", "counts", "twins"]

DENSE, AGAIN, BY_MACS, BY_LATENCY, UNSTRUCTURED = (
    "dense",
    "dense again",
    "by MACs",
    "by latency",
    "unstructured",
)
ROWS = (DENSE, AGAIN, BY_MACS, BY_LATENCY, UNSTRUCTURED, *(mode.name for mode in MODES))

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


def twins(
    model: nn.Module, inputs: Inputs, macs: float, rows: Collection[str] = ROWS
) -> dict[str, nn.Module]:
    """The networks among `rows` that depend on no runtime, by row and in the order of `ROWS`; the dense one is always
    there.

    The unstructured one has as many weights left as the cut by MACs, torch-pruning's are as near as they come to its
    MACs.
    """
    structured = sp.prune(model, inputs, sp.Budget(macs=macs)).model
    wanted = sp.count_macs(structured, inputs)
    made = {DENSE: model, AGAIN: model, BY_MACS: structured}
    if UNSTRUCTURED in rows:
        made[UNSTRUCTURED] = sparse(model, sp.nonzeros(structured))
    for mode in MODES:
        if mode.name in rows:
            at = partial(cut, model, inputs, mode)
            made[mode.name] = nearest(at, lambda one: sp.count_macs(one.model, inputs), wanted).model
    return {name: one for name, one in made.items() if name in rows or name == DENSE}


def by_latency(model: nn.Module, inputs: Inputs, share: float, runtime: sp.Runtime) -> nn.Module | str:
    """The network at a share of the dense one's latency on this runtime, or why there is none."""
    try:
        return sp.prune(model, inputs, sp.Budget(latency=share, runtime=runtime)).model
    except sp.BudgetError as error:
        return str(error)


def sparse(model: nn.Module, remaining: int) -> nn.Module:
    """A twin with `remaining` non-zero parameters, one more a layer at most: the largest of each layer."""
    dense = sp.nonzeros(model)
    trial = dense - sp.nonzeros(sp.finalize(sp.sparsify(model, sparsity=0.5, scope="layer")))
    maskable = 2 * trial  # half of what sparsify may mask was zeroed
    sparsity = min(max((dense - remaining) / maskable, 0.0), 1.0 - 1.0 / maskable)
    return sp.finalize(sp.sparsify(model, sparsity=sparsity, scope="layer"))


def counts(model: nn.Module, inputs: Inputs) -> dict[str, Any]:
    """The model's parameters, those that are not zero, and its MACs for one inference."""
    params, macs = sp.count_params(model), sp.count_macs(model, inputs)
    return {"params": params, "nonzeros": sp.nonzeros(model), "macs": macs}
