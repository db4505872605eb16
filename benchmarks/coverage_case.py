"""What a coverage case is: a model class of the package transformers, a tiny configuration, and inputs to run it on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

__all__ = ["Case", "Inputs", "case", "ids", "numbers", "pair", "pixels", "tokens", "uniform"]

Inputs = Callable[[], dict[str, Any]]


@dataclass(frozen=True)
class Case:
    """One architecture; `build` gives it random weights, `inputs` are keyword arguments of its forward."""

    name: str
    family: str
    model: str
    options: dict[str, Any]
    inputs: Inputs

    def build(self) -> nn.Module:
        """Return the model in eval mode; raises what the package raises where it lacks the class or an extra."""
        import transformers

        cls = getattr(transformers, self.model)
        torch.manual_seed(0)
        net: nn.Module = cls(cls.config_class(**self.options)).eval().float()
        return net


def case(name: str, family: str, model: str, inputs: Inputs, **options: Any) -> Case:
    return Case(name, family, model, options, inputs)


def tokens(batch: int = 2, length: int = 16, top: int = 64) -> torch.Tensor:
    """Token ids, none of them special."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(4, top, (batch, length), generator=generator)


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


def uniform(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(3))


def ids() -> dict[str, Any]:
    return {"input_ids": tokens()}


def pair() -> dict[str, Any]:
    """Inputs of an encoder-decoder."""
    return {"input_ids": tokens(), "decoder_input_ids": tokens(length=6)}


def pixels(size: int = 32, channels: int = 3, name: str = "pixel_values", **more: Any) -> Inputs:
    return lambda: {name: numbers(2, channels, size, size), **more}
