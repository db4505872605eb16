"""What a model returns, whatever it is wrapped in: its tensors for the trace, all that it states for the proof."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from structprune.errors import InputError

__all__ = ["Outputs", "attributes", "chosen_outputs", "output_integers", "output_tensors", "output_values"]


Outputs = str | int | Sequence[str | int] | Callable[[Any], Any] | None
"""Which part of a forward's result counts: names or positions in it, a function that picks, or all of it (None)."""


def chosen_outputs(result: Any, outputs: Outputs) -> Any:
    """Return the part of a forward's result that counts as the network's output.

    Raises InputError where the result has no such part.

    >>> chosen_outputs({"logits": 1, "cache": 2}, "logits")
    [1]
    """
    if outputs is None:
        return result
    if callable(outputs):
        return outputs(result)
    return [_part(result, name) for name in ((outputs,) if isinstance(outputs, str | int) else outputs)]


def _part(result: Any, name: str | int) -> Any:
    try:
        return result[name] if isinstance(result, Mapping) or isinstance(name, int) else getattr(result, name)
    except (LookupError, AttributeError, TypeError) as error:
        known = list(result) if isinstance(result, Mapping) else sorted(getattr(result, "__dict__", {}))
        raise InputError(f"outputs: a {type(result).__name__} has no {name!r}; it has {known}") from error


def output_tensors(result: Any) -> list[torch.Tensor]:
    """Return the tensors of a model's output, in any nest of lists, tuples, dicts, dataclasses or plain objects."""
    return [value for value, _ in _leaves(result) if isinstance(value, torch.Tensor)]


def output_integers(result: Any) -> list[int]:
    """Return the integers that a model's output states, in lists, tuples, dicts and dataclasses."""
    return [value for value, stated in _leaves(result) if stated and isinstance(value, int)]


def output_values(result: Any) -> list[torch.Tensor]:
    """Return all that a model's output states, as tensors: tensors and arrays, numbers, texts as their bytes, None as
    an empty one. What plain objects hold beside tensors is their own matter.

    >>> output_values({"score": 0.5, "label": "a", "boxes": None})
    [tensor(0.5000, dtype=torch.float64), tensor([97], dtype=torch.uint8), tensor([], dtype=torch.uint8)]
    """
    found = (
        _as_tensor(value) for value, stated in _leaves(result) if stated or isinstance(value, torch.Tensor)
    )
    return [value for value in found if value is not None]


def _as_tensor(value: Any) -> torch.Tensor | None:
    if isinstance(value, torch.Tensor):
        return value
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value) if value.dtype.kind in "biufc" else _as_tensor(str(value.tolist()))
    if isinstance(value, float | np.floating):
        return torch.tensor(float(value), dtype=torch.float64)
    if isinstance(value, complex):
        return torch.tensor(value, dtype=torch.complex128)
    if value is None or isinstance(value, int | np.integer | str | bytes):
        text = b"" if value is None else value if isinstance(value, bytes) else str(value).encode()
        return torch.tensor(list(text), dtype=torch.uint8)
    return None


def _leaves(result: Any) -> Iterator[tuple[Any, bool]]:
    """Yield what an output is made of, and whether it states it: what lies in plain objects it only carries along."""
    seen: set[int] = set()
    waiting = [(result, True)]
    while waiting:
        value, stated = waiting.pop()
        if isinstance(value, torch.Tensor | int | str | float) or value is None:
            yield value, stated
        elif id(value) not in seen and not isinstance(value, nn.Module):
            seen.add(id(value))
            inside = _inside(value)
            if not inside:
                yield value, stated
            states = isinstance(value, list | tuple | set | frozenset) or _has_fields(value)
            waiting.extend((item, stated and states) for item in reversed(inside))
    # `seen` holds ids of what the result holds, so none of them can be given to another object meanwhile


def _has_fields(value: Any) -> bool:
    return isinstance(value, dict) or hasattr(value, "items") or dataclasses.is_dataclass(value)


def _inside(value: Any) -> list[Any]:
    if isinstance(value, type | np.ndarray | np.generic):
        return []
    if isinstance(value, dict) or hasattr(value, "items"):
        return list(value.values())
    if isinstance(value, list | tuple | set | frozenset):
        return list(value)
    return list(attributes(value).values())


def attributes(value: Any) -> dict[str, Any]:
    """Return the attributes that an object holds, those in slots included."""
    slots = [getattr(kind, "__slots__", ()) for kind in type(value).__mro__]
    names = [name for group in slots for name in ((group,) if isinstance(group, str) else group)]
    held = {name: getattr(value, name) for name in names if name[:2] != "__" and hasattr(value, name)}
    return {**held, **getattr(value, "__dict__", {})}
