"""Example inputs: how a caller's tensors become the positional and keyword arguments of a forward.

Three spellings are accepted wherever structprune asks for example inputs: one tensor, a tuple of positional
arguments, or a dict of keyword arguments; `((a, b), {"c": d})` gives both. A list is refused, since it may
mean several arguments or one argument that is a list. The command line's spellings (`1x3x224x224`,
`mask=1x16:int64`) end in the same place.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from structprune.arguments import typed
from structprune.errors import InputError
from structprune.outputs import attributes

__all__ = [
    "batch_size",
    "map_tensors",
    "named_tensors",
    "normalize_inputs",
    "parse_inputs",
    "random_like",
    "repeat_batch",
    "tensors_in",
]

_SPEC = re.compile(
    r"(?:(?P<name>[A-Za-z_]\w*)=)?(?P<shape>\d+(?:x\d+)*)(?::(?P<dtype>[a-z]\w*))?(?::(?P<high>\d+))?"
)
_MAX_ELEMENTS = 2**31


def normalize_inputs(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The positional and keyword arguments that `example_inputs` stands for, as `(args, kwargs)`.

    One tensor is one positional argument, a tuple holds positional arguments, a mapping keyword arguments;
    a tuple of a tuple and a mapping gives both. A namedtuple or a dataclass holding tensors is one argument.

    Raises:
        InputError: for a list, for keywords that are no strings, and where there is no tensor at all.

    >>> args, kwargs = normalize_inputs({"x": torch.zeros(1, 3)})
    >>> len(args), kwargs["x"].shape
    (0, torch.Size([1, 3]))
    """
    if isinstance(example_inputs, list):
        raise InputError(
            f"example_inputs is a list of {len(example_inputs)}: write tuple(inputs) if its items are the "
            "arguments of forward, or (inputs,) if the list itself is one argument"
        )
    args, kwargs = _arguments(example_inputs)
    bad = [key for key in kwargs if not isinstance(key, str)]
    if bad:
        raise InputError(f"example_inputs as a dict are keyword arguments; the key {bad[0]!r} is no string")
    if not tensors_in((args, kwargs)):
        raise InputError(
            f"example_inputs of type {type(example_inputs).__name__} hold no tensor: give one tensor, a "
            "tuple of arguments or a dict of keyword arguments, as the model's forward takes them"
        )
    return args, kwargs


def _arguments(example_inputs: Any) -> tuple[tuple[Any, ...], dict[Any, Any]]:
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, tuple) and not hasattr(example_inputs, "_fields"):
        if len(example_inputs) == 2 and isinstance(example_inputs[0], tuple):
            args, kwargs = example_inputs
            if isinstance(kwargs, Mapping) and not hasattr(args, "_fields"):
                return tuple(args), dict(kwargs)
        return tuple(example_inputs), {}
    return (example_inputs,), {}


def map_tensors(tree: Any, fn: Callable[[Tensor], Any]) -> Any:
    """The same tree with `fn` applied to every tensor: lists, tuples, dicts, other mappings, dataclasses, objects.

    What is registered with `torch.utils._pytree` is taken apart as registered. An object of another class is copied
    where an attribute of it holds a tensor, at any depth; modules and functions stay as they are.

    >>> map_tensors({"a": [torch.ones(2), 3]}, lambda t: t.shape[0])
    {'a': [2, 3]}
    """
    return _map(tree, fn, {})


def _map(tree: Any, fn: Callable[[Tensor], Any], copies: dict[int, Any]) -> Any:
    return pytree.tree_map(lambda leaf: _map_leaf(leaf, fn, copies), tree)


def _map_leaf(leaf: Any, fn: Callable[[Tensor], Any], copies: dict[int, Any]) -> Any:
    if isinstance(leaf, Tensor):
        return fn(leaf)
    if isinstance(leaf, Mapping):  # a mapping that pytree does not know, such as a tokenizer's encoding
        kind: Callable[[dict[Any, Any]], Any] = type(leaf)
        return kind({key: _map(value, fn, copies) for key, value in leaf.items()})
    if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
        values = {f.name: _map(getattr(leaf, f.name), fn, copies) for f in dataclasses.fields(leaf) if f.init}
        return dataclasses.replace(leaf, **values)
    if id(leaf) in copies:
        return copies[id(leaf)]
    held = _held(leaf)
    if not held or not tensors_in(leaf):
        return leaf
    copies[id(leaf)] = copied = copy.copy(leaf)
    for name, value in held.items():
        object.__setattr__(copied, name, _map(value, fn, copies))
    return copied


