"""What the arguments of an operation hold: tensors, numbers that it computes with, integers of the user's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from structprune.inputs import map_tensors
from structprune.provenance import TracedInt, plain
from structprune.rules import FunctionCall
from structprune.rules.context import iter_tensors

__all__ = ["collect", "numbers", "on_meta", "settings", "written"]

# the types of arguments that are computed with
_COMPUTED = frozenset(("number", "Optional[number]", "Tensor"))
_SETTINGS = frozenset(
    ("dim", "dims", "dim0", "dim1", "kernel_size", "stride", "padding", "dilation", "output_padding")
)


def numbers(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[object]:
    """Yield the numbers among the arguments; an int counts where the operation computes with it."""
    for position, argument in enumerate(operation._schema.arguments):
        value = args[position] if position < len(args) else kwargs.get(argument.name)
        if isinstance(value, float):
            yield value
        elif isinstance(value, int) and (argument.name == "k" or str(argument.type) in _COMPUTED):
            yield plain(value)


def settings(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[str]:
    """Yield the arguments that say how an operation computes, and are no sizes: numbers, names, dims and windows."""
    for position, argument in enumerate(operation._schema.arguments):
        value = args[position] if position < len(args) else kwargs.get(argument.name)
        if isinstance(value, str) or (argument.name in _SETTINGS and isinstance(value, (int, list, tuple))):
            yield f"{argument.name}={value}"
    yield from map(str, numbers(operation, args, kwargs))


def written(operation: Any, arguments: dict[str, Any]) -> list[Any]:
    """Return the arguments that an operation writes into."""
    written = (
        a.name for a in operation._schema.arguments if a.alias_info is not None and a.alias_info.is_write
    )
    return [arguments[name] for name in written if name in arguments]


def collect(call: FunctionCall, values: Any) -> None:
    for value in values:
        kind = type(value)
        if kind is TracedInt:
            call.traced = True
            call.ints.append(value)
        elif kind is int:
            call.ints.append(value)
        elif kind in (tuple, list, torch.Size):
            collect(call, value)
        elif kind is slice:
            collect(call, (value.start, value.stop, value.step))


def on_meta(
    operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments, with what an operation creates and what was created outside the trace on meta."""
    if "device" in kwargs:
        kwargs = {**kwargs, "device": torch.device("meta")}
    tensors = list(iter_tensors((args, list(kwargs.values()))))
    if (
        not tensors
        and "device" not in kwargs
        and any(a.name == "device" for a in operation._schema.arguments)
    ):
        kwargs = {**kwargs, "device": torch.device("meta")}
    if any(not tensor.is_meta and tensor.ndim for tensor in tensors):
        args, kwargs = map_tensors((args, kwargs), lambda t: t.to("meta") if t.ndim else t)
    return args, kwargs
