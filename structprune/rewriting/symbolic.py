"""A graph by torch.fx: Python runs on stand-ins that write down what is done to them; layers stay modules."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from typing import Any

import torch
from torch import fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from structprune.clone import structural_clone
from structprune.errors import InputError
from structprune.inputs import tensors_in
from structprune.provenance import user_line
from structprune.rewriting.attention import MultiheadAttention
from structprune.rewriting.modes import OtherSteps, merge_modes
from structprune.rewriting.module import SOURCE, RewrittenModule, add_constant, has, read, skeleton

__all__ = ["symbolic"]


def symbolic(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> RewrittenModule:
    """Return ``model`` as a graph over its own tensors and leaf modules; whatever the forward raises on stand-ins
    is raised.

    A module that takes other steps in training (stochastic depth) stays a module. Arguments that hold no tensor are
    fixed as they are in the example.
    """
    bound = inspect.signature(model.forward).bind(*args, **kwargs)
    bound.apply_defaults()
    whole: set[str] = set()
    while True:
        graph, traced = _trace(model, bound, whole, training=False)
        try:
            merge_modes(graph, _trace(model, bound, whole, training=True)[0])
        except OtherSteps as error:
            if not error.module or error.module in whole:
                raise
            whole.add(error.module)
        else:
            return _built(model, graph, traced)


def _built(model: nn.Module, graph: fx.Graph, traced: nn.Module) -> RewrittenModule:
    """Return the graph over the model's tensors, and over what the trace computed once and for all."""
    root = skeleton(model, {str(node.target) for node in graph.nodes if node.op == "call_module"})
    for node in graph.nodes:
        if node.op == "get_attr" and not has(root, str(node.target)):
            add_constant(root, str(node.target), read(traced, str(node.target)))
    return RewrittenModule(root, graph, type(model).__name__)


def _trace(
    model: nn.Module, bound: inspect.BoundArguments, whole: set[str], training: bool
) -> tuple[fx.Graph, nn.Module]:
    clone, _ = structural_clone(model, lambda tensor, _kind: tensor)
    clone.train(training)
    tracer = _Tracer(bound, whole)
    try:
        with _NoChance():  # type: ignore[no-untyped-call]
            graph = tracer.trace(clone)
    except Exception as error:
        if training and tracer.module_stack:  # inference has passed here
            raise OtherSteps(next(reversed(tracer.module_stack.values()))[0]) from error
        raise
    return graph, clone


class _Tracer(fx.Tracer):
    """Torch's layers, attention's stand-in and the modules ``whole`` stay modules; arguments are those of a call."""

    proxy_buffer_attributes = True

    def __init__(self, bound: inspect.BoundArguments, whole: set[str]) -> None:
        super().__init__()
        self.bound = bound
        self.whole = whole

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """Return a new node that knows the line of the user's code that made it."""
        node = super().create_node(*args, **kwargs)
        node.meta[SOURCE] = user_line()
        return node

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """Return a call of the forward in which a placeholder stands for each argument that holds a tensor."""
        call = inspect.BoundArguments(self.bound.signature, OrderedDict(self.bound.arguments))
        parameters = call.signature.parameters
        many = any(p.kind is p.VAR_POSITIONAL and call.arguments[name] for name, p in parameters.items())
        for name, parameter in parameters.items():
            value = call.arguments[name]
            if parameter.kind is parameter.VAR_POSITIONAL:
                given = [self._argument(f"{name}_{i}", one, ()) for i, one in enumerate(value)]
                call.arguments[name] = tuple(given)
            elif parameter.kind is parameter.VAR_KEYWORD:
                call.arguments[name] = {key: self._argument(key, one, (None,)) for key, one in value.items()}
            else:
                default = () if many or parameter.default is parameter.empty else (parameter.default,)
                call.arguments[name] = self._argument(name, value, default)
        args, kwargs = call.args, call.kwargs
        return lambda: root_fn(self.root, *args, **kwargs), []

    def _argument(self, name: str, value: Any, default: tuple[Any, ...]) -> Any:
        """Return a stand-in for a tensor; what is none is fixed, and checked where it is plain data."""
        if tensors_in(value):
            return self.create_proxy("placeholder", name, default, {})
        if value is None or isinstance(value, bool | int | float | str):
            given = self.create_proxy("placeholder", name, default, {})
            self.create_proxy("call_function", fixed, (given, value, name), {})
        return value

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if module_qualified_name in self.whole or isinstance(m, MultiheadAttention):
            return True
        return bool(super().is_leaf_module(m, module_qualified_name))


def fixed(given: Any, value: Any, name: str) -> None:
    """Passes if an argument is what the graph was made with; raises InputError otherwise."""
    if given is not value and given != value:
        raise InputError(
            f"{name}={given!r}: the model was rewritten with {name}={value!r}, and does just that"
        )


class _NoChance(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses random numbers that would be drawn once, while tracing, and stay in the graph."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise RuntimeError(f"{func} draws random numbers of a size that is written in the code")
        return func(*args, **(kwargs or {}))
