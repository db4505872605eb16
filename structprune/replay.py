"""The masked original: the same run once more, on real numbers, that does not listen to what a plan removes.

Contractions count removed positions as zero. Statistics (norms, softmax, means) are taken over the kept positions, and
put noise where the removed ones were. Nothing else is touched, so whatever is left in removed channels flows on freely.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from structprune import axes
from structprune.axes import Expr
from structprune.cutting import Cut, count_of, positions
from structprune.errors import StructpruneError
from structprune.gathering import put, removed, take
from structprune.records import LAYOUT
from structprune.rules import Site, lookup_function
from structprune.rules.context import Dims, iter_tensors
from structprune.tracer import Tracer

__all__ = ["OtherOperations", "Replay", "noise"]

_DRAWN = 10_007


class OtherOperations(StructpruneError):
    """A run took other operations than the trace: on real tensors torch chose another form of one of them."""


class Replay(Tracer):
    """Runs each operation as it was traced, now on real tensors and with masks at its sites.

    ``operations`` are the names that are expected, in order (none: any), and ``sites`` are keyed by their place among
    them, those of `LAYOUT` left out of both; ``observe`` sees what comes out.
    """

    def __init__(
        self,
        sites: Mapping[int, Site],
        cut: Cut,
        generator: torch.Generator,
        operations: Sequence[str] = (),
        observe: Callable[[int, str, Any], None] | None = None,
    ) -> None:
        super().__init__("real")
        self.operations = operations
        self.sites = sites
        self.cut = cut
        self.generator = generator
        self.observe = observe

    def dispatch(self, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.muted:
            return operation(*args, **kwargs)
        _, name, names, *_ = self._known.get(operation) or self._learn(operation)
        return self._step(operation, name, names, args, kwargs)

    def function(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        found = lookup_function(function)
        if found is None:
            return function(*args, **kwargs)
        self.muted = True
        try:
            return self._step(function, function.__name__, found[1], args, kwargs)
        finally:
            self.muted = False

    def _step(self, operation: Any, name: str, names: Sequence[str], args: Any, kwargs: Any) -> Any:
        if name in LAYOUT:
            out = operation(*args, **kwargs)
            self.note(out)
            return out
        self._expect(name)
        site = self.sites.get(self.context.index)
        if site is None:
            out = operation(*args, **kwargs)
        else:
            change = self._zeroed if site.axes else self._kept
            out = change(site, operation, names, args, kwargs)
        self.note(out)
        if self.observe is not None:
            self.observe(self.context.index, self.context.layer, out)
        self.context.index += 1
        return out

    def _expect(self, name: str) -> None:
        index = self.context.index
        if self.operations and (index >= len(self.operations) or self.operations[index] != name):
            wanted = self.operations[index] if index < len(self.operations) else "the end"
            raise OtherOperations(f"operation {index} is {name}, where the trace had {wanted}")

    def _zeroed(self, site: Site, operation: Any, names: Any, args: Any, kwargs: Any) -> Any:
        reduced = {leaf for expr in site.reduced for leaf in axes.leaves(expr)}
        cut = {leaf: keep for leaf, keep in self.cut.items() if leaf in reduced}

        def zero(name: str, value: Any) -> Any:
            if name not in site.axes:
                return value
            index = positions(site.arguments[name], cut)
            axis = site.axes[name]
            if axis not in index:
                return value
            shape = index[axis].shape if index[axis].ndim > 1 else ()
            with_it = {dim: at for dim, at in index.items() if dim == axis or (shape and shape[dim] > 1)}
            return value.masked_fill(removed(value, with_it), 0)

        return _call(operation, names, args, kwargs, zero)

    def _kept(self, site: Site, operation: Any, names: Any, args: Any, kwargs: Any) -> Any:
        counts = {leaf: count_of(choice) for leaf, choice in self.cut.items()}

        def small(name: str, value: Any) -> Any:
            if name in site.arguments:
                return take(value, positions(site.arguments[name], self.cut))
            if name in site.integers:
                wanted = site.integers[name]
                if isinstance(wanted, Expr):
                    return axes.size_under(wanted, counts)
                return [axes.size_under(expr, counts) for expr in wanted]
            return value

        out = _call(operation, names, args, kwargs, small)
        wide = iter(
            [self._widened(t, dims) for t, dims in zip(iter_tensors((out,)), site.outputs, strict=True)]
        )
        if isinstance(out, torch.Tensor):
            return self._written_back(operation, args, next(wide))
        return type(out)(next(wide) if isinstance(item, torch.Tensor) else item for item in out)

    def _widened(self, tensor: torch.Tensor, dims: Dims) -> torch.Tensor:
        index = positions(dims, self.cut)
        if not index:
            return tensor
        return put(noise([dim.size for dim in dims], tensor, self.generator), index, tensor)

    def _written_back(self, operation: Any, args: tuple[Any, ...], out: torch.Tensor) -> torch.Tensor:
        schema = getattr(operation, "_schema", None)
        if schema is not None and schema.is_mutable and isinstance(args[0], torch.Tensor):
            return args[0].copy_(out)
        return out


def noise(shape: Sequence[int], like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return numbers in [0.5, 1.5) of ``like``'s dtype and device, ones where it holds no floats; positive, so roots
    exist.

    A few thousand numbers are drawn and repeated: a prime number of them, so that no two channels get the same.
    """
    if not like.is_floating_point() and not like.is_complex():
        return like.new_ones(shape)
    size = math.prod(shape)
    drawn = torch.rand(min(size, _DRAWN), generator=generator, dtype=torch.float64) + 0.5
    copies = -(-size // max(len(drawn), 1))
    return drawn.to(like.device, like.dtype).repeat(copies)[:size].view(tuple(shape))


def _call(operation: Any, names: Any, args: Any, kwargs: Any, change: Callable[[str, Any], Any]) -> Any:
    new = tuple(change(name, value) for name, value in zip(names, args, strict=False))
    return operation(*new, **{name: change(name, value) for name, value in kwargs.items()})
