"""What torch-pruning's pruners take that shapes its graph: checked, and carried over to a copy of the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from structprune.errors import InputError

__all__ = ["Options", "on_copy", "read_options"]


@dataclass(frozen=True)
class Options:
    """Names and meanings are those of `torch_pruning.pruner.BasePruner`; modules and parameters are the model's own.

    ``num_heads`` and the two ``*_channel_groups`` say into how many stretches a layer's channels fall that keep the
    same positions each.
    """

    customized_pruners: Mapping[Any, Any] = field(default_factory=dict)
    unwrapped_parameters: Any = ()  # pairs of a parameter and the dimension to cut, or a dict of the same
    ignored_layers: Sequence[nn.Module | nn.Parameter] = ()
    root_module_types: Sequence[type[nn.Module]] | None = None
    in_channel_groups: Mapping[nn.Module, int] = field(default_factory=dict)
    out_channel_groups: Mapping[nn.Module, int] = field(default_factory=dict)
    num_heads: Mapping[nn.Module, int] = field(default_factory=dict)
    forward_fn: Callable[[nn.Module, Any], Any] | None = None
    output_transform: Callable[[Any], Any] | None = None
    verbose: bool = False

    def ignored_modules(self) -> set[nn.Module]:
        """The ignored layers with everything inside them."""
        layers = (layer for layer in self.ignored_layers if isinstance(layer, nn.Module))
        return {module for layer in layers for module in layer.modules()}

    def ignored_parameters(self) -> list[nn.Parameter]:
        """The parameters that are to stay, though their group is cut."""
        return [item for item in self.ignored_layers if isinstance(item, nn.Parameter)]


def read_options(given: Mapping[str, Any]) -> Options:
    """Return the options; raises InputError for one that torch-pruning's dependency graph does not take."""
    known = [field.name for field in dataclasses.fields(Options)]
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise InputError(
            f"engine_options has no {unknown[0]!r}; torch-pruning's graph takes {', '.join(known)}"
        )
    options = Options(**given)
    for item in options.ignored_layers:
        if not isinstance(item, nn.Module | nn.Parameter):
            raise InputError(f"ignored_layers takes modules and parameters of the model, got {item!r}")
    pairs = options.unwrapped_parameters
    if isinstance(pairs, Mapping):
        pairs = pairs.items()
    return dataclasses.replace(options, unwrapped_parameters=tuple(tuple(pair) for pair in pairs))


def on_copy(options: Options, twins: Mapping[int, Any]) -> Options:
    """Return the options with every module and parameter replaced by its twin; ``twins`` is keyed by id."""

    def twin(value: Any) -> Any:
        if isinstance(value, nn.Module | nn.Parameter):
            if id(value) not in twins:
                kind = type(value).__name__
                raise InputError(f"engine_options names a {kind} that is not part of the model")
            return twins[id(value)]
        if isinstance(value, Mapping):
            return {twin(key): item for key, item in value.items()}
        if isinstance(value, Iterable) and not isinstance(value, str):
            return [twin(item) for item in value]
        return value

    return Options(
        **{field.name: twin(getattr(options, field.name)) for field in dataclasses.fields(Options)}
    )
