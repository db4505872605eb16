"""Sizes that the code reads from one tensor and uses for another, written out as numbers.

`B, N, C = x.shape; y.reshape(B, N, C)` says that y is as wide as x, where it only happens to be. In the graph C becomes
a number of its own at each use, free to follow what it sizes; B and N, which the inputs give, stay as they are. What is
computed from such a size (`C ** -0.5`) stays what it was.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from structprune import axes
from structprune.axes import Const, Expr, Prod, Sum
from structprune.nodes import Size
from structprune.provenance import TracedInt, plain
from structprune.rewriting.module import RewrittenModule, change_arguments
from structprune.trace import Run, run_traced

__all__ = ["explicit_scales", "write_out_sizes"]


def write_out_sizes(model: RewrittenModule, inputs: Any) -> None:
    """Replace, in the graph of ``model``, every size of a channel axis by its number, once per use."""
    seen, run = _observed(model, inputs)
    explicit_scales(model.graph, lambda node: seen[node.name][-1])
    own = _Own(run)
    fixed: dict[fx.Node, Any] = {}
    for node in model.graph.nodes:
        value = seen.get(node.name)
        if isinstance(value, int | float) and _is_fixed(node, value, fixed, own):
            fixed[node] = value
    for node, value in fixed.items():
        number = plain(value) if type(value) is TracedInt else value
        for user in [user for user in node.users if user not in fixed]:
            change_arguments(user, functools.partial(_instead, node, number))
    for node in reversed(list(model.graph.nodes)):
        if not node.users and (node in fixed or isinstance(seen.get(node.name), torch.Size)):
            model.graph.erase_node(node)
    model.recompile()


def _instead(node: fx.Node, number: Any, given: Any) -> Any:
    return number if given is node else given


def explicit_scales(graph: fx.Graph, width: Any) -> None:
    """Write out the scale that attention takes by default, 1/sqrt of the head width that ``width(query)`` gives."""
    for node in graph.nodes:
        if node.target is F.scaled_dot_product_attention and node.kwargs.get("scale") is None:
            query = node.kwargs.get("query", node.args[0] if node.args else None)
            if len(node.args) < 7:  # the scale is its seventh argument
                node.kwargs = {**node.kwargs, "scale": 1 / math.sqrt(width(query))}


def _is_fixed(node: fx.Node, value: Any, fixed: dict[fx.Node, Any], own: _Own) -> bool:
    """Whether a number is the size of a channel axis, or computed from such sizes alone."""
    sources = node.all_input_nodes
    if node.op not in ("call_function", "call_method") or not sources:
        return False
    if all(source in fixed for source in sources):
        return True
    return isinstance(value, TracedInt) and isinstance(value.node, Size) and own.made_of(value.node.expr)


class _Own:
    """The dimensions of the model's own tensors."""

    def __init__(self, run: Run) -> None:
        dims = [dim for named in run.named.values() for dim in named]
        self.whole = {axes.show(dim) for dim in dims}
        self.leaves = {leaf for dim in dims for leaf in axes.leaves(dim)}

    def made_of(self, expr: Expr) -> bool:
        """Whether no part of a dimension comes from the inputs, and some of it may be cut."""
        leaves = list(axes.leaves(expr))
        if all(leaf.frozen is not None for leaf in leaves):
            return False
        return axes.show(expr) in self.whole or (not _has_const(expr) and self.leaves.issuperset(leaves))


def _has_const(expr: Expr) -> bool:
    expr = axes.normal(expr)
    if isinstance(expr, Sum):
        return any(_has_const(part) for part in expr.parts)
    if isinstance(expr, Prod):
        return any(_has_const(item) for item in expr.factors)
    return isinstance(expr, Const)


class _Observer(nn.Module):
    """Hands on to ``note`` what passes; a function, which copies of the model share."""

    def __init__(self, note: Any) -> None:
        super().__init__()
        self.note = note

    def forward(self, name: str, value: Any) -> None:
        self.note(name, value)


def _observed(model: RewrittenModule, inputs: Any) -> tuple[dict[str, Any], Run]:
    """Return by node what a traced run computes, numbers and sizes, and tensors' shapes; and the run."""
    seen: dict[str, Any] = {}

    def note(name: str, value: Any) -> None:
        if isinstance(value, torch.Tensor):
            seen[name] = tuple(plain(size) for size in value.shape)
        elif isinstance(value, int | float | torch.Size):
            seen[name] = value

    graph = fx.Graph()
    result = graph.graph_copy(model.graph, {})
    graph.output(result)
    graph.set_codegen(model.graph._codegen)
    for node in list(graph.nodes):
        if node.op not in ("placeholder", "output", "get_attr"):
            with graph.inserting_after(node):
                graph.call_module("_observer", (node.name, node))
    root = fx.GraphModule(_with(model, _observer=_Observer(note)), graph)
    return seen, run_traced(root, inputs)


def _with(model: nn.Module, **children: nn.Module) -> nn.Module:
    """Return a module that holds what ``model`` holds, and the children."""
    holder = nn.Module()
    for registry in ("_parameters", "_buffers", "_modules"):
        vars(holder)[registry] = dict(vars(model)[registry])
    for name, value in vars(model).items():
        if type(value) in (int, float, bool):
            setattr(holder, name, value)
    for name, child in children.items():
        holder.add_module(name, child)
    return holder
