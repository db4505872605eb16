"""Wrapped models: what must be unwrapped before pruning, and in which order.

A wrapper is handled where its meaning is clear: parametrizations, weight and spectral norm, masks of
torch.nn.utils.prune, hooks, `module.compile()`, activation checkpoints. The others hold flat, sharded, packed or frozen
copies of the weights, which a smaller network cannot go back into.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from structprune.errors import TraceError
from structprune.tensors import is_plain, require_module

__all__ = ["refuse_wrapped"]


def refuse_wrapped(model: nn.Module) -> None:
    """Raise TraceError, naming the right order of steps, for a model that is wrapped, compiled, scripted, sharded,
    offloaded or quantised, and InputError for what is no module.
    """
    require_module(model)
    for name, module in model.named_modules():
        advice = _advice(module, f"model.{name}" if name else "model")
        if advice:
            raise TraceError(f"{name or 'the model'} is {_kind(module)}: {advice}")
    for name, tensor in _tensors(model):
        if nn.parameter.is_lazy(tensor):
            raise TraceError(f"{name} has no shape yet: run the model once on an example, then prune it")
        if tensor.is_quantized or tensor.layout != torch.strided:
            raise TraceError(
                f"{name} is quantised or sparse: prune the dense floating-point model before it is converted"
            )
        if not is_plain(tensor):
            raise TraceError(
                f"{name} is a {type(tensor).__name__}, which computes in its own way: prune the model while it has "
                "plain tensors, then shard or quantise the result"
            )


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for prefix, module in model.named_modules():
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                yield f"{prefix}.{name}".lstrip("."), tensor


def _kind(module: nn.Module) -> str:
    """The name of a module's type, with its home where torch.nn has a layer of that name."""
    kind = type(module)
    known = getattr(nn, kind.__name__, kind) is kind
    return f"a {kind.__name__}" if known else f"a {kind.__module__}.{kind.__name__}"


def _advice(module: nn.Module, place: str) -> str:
    kind = type(module)
    if isinstance(module, torch.jit.ScriptModule):
        return "prune the Python module before it is scripted or traced, then script the result"
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return f"prune {place}.module, then wrap the result again and make a new optimizer"
    if hasattr(module, "_orig_mod") and kind.__module__.startswith("torch._dynamo"):
        return f"prune before torch.compile: prune {place}._orig_mod, then compile the result"
    if kind.__module__.startswith("torch.distributed.fsdp") or _composed(module):
        return "prune the module before it is sharded or replicated, then wrap the result"
    if isinstance(module, torch.fx.GraphModule) and "eval" in vars(module):
        return (
            "torch.export has fixed its sizes: prune the module before it is exported, then export the result"
        )
    if ".quantized" in kind.__module__ and kind.__module__.startswith("torch.ao"):
        return (
            "prune before quantising: prune and fine-tune the floating-point model, then quantise the result"
        )
    if isinstance(module, _types("torch.ao.quantization", "ObserverBase", "FakeQuantizeBase")):
        return "prune before quantising: prune the model as it was before it was prepared, then prepare the result"
    if _is_offloaded(getattr(module, "_hf_hook", None)):
        return (
            "accelerate keeps its weights elsewhere: load the model whole (or take remove_hook_from_module and the "
            "weights on one device), prune it, then dispatch the result"
        )
    return ""


def _composed(module: nn.Module) -> bool:
    """Whether one of torch.distributed's functions (fully_shard, replicate) has changed a module in place."""
    contract = sys.modules.get("torch.distributed._composable.contract")
    return contract is not None and bool(contract._get_registry(module))


def _types(module: str, *names: str) -> tuple[type, ...]:
    """The types of these names, none where nobody has imported their module: then nothing can be of them."""
    home = sys.modules.get(module)
    found = (getattr(home, name, None) for name in names)
    return tuple(kind for kind in found if isinstance(kind, type))


def _is_offloaded(hook: Any) -> bool:
    """Whether a hook of accelerate loads a module's weights before each forward."""
    return any(_is_offloaded(one) for one in getattr(hook, "hooks", ())) or bool(
        getattr(hook, "offload", False)
    )
