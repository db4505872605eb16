"""Wrapped models: what must be unwrapped before pruning, and in which order."""

from __future__ import annotations

import torch
from torch import nn

from structprune.errors import InputError, TraceError

__all__ = ["refuse_wrapped"]


def refuse_wrapped(model: nn.Module) -> None:
    """Raise TraceError, naming the right order of steps, for a model that is wrapped, compiled, scripted
    or quantised.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model is a {type(model).__name__}; expected a torch.nn.Module")
    for name, module in model.named_modules():
        advice = _advice(module)
        if advice:
            raise TraceError(f"{name or 'the model'} is a {type(module).__name__}: {advice}")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if nn.parameter.is_lazy(tensor):
            raise TraceError(f"{name} has no shape yet: run the model once on an example, then prune it")
        if tensor.is_quantized or tensor.layout != torch.strided:
            raise TraceError(
                f"{name} is quantised or sparse: prune the dense floating-point model before it is converted"
            )


def _advice(module: nn.Module) -> str:
    if isinstance(module, torch.jit.ScriptModule):
        return "prune the Python module before it is scripted or traced, then script the result"
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return "prune model.module, then wrap the result again and make a new optimizer"
    kind = type(module)
    if hasattr(module, "_orig_mod") and kind.__module__.startswith("torch._dynamo"):
        return "prune before torch.compile: prune model._orig_mod, then compile the result"
    if kind.__module__.startswith("torch.distributed.fsdp"):
        return "prune the module before it is sharded, then wrap the result"
    if ".quantized" in kind.__module__ and kind.__module__.startswith("torch.ao"):
        return (
            "prune before quantising: prune and fine-tune the floating-point model, then quantise the result"
        )
    return ""