def _held(value: Any) -> dict[str, Any]:
    """The attributes of an object that stands for its data alone: no module, function, type or array."""
    if isinstance(value, nn.Module | types.ModuleType | type | np.ndarray) or callable(value):
        return {}
    return attributes(value)


def tensors_in(tree: Any) -> list[Tensor]:
    """Every tensor of a tree, in its order; what is no tensor is passed over.

    >>> [tuple(t.shape) for t in tensors_in((torch.zeros(2), {"k": torch.zeros(3), "flag": True}))]
    [(2,), (3,)]
    """
    return [tensor for _, tensor in named_tensors(tree)]


def named_tensors(tree: Any) -> list[tuple[str, Tensor]]:
    """Every tensor of a tree, its keys, fields and positions joined by "_" ("" for a lone tensor).

    >>> [name for name, _ in named_tensors({"k": (torch.zeros(2), [torch.zeros(3)]), "flag": True})]
    ['k_0', 'k_1_0']
    """
    return list(_named(tree, set()))


def _named(tree: Any, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    if isinstance(tree, Tensor):
        yield "", tree
        return
    children = _children(tree)
    if children is None:  # an object: it may hold the one that holds it
        children = [] if id(tree) in seen else list(_held(tree).items())
        seen.add(id(tree))
    for key, value in children:
        for name, tensor in _named(value, seen):
            yield (f"{key}_{name}" if name else key), tensor


def _children(tree: Any) -> list[tuple[str, Any]] | None:
    """What a container holds, by name; None for what is no container."""
    if isinstance(tree, Mapping):
        return [(str(key), value) for key, value in tree.items()]
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        return [(field.name, getattr(tree, field.name)) for field in dataclasses.fields(tree) if field.init]
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return list(zip(tree._fields, tree, strict=True))
    if isinstance(tree, tuple | list):
        return [(str(position), value) for position, value in enumerate(tree)]
    leaves = pytree.tree_leaves(tree)
    if len(leaves) == 1 and leaves[0] is tree:
        return None
    return [(str(position), leaf) for position, leaf in enumerate(leaves)]


def batch_size(example_inputs: Any) -> int:
    """The size of dim 0 of the first tensor that has dimensions; 1 where there is none.

    >>> batch_size((torch.zeros(4, 3), torch.zeros(4)))
    4
    """
    return next((t.shape[0] for t in tensors_in(example_inputs) if t.ndim), 1)


def repeat_batch(tree: Any, batch: int) -> Any:
    """The same tree at another batch size: rows repeated or dropped where dim 0 is the batch.

    >>> repeat_batch(torch.tensor([[1], [2]]), 3).flatten().tolist()
    [1, 2, 1]
    """
    _check_batch(batch)
    old = batch_size(tree)

    def resize(tensor: Tensor) -> Tensor:
        if not tensor.ndim or tensor.shape[0] != old:
            return tensor
        return tensor[torch.arange(batch, device=tensor.device) % old]

    return tree if batch == old else map_tensors(tree, resize)


def _check_batch(batch: int) -> None:
    if batch < 1:
        raise InputError(f"{batch=}: a batch holds at least 1 sample")


def random_like(tree: Any, batch: int | None = None, seed: int = 0) -> Any:
    """A tree of the same kind with fresh random values: floats normal, integers drawn from the range seen.

    Floats keep the example's mean and spread (an image in 0-255 stays one), and are plain normal noise where
    the example is constant; bools are drawn, unless the example holds only one of the two. With `batch`,
    every tensor whose dim 0 is the example's batch size gets `batch` there.

    Raises:
        InputError: where `batch` is below 1.
    """
    if batch is not None:
        _check_batch(batch)
    generator = torch.Generator().manual_seed(seed)
    old = batch_size(tree)

    def fresh(example: Tensor) -> Tensor:
        shape = list(example.shape)
        if batch is not None and shape and shape[0] == old:
            shape[0] = batch
        return _draw(example.detach().cpu(), shape, generator).to(example.device)

    return map_tensors(tree, fresh)


def _draw(example: Tensor, shape: list[int], generator: torch.Generator) -> Tensor:
    if example.dtype == torch.bool:
        if example.numel() and bool(example.all() == example.any()):
            return example.flatten()[:1].expand(shape).clone()
        return torch.randint(0, 2, shape, generator=generator).bool()
    if example.is_floating_point() or example.is_complex():
        wide = torch.complex64 if example.is_complex() else torch.float32
        noise = torch.randn(shape, generator=generator, dtype=wide)
        seen = example.to(wide)
        spread = seen.std().item() if seen.numel() > 1 else 0.0
        if spread > 0 and math.isfinite(spread):
            noise = noise * spread + seen.mean()
        return noise.to(example.dtype)
    low, high = (int(example.min()), int(example.max())) if example.numel() else (0, 0)
    return torch.randint(low, high + 1, shape, generator=generator).to(example.dtype)


@typed
def parse_inputs(specs: Sequence[str], seed: int = 0) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Random inputs for specifications such as `1x3x224x224` or `ids=1x16:int64:30522`, as `(args, kwargs)`.

    A specification is `[name=]SIZES[:dtype[:high]]`: sizes joined by x, a torch dtype (float32 if left out),
    and for integers the bound below which they are drawn (2 if left out: zeros and ones, which suit token
    ids, type ids and masks alike). Named ones become keyword arguments, the others positional ones, in order.

    Raises:
        InputError: for a text that does not read, an unknown dtype, a name given twice, no text at all.

    >>> args, kwargs = parse_inputs(["1x3x8x8", "mask=1x16:int64"])
    >>> tuple(args[0].shape), kwargs["mask"].dtype
    ((1, 3, 8, 8), torch.int64)
    """
    if not specs:
        raise InputError(
            "no input was given: name its sizes, as in --input 1x3x224x224 or --input ids=1x16:int64"
        )
    generator = torch.Generator().manual_seed(seed)
    args: list[Tensor] = []
    kwargs: dict[str, Tensor] = {}
    for spec in specs:
        name, tensor = _parse_spec(spec, generator)
        if name is None:
            args.append(tensor)
        elif name in kwargs:
            raise InputError(f"input {spec!r}: the name {name!r} was given before")
        else:
            kwargs[name] = tensor
    return tuple(args), kwargs


def _parse_spec(spec: str, generator: torch.Generator) -> tuple[str | None, Tensor]:
    match = _SPEC.fullmatch(spec.strip())
    if match is None:
        raise InputError(
            f"input {spec!r} does not read as [name=]SIZES[:dtype[:high]]: write 1x3x224x224, "
            "1x16:int64 or ids=1x16:int64:30522"
        )
    shape = [int(size) for size in match["shape"].split("x")]
    dtype = getattr(torch, match["dtype"] or "float32", None)
    if not isinstance(dtype, torch.dtype):
        raise InputError(
            f"input {spec!r}: torch has no dtype {match['dtype']!r}; float32, float16, int64, bool are some"
        )
    if min(shape) < 1 or math.prod(shape) > _MAX_ELEMENTS:
        raise InputError(
            f"input {spec!r}: every size is at least 1 and the tensor at most {_MAX_ELEMENTS} elements"
        )
    if dtype.is_floating_point or dtype.is_complex:
        if match["high"] is not None:
            raise InputError(f"input {spec!r}: the upper bound is for integers, and {dtype} is none")
        wide = torch.complex64 if dtype.is_complex else torch.float32
        return match["name"], torch.randn(shape, generator=generator, dtype=wide).to(dtype)
    high = int(match["high"] or 2)
    if high < 1:
        raise InputError(f"input {spec!r}: the upper bound is {high}; it is exclusive, so at least 1")
    return match["name"], torch.randint(0, high, shape, generator=generator).to(dtype)
