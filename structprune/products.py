"""A product of a parameter with what reaches it, seen as matrices, whatever operation computes it.

Linear layers, matrix products and convolutions, transposed and grouped ones too, are all ``rows @ matrices.mT``: the
rows of a convolution are the patches under its kernel.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Layout", "Place", "Sliding", "Use"]

_BLOCK = 1 << 17  # numbers that are squared at once


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the numbers of a tensor lie in its memory."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    @staticmethod
    def of(tensor: Tensor) -> Layout:
        return Layout(tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()))


@dataclass(frozen=True, slots=True)
class Sliding:
    """How a kernel slides over its input."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    extra: tuple[int, ...]
    groups: int


@dataclass(frozen=True, slots=True)
class Place:
    """Where and how one operation reads a parameter; equal for every batch, so that sums can be kept under it.

    ``steps`` lead from the parameter to the operand: at each, the layout of the whole tensor (the parameter, or what
    stands for a view of it) and of the view that was taken of it.
    """

    parameter: str  #: its name in `named_parameters()`
    steps: tuple[tuple[Layout, Layout], ...]
    side: str  #: which operand of a matrix product it is, "left" or "right"; "kernel": of a convolution
    sliding: Sliding | None = None

    @property
    def operand(self) -> Layout:
        """The layout of the tensor that the operation reads."""
        return self.steps[-1][1]

    def matrices(self, tensor: Tensor) -> Tensor:
        """What a tensor of the parameter's shape is to the operation, ``[groups, outputs, inputs]``."""
        return self.seen(self._followed(tensor)[-1][1]).flatten(2)

    def put(self, tensor: Tensor, matrices: Tensor) -> None:
        """Write ``[groups, outputs, inputs]`` into a tensor of the parameter's shape, where the operation reads it."""
        followed = self._followed(tensor)
        view = self.seen(followed[-1][1])
        view.copy_(matrices.reshape(view.shape))
        sources = [tensor, *(view for _, view in followed)]
        for source, (laid, _) in reversed(list(zip(sources, followed, strict=False))):
            if laid is not source:
                source.copy_(laid)

    def seen(self, operand: Tensor) -> Tensor:
        """The operand as ``[groups, outputs, *inputs]``, in the same memory."""
        if self.sliding is not None:
            view = operand.view(self.sliding.groups, -1, *operand.shape[1:])
            return view.transpose(1, 2) if self.sliding.transposed else view
        if operand.ndim == 1:
            return operand.view(1, 1, -1)
        view = operand.mT if self.side == "right" else operand
        view = view if view.ndim == 3 else view.unsqueeze(0)
        return view[:1] if self._repeated() else view

    def rows(self, x: Tensor) -> Tensor:
        """What the matrices are multiplied with where ``x`` is the input, ``[groups, rows, inputs]``."""
        if self.sliding is not None:
            return _patches(x, self.operand.size[2:], self.sliding)
        if x.ndim == 1:
            return x.view(1, 1, -1)
        if self.side == "left" and len(self.operand.size) > 1:
            x = x.mT
        x = x if x.ndim == 3 else x.unsqueeze(0)
        return x.reshape(1, -1, x.shape[-1]) if self._repeated() else x

    def swept(self, squares: Tensor) -> Tensor:
        """The sum over the rows of their squares, ``[groups, inputs]``, of what `Use.squares` gave, or sums of such."""
        return (squares if self.sliding is None else self.rows(squares)).sum(1)

    def _repeated(self) -> bool:
        """Whether one matrix was expanded to a batch of equal ones."""
        return len(self.operand.size) == 3 and self.operand.stride[0] == 0

    def _followed(self, tensor: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The tensor in each step's layout, copied where it has another one, and the view of it."""
        found: list[tuple[Tensor, Tensor]] = []
        for whole, view in self.steps:
            if tensor.stride() == whole.stride:
                laid = tensor
            else:
                laid = torch.empty_strided(whole.size, whole.stride, dtype=tensor.dtype, device=tensor.device)
                laid.copy_(tensor)
            tensor = laid.as_strided(
                view.size, view.stride, laid.storage_offset() + view.offset - whole.offset
            )
            found.append((laid, tensor))
        return found


@dataclass(frozen=True, slots=True)
class Use:
    """One product of a parameter with what reaches it: ``output = rows @ matrices.mT`` (and a bias), seen as matrices.

    ``operation`` is the ATen operation, ``input``, ``weight`` and ``output`` its tensors as they are: the weight is the
    parameter, a view of it, or what stands for it. Several uses of one parameter (shared layers, the steps of a
    recurrent one) come one by one. ``bias`` is what the operation adds to the product.
    """

    place: Place
    operation: str
    input: Tensor
    weight: Tensor
    output: Tensor
    bias: Tensor | None = None

    def rows(self) -> Tensor:
        """What the weight's matrices are multiplied with, ``[groups, rows, inputs]``: for a convolution the patches
        under its kernel, ``inputs`` being channel, then kernel position.
        """
        return self.place.rows(self.input)

    def matrices(self) -> Tensor:
        """The weight as it is used, ``[groups, outputs, inputs]``: with masks, norms and casts over the parameter."""
        return self.place.seen(self.weight).flatten(2)

    def laid(self, y: Tensor) -> Tensor:
        """What the operation gave, or a tensor of its shape, ``[groups, rows, outputs]`` in the order of its rows."""
        groups = self.place.seen(self.weight).shape[0]
        if self.place.sliding is not None:
            y = y if y.ndim == self.weight.ndim else y.unsqueeze(0)
            y = y.reshape(len(y), groups, -1, y.shape[2:].numel())
            return y.permute(1, 0, 3, 2).flatten(1, 2)
        if y.ndim < 2:
            return y.view(1, -1, 1) if self.weight.ndim < 2 else y.view(1, 1, -1)
        y = y.mT if self.place.side == "left" else y
        return y.reshape(groups, -1, y.shape[-1])

    def squares(self) -> Tensor:
        """The squares of the input: ``[1, channels, *places]``, summed over samples, where a kernel slides over them,
        else ``[groups, 1, inputs]``, summed over rows; in float32 at least. `Place.swept` makes sums over rows of it.
        """
        x = self.input.detach()
        if self.place.sliding is None:
            return _square_sum(self.place.rows(x).transpose(0, 1)).unsqueeze(1)
        return _squares(x).unsqueeze(0) if x.ndim < self.weight.ndim else _square_sum(x).unsqueeze(0)

    def square_sums(self) -> Tensor:
        """The sum over the rows of their squares, ``[groups, inputs]``, in float32 at least."""
        return self.place.swept(self.squares())


def _square_sum(x: Tensor) -> Tensor:
    """The sum of squares over dim 0; as many samples at a time as stay in cache, and are added where they are."""
    parts = torch.split(x, max(1, _BLOCK // max(x[:1].numel(), 1)))
    total = _squares(parts[0])
    for part in parts[1:]:
        size = part.abs() if part.is_complex() else part
        total[: len(part)].addcmul_(size, size)
    return total.sum(0)


def _squares(x: Tensor) -> Tensor:
    size = x.abs() if x.is_complex() else x
    return size.to(torch.promote_types(x.dtype, torch.float32).to_real()).square()


def _patches(x: Tensor, kernel: tuple[int, ...], how: Sliding) -> Tensor:
    """``[groups, samples * places, channels of a group * kernel]``: what lies under the kernel at each place."""
    spatial = len(kernel)
    x = x if x.ndim == spatial + 2 else x.unsqueeze(0)
    stride, padding = how.stride, [(pad, pad) for pad in how.padding]
    if (
        how.transposed
    ):  # the convolution of the input with zeros between its positions, by the mirrored kernel
        x, stride = _spread(x, how.stride), (1,) * spatial
        reach = [d * (k - 1) for d, k in zip(how.dilation, kernel, strict=True)]
        padding = [(r - p, r - p + e) for r, p, e in zip(reach, how.padding, how.extra, strict=True)]
    x = F.pad(x, [side for pair in reversed(padding) for side in pair])
    for dim, (size, step, gap) in enumerate(zip(kernel, stride, how.dilation, strict=True), start=2):
        x = x.unfold(dim, gap * (size - 1) + 1, step)[..., ::gap]
    if how.transposed:
        x = x.flip(list(range(-spatial, 0)))
    x = x.reshape(len(x), how.groups, -1, *x.shape[2:])  # [n, g, i, *places, *kernel]
    places = list(range(3, 3 + spatial))
    x = x.permute(1, 0, *places, 2, *range(3 + spatial, 3 + 2 * spatial))
    return x.flatten(2 + spatial).flatten(1, 1 + spatial)


def _spread(x: Tensor, stride: tuple[int, ...]) -> Tensor:
    sizes = [(size - 1) * step + 1 for size, step in zip(x.shape[2:], stride, strict=True)]
    wide = x.new_zeros([*x.shape[:2], *sizes])
    at: tuple[slice, ...] = (slice(None), slice(None), *(slice(None, None, step) for step in stride))
    wide[at] = x
    return wide
