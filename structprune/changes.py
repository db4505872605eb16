"""Where a cut changes what the network computes beyond leaving channels out: statistics over fewer of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from structprune import axes
from structprune.axes import Atom
from structprune.rules import Site

__all__ = ["Change", "changes_by_axis", "told"]

_SHOWN = 3


@dataclass(frozen=True)
class Change:
    """A statistic over a cut dimension: the network is no longer the masked original in the plain sense there."""

    layer: str
    operation: str
    what: str
    where: str

    @property
    def name(self) -> str:
        """The operation as people call it: layer_norm, mean, softmax."""
        return self.operation.removeprefix("native_").lstrip("_")


def changes_by_axis(sites: Iterable[Site]) -> dict[Atom, tuple[Change, ...]]:
    """Return for each axis what a cut of it would change, in the order of the run."""
    found: dict[Atom, dict[Change, None]] = {}
    for site in sites:
        if site.changes:
            change = Change(site.layer, site.operation, site.changes, site.where)
            for leaf in (leaf for expr in site.over for leaf in axes.leaves(expr)):
                found.setdefault(leaf, {})[change] = None
    return {leaf: tuple(changes) for leaf, changes in found.items()}


def told(changes: Sequence[Change]) -> str:
    """Return changes in a few words: each operation with its first layers.

    >>> told([Change("norm1", "native_layer_norm", "", ""), Change("norm2", "native_layer_norm", "", "")])
    'layer_norm in norm1, norm2'
    """
    layers: dict[str, dict[str, None]] = {}
    for change in changes:
        layers.setdefault(change.name, {})[change.layer or "<root>"] = None
    return "; ".join(f"{name} in {_first(list(found))}" for name, found in layers.items())


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
