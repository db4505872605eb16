"""The rewritten model: a graph over the parameters, buffers and leaf modules of a copy of the original."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import fx, nn

from structprune.tensors import CONSTANTS

__all__ = [
    "SOURCE",
    "RewrittenModule",
    "add_constant",
    "change_arguments",
    "has",
    "owner",
    "read",
    "skeleton",
]


SOURCE = "source"
_LINE = re.compile(r'File "([^"]+)", line (\d+)')


class RewrittenModule(fx.GraphModule):
    """A model as a graph: every number that fixes a size is an integer attribute that the graph reads.

    ``state_dict`` has the names of the original. ``print(model.code)`` shows the forward; ``model.sources`` says for
    each name in it which line of the original it comes from.
    """

    def __init__(self, root: nn.Module, graph: fx.Graph, class_name: str = "RewrittenModule") -> None:
        super().__init__(root, graph, class_name)
        self.sources = {node.name: _source(node) for node in graph.nodes}
        for registry in ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set"):
            vars(self)[registry] = vars(root)[registry]
        vars(self)[CONSTANTS] = vars(root).get(CONSTANTS, frozenset())

    def __deepcopy__(self, memo: dict[int, Any]) -> RewrittenModule:
        """Return a copy with everything the module holds: what a GraphModule's own copy drops, too."""
        new: RewrittenModule = type(self).__new__(type(self))
        memo[id(self)] = new
        vars(new).update(
            {key: copy.deepcopy(value, memo) for key, value in vars(self).items() if key != "_graph"}
        )
        type(new).__name__ = type(self).__name__
        new.graph = copy.deepcopy(self.graph)
        return new


def _source(node: fx.Node) -> str:
    """Return ``file.py:12`` of the innermost line outside of torch that made a node."""
    if SOURCE in node.meta:
        return str(node.meta[SOURCE])
    trace = str(node.meta.get("stack_trace") or "")
    lines = [(name, number) for name, number in _LINE.findall(trace) if f"{os.sep}torch{os.sep}" not in name]
    return f"{os.path.basename(lines[-1][0])}:{lines[-1][1]}" if lines else ""


def skeleton(model: nn.Module, kept: Collection[str]) -> nn.Module:
    """Return the tree of ``model`` over the same tensors; only the modules ``kept`` keep their type, and their forward.

    The others are bare: the graph does what their forward did.
    """
    paths = set(kept)
    made: dict[nn.Module, nn.Module] = {
        module: module for name, module in model.named_modules(remove_duplicate=False) if name in paths
    }

    def bare(module: nn.Module) -> nn.Module:
        if module not in made:
            new = made[module] = nn.Module()
            new.training = module.training
            for registry in ("_parameters", "_buffers", "_non_persistent_buffers_set"):
                vars(new)[registry] = copy.copy(vars(module)[registry])
            for name, child in module._modules.items():
                new._modules[name] = None if child is None else bare(child)
        return made[module]

    return bare(model)


def read(module: Any, path: str) -> Any:
    """Return what lies at a dotted path below a module."""
    for step in path.split(".") if path else ():
        module = getattr(module, step)
    return module


def owner(node: fx.Node) -> str:
    """Return the path of the module whose forward made ``node``, "" for the model itself."""
    stack: dict[str, Any] = node.meta.get("nn_module_stack") or {}
    path = next(reversed(list(stack.values())), ("", None))[0] if stack else ""
    return str(path).split("@")[0]


def change_arguments(node: fx.Node, change: Callable[[Any], Any]) -> None:
    """Replace every argument of a node, those inside lists and slices too, by what ``change`` makes of it."""
    args: Any = fx.node.map_aggregate(node.args, change)
    kwargs: Any = fx.node.map_aggregate(dict(node.kwargs), change)
    node.args, node.kwargs = args, kwargs


def has(module: nn.Module, path: str) -> bool:
    """Return whether something lies at a dotted path below a module."""
    try:
        read(module, path)
    except AttributeError:
        return False
    return True


def add_constant(root: nn.Module, path: str, value: Any) -> None:
    """Put what a graph reads at ``path`` under ``root``: a tensor moves with the model, and is in no state_dict."""
    *way, name = path.split(".")
    for step in way:
        root = getattr(root, step)
    if isinstance(value, torch.Tensor) and not isinstance(value, nn.Parameter):
        root.register_buffer(name, value.detach().clone(), persistent=False)
        vars(root)[CONSTANTS] = frozenset((*vars(root).get(CONSTANTS, ()), name))
    else:
        setattr(root, name, value)
