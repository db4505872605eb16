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
_FEWEST = 5  # samples that name a kernel's dimensions
NameSizes = Callable[[Sequence[int]], "Size | None"]
NamesAt = Callable[[Sequence[np.ndarray], Sequence[int]], NameSizes]


@dataclass(frozen=True)
class Sample:
    """A network at ``counts``, profiled: int64 ``[groups]``, multiples of ``alignment``; the ``whole`` one or a cut."""

    counts: np.ndarray
    profile: Profile
    alignment: int = 64
    whole: bool = False


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


def parts(samples: Sequence[Sample], names: NamesAt, blocks: Sequence[int] = (1,)) -> tuple[Part, ...]:
    """The kernels of the network as most samples have them, each with the dimensions that its sizes are.

    ``names(points, blocks)`` gives for networks at ``points`` a function from sizes, one for each of them, to the
    dimension that has these. The samples are in order, the coarsest widths first: where a runtime takes another path at
    fine ones, a kernel is named by the coarse ones alone. A kernel with a size that is no dimension of the network is
    left out.
    """
    by_name = [{kernel.name: kernel for kernel in sample.profile.kernels} for sample in samples]
    listed = [tuple(one) for one in by_name]
    reference = max(listed, key=lambda one: (listed.count(one), -listed.index(one)))
    coarse = [len(samples)]
    while coarse[-1] > _FEWEST:
        coarse.append(max(coarse[-1] * 2 // 3, _FEWEST))
    found = []
    namers: dict[tuple[int, ...], NameSizes] = {}
    for name in reference:
        for count in coarse:
            having = tuple(n for n, one in enumerate(by_name[:count]) if name in one)
            if len(having) < min(_FEWEST, len(samples)):
                break
            if having not in namers:
                namers[having] = names([samples[n].counts for n in having], blocks)
            part = _part(name, [by_name[n][name] for n in having], namers[having])
            if part is not None:
                found.append(part)
                break
    return tuple(found)


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
