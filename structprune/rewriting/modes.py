"""One graph for training and inference, from one graph of each.

A trace runs Python's `if self.training` once, and writes `dropout(x, 0.1, False)`. The model is therefore traced in
both modes. Where the two graphs differ in a number, the number is chosen by the training flag of the module that wrote
it; where they differ in their steps, no graph says it.
"""

from __future__ import annotations

import itertools
import operator
from collections import deque
from typing import Any

import torch
from torch import fx

from structprune.rewriting.module import owner

__all__ = ["OtherSteps", "merge_modes"]

_LAYOUT = (torch.ops.aten.contiguous.default,)


class OtherSteps(Exception):
    """Training takes other steps than inference; ``module`` is the path of the module that decides."""

    def __init__(self, module: str) -> None:
        super().__init__(f"{module or 'the model'!r} takes other steps in training than in inference")
        self.module = module


def merge_modes(inference: fx.Graph, training: fx.Graph, flags: bool = True) -> None:
    """Change the graph ``inference`` so that it also does what ``training`` does, by the modules' training flags.

    Raises OtherSteps where that cannot be; and, without ``flags``, where they would be needed.
    """
    _Merge(inference, training, flags).run()


class _Merge:
    def __init__(self, inference: fx.Graph, training: fx.Graph, flags: bool) -> None:
        self.graph = inference
        self.flags = flags
        self.left = [node for node in inference.nodes if _number(node) is None]
        self.right: deque[fx.Node] = deque(node for node in training.nodes if _number(node) is None)
        self.same: dict[fx.Node, fx.Node] = {}  # a node of the training graph -> the one it is here

    def run(self) -> None:
        for node in self.left:
            if node.target in _LAYOUT and not (self.right and _same_call(node, self.right[0])):
                continue
            other = self._next(node)
            if (node.op, node.target) != (other.op, other.target):
                raise OtherSteps(_common(owner(node), owner(other)))
            self.same[other] = node
            if len(node.args) != len(other.args) or node.kwargs.keys() != other.kwargs.keys():
                _complete(node)
                _complete(other)
            node.args = self._merged(node.args, other.args, node)
            node.kwargs = self._merged(dict(node.kwargs), dict(other.kwargs), node)

    def _next(self, node: fx.Node) -> fx.Node:
        """Return the training graph's next step; one that this graph can take too is added before ``node``."""
        while self.right:
            other = self.right.popleft()
            if _same_call(node, other):
                return other
            if other.target in _LAYOUT:
                self._lay_out(other, node)
            elif _counts(other):
                self._count(other, node)
            else:
                return other
        raise OtherSteps(owner(node))

    def _lay_out(self, other: fx.Node, before: fx.Node) -> None:
        """Add a step that only moves memory: another kernel in training returns another layout."""
        source = self.same[other.args[0]]  # type: ignore[index]
        with self.graph.inserting_before(before):
            moved = self.same[other] = self.graph.call_function(other.target, (source,))  # type: ignore[arg-type]
        source.replace_all_uses_with(moved, lambda user: user is not moved and user > moved)

    def _count(self, other: fx.Node, before: fx.Node) -> None:
        """Add a counter that only training moves on: it moves by the training flag, one or zero."""
        state = other.args[0]
        assert isinstance(state, fx.Node)
        with self.graph.inserting_before(before):
            flag = self._flag(owner(other))
            kept = self.same.get(state) or self.graph.create_node("get_attr", str(state.target))
            self.same[other] = self.graph.call_function(other.target, (kept, flag))  # type: ignore[arg-type]

    def _flag(self, path: str) -> fx.Node:
        if not self.flags:
            raise OtherSteps(path)
        return self.graph.create_node("get_attr", f"{path}.training" if path else "training")

    def _merged(self, a: Any, b: Any, node: fx.Node) -> Any:
        if isinstance(a, fx.Node) and isinstance(b, fx.Node):
            if _number(a) is not None and _number(a) == _number(b):
                return a
            if b not in self.same or _values(self.same[b]) is not _values(a):
                raise OtherSteps(owner(node))
            return a
        if isinstance(a, tuple | list) and isinstance(b, tuple | list) and len(a) == len(b):
            return type(a)([self._merged(x, y, node) for x, y in zip(a, b, strict=True)])
        if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
            return {key: self._merged(a[key], b[key], node) for key in a}
        if isinstance(a, slice) and isinstance(b, slice):
            return slice(
                *(self._merged(getattr(a, s), getattr(b, s), node) for s in ("start", "stop", "step"))
            )
        if type(a) is type(b) and (a == b or repr(a) == repr(b)):
            return a
        if not all(x is None or isinstance(x, bool | int | float | str | torch.dtype) for x in (a, b)):
            raise OtherSteps(owner(node))
        with self.graph.inserting_before(node):
            flag = self._flag(owner(node))
            if (a, b) == (False, True):
                return flag
            return self.graph.call_function(operator.getitem, ((a, b), flag))


def _counts(node: fx.Node) -> bool:
    """Whether a node adds a number, in place, to a tensor of the model."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or target._schema.name != "aten::add_":
        return False
    state, number = node.args[0], node.args[1]
    return isinstance(state, fx.Node) and state.op == "get_attr" and type(number) is int and number == 1


def _same_call(a: fx.Node, b: fx.Node) -> bool:
    return (a.op, a.target) == (b.op, b.target)


def _number(node: fx.Node) -> str | None:
    """Return how a node of an exported graph computes a number from the sizes of the inputs; None for any other node.

    Where such a node stands, and in which order it multiplies, says nothing.
    """
    value = node.meta.get("val")
    return str(value.node.expr) if isinstance(value, torch.SymInt) else None


def _values(node: fx.Node) -> fx.Node:
    """Return the node whose values ``node`` has, in another layout or in the same."""
    while node.target in _LAYOUT:
        node = node.args[0]  # type: ignore[assignment]
    return node


def _complete(node: fx.Node) -> None:
    """Write out the defaults of an ATen operation's arguments, which an exported graph leaves out."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return
    given = dict(zip((a.name for a in node.target._schema.arguments), node.args, strict=False)) | node.kwargs
    args, kwargs = [], {}
    for argument in node.target._schema.arguments:
        value = given.get(argument.name, argument.default_value)
        if argument.kwarg_only:
            kwargs[argument.name] = value
        else:
            args.append(value)
    node.args, node.kwargs = tuple(args), kwargs


def _common(a: str, b: str) -> str:
    """Return the path of the innermost module that both lie in: its forward decides which of them comes next."""
    if a == b:
        return a
    common = itertools.takewhile(
        lambda pair: pair[0] == pair[1], zip(a.split("."), b.split("."), strict=False)
    )
    return ".".join(step for step, _ in common)
