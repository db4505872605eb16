"""Kernels of one form: the operation and its shapes, with the dimensions that can be cut left open."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from structprune.forecast.template import Size, Width
from structprune.runtimes.profiles import Kernel, Profile

__all__ = ["Form", "Part", "Sample", "parts"]

_BLOCK = 6  # shapes: more has no convolution or product with bias, residual and output
_FUSED = ("FusedConv", "FusedGemm", "FusedMatMul")
NameSizes = Callable[[Sequence[int]], "Size | None"]


@dataclass(frozen=True)
class Sample:
    """A network at ``counts`` (int64 ``[groups]``), profiled."""

    counts: np.ndarray
    profile: Profile


@dataclass(frozen=True)
class Form:
    """What kernels that differ only in width have in common: open sizes are None, and ``open`` numbers the distinct
    ones among them in the order they stand in the shapes.
    """

    operation: str
    shapes: tuple[tuple[int | None, ...], ...]
    open: tuple[int, ...]

    def widths(self, kernel: Kernel) -> tuple[int, ...] | None:
        """The open sizes of a kernel of this form, in order; None for a kernel of another form."""
        shapes = _main_shapes(kernel)
        if operation(kernel) != self.operation or [*map(len, shapes)] != [*map(len, self.shapes)]:
            return None
        found: dict[int, int] = {}
        numbers = iter(self.open)
        for size, fixed in zip(itertools.chain(*shapes), itertools.chain(*self.shapes), strict=True):
            if fixed is not None and size != fixed:
                return None
            if fixed is None and found.setdefault(next(numbers), size) != size:
                return None
        return tuple(found[number] for number in sorted(found))


@dataclass(frozen=True)
class Part:
    """A kernel of the network at any widths: its form, and the network's dimensions that are its open sizes."""

    name: str
    form: Form
    open: tuple[Width, ...]


def parts(samples: Sequence[Sample], name_sizes: NameSizes) -> tuple[Part, ...]:
    """The kernels that are in all samples; ``name_sizes(sizes)`` says which dimension has these sizes, sample by
    sample. A kernel with a size that varies and is no dimension of the network is left out.
    """
    by_name = [{kernel.name: kernel for kernel in sample.profile.kernels} for sample in samples]
    shared = [name for name in by_name[0] if all(name in one for one in by_name)]
    found = (_part(name, [one[name] for one in by_name], name_sizes) for name in shared)
    return tuple(part for part in found if part is not None)


def _part(name: str, seen: Sequence[Kernel], name_sizes: NameSizes) -> Part | None:
    shapes = [_main_shapes(kernel) for kernel in seen]
    if len({tuple(map(len, one)) for one in shapes}) > 1:
        return None
    numbers: dict[Width, int] = {}
    order, fixed = [], []
    for sizes in zip(*(itertools.chain(*one) for one in shapes), strict=True):
        size = name_sizes(sizes)
        if size is None:
            return None
        fixed.append(size if isinstance(size, int) else None)
        if not isinstance(size, int):
            order.append(numbers.setdefault(size, len(numbers)))
    rest = iter(fixed)
    pattern = tuple(tuple(next(rest) for _ in shape) for shape in shapes[0])
    return Part(name, Form(operation(seen[0]), pattern, tuple(order)), tuple(numbers))


def operation(kernel: Kernel) -> str:
    """The kernel's operation, whether or not another one is fused into it."""
    return kernel.operation.removeprefix("Fused") if kernel.operation in _FUSED else kernel.operation


def _main_shapes(kernel: Kernel) -> tuple[tuple[int, ...], ...]:
    """The first two inputs and the output: what follows the second input (bias, residual) goes with the output. A
    kernel of many inputs is a whole block with all its weights: there each counts.
    """
    if len(kernel.shapes) > _BLOCK:
        return kernel.shapes
    return (*kernel.shapes[:-1][:2], kernel.shapes[-1])
