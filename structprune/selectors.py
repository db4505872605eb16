"""What a user may point at: layer and group names, globs, kinds, and the modules themselves."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from structprune.errors import InputError

__all__ = ["module_names"]


def module_names(model: nn.Module, chosen: str | nn.Module | Iterable[str | nn.Module]) -> tuple[str, ...]:
    """Return the names of what was chosen; raises InputError for a module that is not the model's.

    Strings stay as they are: names and globs, and where nothing is called so, kinds (see `select`).

    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
    >>> module_names(net, ["1", net[0]])
    ('1', '0')
    """
    if not isinstance(chosen, str | nn.Module | Iterable):
        raise InputError(f"expected names, globs or modules, got {chosen!r}")
    items = [chosen] if isinstance(chosen, str | nn.Module) else list(chosen)
    return tuple(item if isinstance(item, str) else _name(model, item) for item in items)


def _name(model: nn.Module, module: nn.Module) -> str:
    found: str
    for found, candidate in model.named_modules():
        if candidate is module:
            return found
    raise InputError(
        f"{type(module).__name__} is no module of the model given; use one of its own, or a name"
    )
