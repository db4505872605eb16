"""Building a model whose parameters take no memory, for shapes are all that tracing and planning need."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils.weak import WeakIdKeyDictionary

from structprune.tensors import like

__all__ = ["empty_weights"]


@contextmanager
def empty_weights() -> Iterator[None]:
    """Modules built inside have parameters without values or memory (meta device); buffers have theirs.

    Under `torch.device("meta")` the buffers are empty too, and those that no file stores (rotary frequencies,
    masks) are lost for good. A model built here loses nothing once its parameters are loaded:

    >>> with empty_weights():
    ...     net = nn.Sequential(nn.Linear(4096, 4096), nn.BatchNorm1d(4096))
    >>> net[0].weight.device.type, net[1].running_var.device.type
    ('meta', 'cpu')

    Parameters that are tied stay tied. It holds for the whole process, so build one model at a time.
    """
    made = WeakIdKeyDictionary()  # a parameter registered in two places is one afterwards, too

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter) -> torch.Tensor | None:
        if parameter.is_meta or nn.parameter.is_lazy(parameter):
            return None
        if parameter not in made:
            made[parameter] = like(parameter, parameter.detach().to("meta"))
        empty: torch.Tensor = made[parameter]
        return empty

    handle = register_module_parameter_registration_hook(on_meta)  # type: ignore[arg-type]  # it may return
    try:
        yield
    finally:
        handle.remove()
