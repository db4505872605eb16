"""A runtime whose clock is a formula, for tests of latency: 8 channels cost as much as one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

import structprune as sp
from structprune.runtimes import Kernel, Profile, register_profiler, register_runtime

BLOCK = 8
WASTE = 0.5  # milliseconds that a whole inference takes beside its kernels: what a forecast does not know


def blocks(width: int) -> int:
    return -(-width // BLOCK) * BLOCK


def kernels(model: nn.Module) -> list[Kernel]:
    found = []
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear):
            into, out = layer.in_features, layer.out_features
            slow = 1.0 if out % BLOCK == 0 and into % BLOCK == 0 else 2.0
            ms = slow * (0.01 + 2e-5 * blocks(into) * blocks(out))
            found.append(Kernel(name, "toy", ((1, into), (out, into), (1, out)), ms))
    return found


@register_profiler("toy")
def toy_profile(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], runtime: sp.Runtime
) -> Profile:
    parts = kernels(model)
    return Profile(tuple(parts), sum(part.ms for part in parts))


@register_runtime("toy")
@contextmanager
def toy(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], runtime: sp.Runtime
) -> Iterator[Any]:
    yield lambda: sum(part.ms for part in kernels(model)) + WASTE


def mlp() -> nn.Module:
    torch.manual_seed(0)
    widths = (32, 200, 136, 256, 16)
    layers = [layer for pair in itertools.pairwise(widths) for layer in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


EXAMPLE = torch.zeros(1, 32)
