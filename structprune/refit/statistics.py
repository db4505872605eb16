"""What least squares needs of data: sums over rows, in float64, of a size that does not grow with the data."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Moments"]


@dataclass
class Moments:
    """Sums over rows ``x [g, r, n]`` and targets ``y [g, r, o]``: the Gram matrix ``[g, n, n]``, the products of inputs
    and targets ``[g, n, o]``, both sums, and the squares of the targets ``[g, o]``.
    """

    count: int
    gram: Tensor
    cross: Tensor
    inputs: Tensor
    outputs: Tensor
    squares: Tensor

    @staticmethod
    def zeros(matrix: Tensor) -> Moments:
        """The sums over no rows, for a layer whose weight reads as ``matrix [g, o, n]``."""
        groups, out, width = matrix.shape

        def empty(*shape: int) -> Tensor:
            return torch.zeros(groups, *shape, dtype=torch.float64, device=matrix.device)

        return Moments(0, empty(width, width), empty(width, out), empty(width), empty(out), empty(out))

    @staticmethod
    def bytes(matrix: Tensor) -> int:
        """The memory that the sums of such a layer take."""
        groups, out, width = matrix.shape
        return 8 * groups * (width * width + width * out + width + 2 * out)

    def add(self, x: Tensor, y: Tensor) -> None:
        """Take rows and their targets in."""
        self.count += x.shape[1]
        self.gram += x.mT @ x
        self.cross += x.mT @ y
        self.inputs += x.sum(1)
        self.outputs += y.sum(1)
        self.squares += y.square().sum(1)

    def error(self, matrix: Tensor, bias: Tensor) -> float:
        """The relative error of ``x @ matrix^T + bias`` over all rows: root of the squared differences over the squared
        targets; 0 over no rows.

        ``matrix`` is ``[g, o, n]`` and ``bias`` ``[g, o]``, both float64.
        """
        squares = (
            ((matrix @ self.gram) * matrix).sum(-1) - 2 * (matrix * self.cross.mT).sum(-1) + self.squares
        )
        means = (matrix @ self.inputs.unsqueeze(-1)).squeeze(-1) - self.outputs
        total = (squares + 2 * bias * means + self.count * bias.square()).sum()
        return relative(total, self.squares.sum())


def relative(squares: Tensor, whole: Tensor) -> float:
    """The root of a sum of squared differences over a sum of squares; 0 where both are 0, infinite over 0."""
    error, size = squares.clamp_min(0).sqrt().item(), whole.sqrt().item()
    return error / size if size else (float("inf") if error else 0.0)
