"""A graph by torch.export: the model runs once on fake tensors, and every operation is written down as it ran."""

from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.utils import _pytree as pytree

from structprune.clone import structural_clone
from structprune.inputs import batch_size, repeat_batch
from structprune.rewriting.modes import merge_modes
from structprune.rewriting.module import RewrittenModule, add_constant, change_arguments, has, read, skeleton
from structprune.rewriting.sizes import explicit_scales

__all__ = ["exported"]

_aten = torch.ops.aten
_CHECKS = (_aten._assert_tensor_metadata.default, _aten._assert_scalar.default)
_CONTEXTS: dict[str, Any] = {
    "wrap_with_set_grad_enabled": torch.set_grad_enabled,
    "wrap_with_autocast": torch.autocast,
}
_PRECISION = "_precision"


def exported(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> RewrittenModule:
    """Return ``model`` as a graph of ATen operations over its own tensors; whatever torch.export raises is raised.

    Sizes of the inputs stay free where torch.export can leave them so. Casts to the precision that the model is in, and
    to its device, follow the model when it is moved.
    """
    captured, training = (_export(model, args, kwargs, mode) for mode in (False, True))
    graphs = {name: module for name, module in captured.named_modules() if isinstance(module, fx.GraphModule)}
    for name, module in graphs.items():
        other = training.get_submodule(name)
        assert isinstance(other, fx.GraphModule)
        _without_checks(module.graph)
        _without_checks(other.graph)
        merge_modes(module.graph, other.graph, flags=not name)
        _in_python(module.graph)
    root = skeleton(model, ())
    for node in captured.graph.nodes:
        if node.op == "get_attr" and not has(root, str(node.target)):
            add_constant(root, str(node.target), read(captured, str(node.target)))
    return _nested(root, captured, next((p for p in model.parameters() if p.is_floating_point()), None))


def _nested(root: nn.Module, module: fx.GraphModule, like: torch.Tensor | None) -> RewrittenModule:
    """Return the graph of ``module`` over ``root``, and in it those of the regions under a context."""
    graph = module.graph
    for node in list(graph.nodes):
        context = _CONTEXTS.get(getattr(node.target, "__name__", ""))
        if context is None or node.op != "call_function":
            continue
        position = next(i for i, given in enumerate(node.args) if isinstance(given, fx.Node))
        name = str(node.args[position].target)
        body = getattr(module, name)
        setattr(root, name, _Within(context, node.args[:position], _nested(body, body, like)))
        with graph.inserting_before(node):
            node.replace_all_uses_with(graph.call_module(name, node.args[position + 1 :]))
        read_body = node.args[position]
        graph.erase_node(node)
        graph.erase_node(read_body)
    if like is not None:
        root.register_buffer(_PRECISION, like.detach().new_empty(0), persistent=False)
        _follow(graph, like)
    return RewrittenModule(root, graph, "RewrittenModule")


class _Within(nn.Module):
    """A part of the graph that runs under a context: no_grad, autocast."""

    def __init__(self, context: Any, settings: tuple[Any, ...], body: nn.Module) -> None:
        super().__init__()
        self.context = context
        self.settings = settings
        self.body = body

    def forward(self, *args: Any) -> Any:
        with self.context(*self.settings):
            return self.body(*args)


def _without_checks(graph: fx.Graph) -> None:
    """Take out what only asserts that the inputs are like the example: another precision is no error."""
    for node in reversed(list(graph.nodes)):
        check = node.op == "call_module" or node.target in _CHECKS
        if check or (not node.users and _is_number(node)):
            graph.erase_node(node)


def _is_number(node: fx.Node) -> bool:
    return isinstance(
        node.meta.get("val"), torch.SymInt | torch.SymBool | torch.SymFloat | int | float | bool
    ) or (node.op == "call_function" and getattr(node.target, "__module__", "") == "_operator")


def _in_python(graph: fx.Graph) -> None:
    """Write as Python's interface has it what the trace judges there, before it takes one of several forms inside."""
    for node in graph.nodes:
        if node.target is _aten.sym_size.int:
            node.op, node.target = "call_method", "size"
        elif node.target is _aten.rms_norm.default:
            node.target = torch.rms_norm
        elif node.target is _aten.scaled_dot_product_attention.default:
            node.target = F.scaled_dot_product_attention
            names = ("attn_mask", "dropout_p", "is_causal")
            node.args, node.kwargs = (
                node.args[:3],
                dict(zip(names, node.args[3:], strict=False)) | node.kwargs,
            )
    explicit_scales(graph, lambda query: query.meta["val"].shape[-1])


def _follow(graph: fx.Graph, like: torch.Tensor) -> None:
    """Let casts to the model's own precision and device follow the model."""
    first = next(node for node in graph.nodes if node.op != "placeholder")
    with graph.inserting_before(first):
        own = graph.create_node("get_attr", _PRECISION)
        now = {what: graph.call_function(getattr, (own, what)) for what in ("dtype", "device")}

    def current(value: Any) -> Any:
        if isinstance(value, torch.dtype) and value == like.dtype:
            return now["dtype"]
        return now["device"] if isinstance(value, torch.device) and value == like.device else value

    for node in list(graph.nodes):
        if node not in now.values():
            change_arguments(node, current)
    for node in (*now.values(), own):
        if not node.users:
            graph.erase_node(node)


def _export(model: nn.Module, args: Any, kwargs: Any, training: bool) -> fx.GraphModule:
    """Return the exported graph with as many free sizes as it takes."""
    clone, _ = structural_clone(model, lambda tensor, _kind: tensor)
    clone.train(training)
    trials = [((args, kwargs), True), ((args, kwargs), False)]
    if batch_size((args, kwargs)) == 1:  # a size of one would be written down as one
        trials.insert(0, (repeat_batch((args, kwargs), 2), True))
    for given, free in trials[:-1]:
        try:
            return _exported(clone, given, free)
        except Exception:  # noqa: BLE001 - torch.export raises anything; the last trial's error is the reason
            continue
    return _exported(clone, *trials[-1])


def _exported(clone: nn.Module, given: Any, free: bool) -> fx.GraphModule:
    args, kwargs = given
    named = inspect.signature(clone.forward).bind(*args, **kwargs).arguments
    program = torch.export.export(
        clone,
        args,
        kwargs,
        dynamic_shapes=pytree.tree_map(_any_size, dict(named)) if free else None,
        strict=False,
    )
    module = program.module()
    assert isinstance(module, fx.GraphModule)
    return module


def _any_size(value: Any) -> Any:
    return (
        dict.fromkeys(range(value.ndim), torch.export.Dim.AUTO) if isinstance(value, torch.Tensor) else None
    )
