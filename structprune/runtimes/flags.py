"""Global and per-module switches, set for a while and put back as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["inference_mode", "torch_threads"]


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
