"""Switches of the process, the thread and the modules, set for a while and put back as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

__all__ = ["inference_mode", "subnormals_as_zero", "torch_threads"]


@contextmanager
def inference_mode(model: nn.Module) -> Iterator[None]:
    """`model` in eval mode without gradients; each module's own training flag is back afterwards.

    The flags are written directly: a model's own `train()` may do more than set them (merge adapters, keep
    some layers in eval), and calling it twice need not lead back to where it began.
    """
    flags = [(module, module.training) for module in model.modules()]
    for module, _ in flags:
        module.training = False
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in flags:
            module.training = training


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """torch's intra-op pool at `threads`, and at its former size afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def subnormals_as_zero(on: bool | None = None) -> Iterator[None]:
    """The calling thread computes with subnormal numbers as zero, or not; None leaves that as it is at the beginning.

    Afterwards it is as before, whoever changed it in between: an onnxruntime session that is the first of its process
    sets it for the thread that makes it, and libraries built for fast arithmetic where they are loaded. torch can set
    this and cannot say how it is set, so that one product tells.
    """
    before = float(np.float32(1e-40) * np.float32(1e10)) == 0.0
    if on is not None:
        torch.set_flush_denormal(on)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)
