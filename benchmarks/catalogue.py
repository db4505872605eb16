"""All networks that benchmarks take by name, and others by `package.module:factory`."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from torch import nn

from benchmarks.modern_networks import MODERN
from benchmarks.networks import NETWORKS

__all__ = ["CATALOGUE", "factory"]

CATALOGUE = {**NETWORKS, **MODERN}
"""By name: what makes the network, and how many parameters it has."""


def factory(name: str) -> Callable[[], nn.Module]:
    """What makes the network of that name; exits with the names there are for one that is unknown."""
    if name in CATALOGUE:
        return CATALOGUE[name][0]
    module, separator, attribute = name.partition(":")
    if not separator:
        raise SystemExit(f"network {name!r}: give package.module:factory or one of {', '.join(CATALOGUE)}")
    found: Callable[[], nn.Module] = getattr(importlib.import_module(module), attribute)
    return found
