"""The results of layers inside a network, as they come while it trains: what features are compared by."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from structprune.errors import InputError
from structprune.rules.context import iter_tensors
from structprune.train.hooks import Run

__all__ = ["LayerResults", "require_layers"]


def require_layers(model: nn.Module, layers: Iterable[str], whose: str) -> None:
    """Raises InputError where the model, which is known as `whose`, has no layer of such a name."""
    known = dict(model.named_modules())
    for layer in layers:
        if layer not in known:
            some = ", ".join(list(known)[1:9])
            raise InputError(f"features: {whose} has no layer {layer!r}; its layers are {some}, ...")


class LayerResults:
    """The results of some layers, as they come; of a network that is trained, those with gradients alone."""

    def __init__(self, model: nn.Module, layers: Iterable[str], run: Run | None = None) -> None:
        known = dict(model.named_modules())
        self.trained = run is not None and run.model is model
        self.found: dict[str, list[Tensor]] = {}
        self._handles: list[RemovableHandle] = []
        for layer in layers:
            self._handles.append(known[layer].register_forward_hook(self._taker(layer)))
        if run is not None:
            run.at_exit(self.close)

    def _taker(self, layer: str) -> Callable[[nn.Module, Any, Any], None]:
        def take_it(module: nn.Module, args: Any, result: Any) -> None:
            if torch.is_grad_enabled() or not self.trained:
                tensor = next(iter_tensors((result,)), None)
                if tensor is None:
                    raise InputError(
                        f"features: layer {layer!r} returns no tensor, but {type(result).__name__}"
                    )
                self.found.setdefault(layer, []).append(tensor)

        return take_it

    def close(self) -> None:
        """Takes its hooks off the layers."""
        while self._handles:
            self._handles.pop().remove()

    def taken(self) -> dict[str, list[Tensor]]:
        """What came since it was asked for last."""
        found, self.found = self.found, {}
        return found
