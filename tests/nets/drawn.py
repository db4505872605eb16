"""Networks drawn at random: programs over a growing list of values, run by one module.

`networks()` is a hypothesis strategy. What it draws prints as the Python that builds it again, so that a network that
fails can be pasted into a test. Shapes are followed by running each part on zeros as it is drawn.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.nets.drawn_parts import PARTS, Part, Shape, axis_of

__all__ = ["Drawn", "Program", "Step", "networks"]

LARGEST = 4096  # numbers in one value, the batch included


@dataclass(frozen=True)
class Step:
    """One part, by name, with its options and the values it reads (0 is the network's input)."""

    part: str
    inputs: tuple[int, ...]
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Program:
    """A network: the shape of its input, its steps, and the values that linear heads read."""

    shape: Shape
    steps: tuple[Step, ...]
    heads: tuple[int, ...]

    def build(self) -> Drawn:
        return Drawn(self)

    def inputs(self) -> Tensor:
        return torch.randn(self.shape, generator=torch.Generator().manual_seed(1))


class Drawn(nn.Module):
    """Runs a program; a value that no later step and no head reads is computed all the same."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.reads = tuple(tuple(map(str, step.inputs)) for step in program.steps)
        self.ends = tuple(map(str, program.heads))
        shapes = [program.shape]
        self.parts = nn.ModuleList()
        for step in program.steps:
            part = PARTS[step.part](shapes[step.inputs[0]], **step.options)
            self.parts.append(part)
            shapes += results(part, [shapes[i] for i in step.inputs])
        self.heads = nn.ModuleList(nn.Linear(shapes[i][axis_of(shapes[i])], 3) for i in program.heads)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        values = [x]
        for part, reads in zip(self.parts, self.reads, strict=True):
            out = part(*(values[int(i)] for i in reads))
            values.extend(out if isinstance(out, tuple) else (out,))
        return tuple(head(pooled(values[int(i)])) for head, i in zip(self.heads, self.ends, strict=True))


def pooled(x: Tensor) -> Tensor:
    return x.mean((2, 3)) if x.dim() == 4 else x


def results(part: Part, shapes: list[Shape]) -> list[Shape]:
    """The shapes of what a part returns."""
    part.eval()
    with torch.no_grad():
        out = part(*(torch.zeros(shape) for shape in shapes))
    part.train()
    return [tuple(tensor.shape) for tensor in (out if isinstance(out, tuple) else (out,))]


STEMS = {2: "Linear", 3: "Linear", 4: "Convolve"}


@st.composite
def networks(draw: st.DrawFn, most: int = 7) -> Program:
    """A network of a stem, up to `most` further steps and one or two heads."""

    def choose(*options: Any) -> Any:
        return draw(st.sampled_from(options))

    shape: Shape = choose((2, 3, 8, 8), (2, 4, 6), (3, 5))
    shapes, steps = [shape], []

    def add(kind: str, inputs: tuple[int, ...]) -> None:
        options = PARTS[kind].options(choose, shapes[inputs[0]])
        found = results(PARTS[kind](shapes[inputs[0]], **options), [shapes[i] for i in inputs])
        if all(torch.Size(one).numel() <= LARGEST for one in found):
            steps.append(Step(kind, inputs, options))
            shapes.extend(found)

    add(STEMS[len(shape)], (0,))
    for _ in range(draw(st.integers(1, most))):
        source = choose(*([len(shapes) - 1] * 3), *range(1, len(shapes)))
        kind = choose(*_fitting(shapes, source))
        partners = (choose(*_partners(shapes, source, kind)),) if PARTS[kind].arity == 2 else ()
        add(kind, (source, *partners))
    heads = (len(shapes) - 1, *((choose(*range(1, len(shapes))),) if choose(False, False, True) else ()))
    return Program(shape, tuple(steps), heads)


def _fitting(shapes: list[Shape], source: int) -> list[str]:
    shape = shapes[source]
    return [
        kind
        for kind, part in PARTS.items()
        if len(shape) in part.ranks
        and part.fits(shape)
        and (part.arity == 1 or _partners(shapes, source, kind))
    ]


def _partners(shapes: list[Shape], source: int, kind: str) -> list[int]:
    """The values that a part of two inputs can read beside `source`."""
    mine = shapes[source]
    axis = axis_of(mine)
    return [
        i
        for i, other in enumerate(shapes)
        if i
        and i != source
        and len(other) == len(mine)
        and all(
            a == b or (kind == "Concatenate" and k == axis)
            for k, (a, b) in enumerate(zip(mine, other, strict=True))
        )
    ]
