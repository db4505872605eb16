"""Numbers that fix a size, each an integer attribute of the graph module: what a cut can follow.

Every number of an operation's arguments is made an attribute first, and the model is traced: what then must equal the
size of a channel axis stays an attribute, every other number goes back to where it stood. So which argument of which
operation is a size is nothing that has to be listed here; the rules of the trace know it.
"""

from __future__ import annotations

import operator
from typing import Any

from torch import fx

from structprune import axes
from structprune.nodes import Attribute, Node, Size
from structprune.rewriting.module import RewrittenModule, change_arguments
from structprune.trace import run_traced

__all__ = ["lift_sizes"]

_LARGEST = 2**31  # a bound beyond it means "to the end"
# A number that an input's size is divided by, or added to, sizes no channels; one that it is multiplied by may.
_OF_INPUTS = (operator.floordiv, operator.mod, operator.truediv, operator.sub, operator.pow)


def lift_sizes(model: RewrittenModule, inputs: Any) -> None:
    """Make every number of the graph that must equal a dimension's size an attribute that the graph reads."""
    graphs = {name: module for name, module in model.named_modules() if isinstance(module, fx.GraphModule)}
    for module in graphs.values():
        for node in list(module.graph.nodes):
            _lift(module, node)
        module.recompile()
    wanted = _sizes(run_traced(model, inputs).context.ledger)
    for name, module in graphs.items():
        for node in list(module.graph.nodes):
            if node.op == "get_attr" and node.meta.get("number") and (name, node.target) not in wanted:
                _put_back(module, node)
        module.recompile()


def _lift(module: fx.GraphModule, node: fx.Node) -> None:
    if node.op not in ("call_function", "call_method") or node.target in _OF_INPUTS:
        return
    count = 0

    def attribute(value: Any) -> Any:
        nonlocal count
        if type(value) is not int or not 2 <= value < _LARGEST:
            return value
        name = f"{node.name}_size_{count}"
        count += 1
        setattr(module, name, value)
        with module.graph.inserting_before(node):
            read = module.graph.create_node("get_attr", name)
        read.meta["number"] = True
        return read

    change_arguments(node, attribute)


def _put_back(module: fx.GraphModule, node: fx.Node) -> None:
    name = str(node.target)
    node.replace_all_uses_with(getattr(module, name))
    module.graph.erase_node(node)
    delattr(module, name)


def _sizes(ledger: Any) -> set[tuple[str, str]]:
    """Return (module, attribute) of each number in an equation with the size of a dimension that channels make."""
    found = set()
    for equation in ledger.equations:
        sides = [*equation.left.leaves(), *equation.right.leaves()]
        if any(_has_channels(side) for side in sides):
            found |= {(side.module, str(side.path[0])) for side in sides if isinstance(side, Attribute)}
    return found


def _has_channels(node: Node) -> bool:
    return isinstance(node, Size) and any(True for _ in axes.leaves(node.expr))
