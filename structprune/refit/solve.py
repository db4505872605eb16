"""Ridge regression towards the weights that are there, from sums alone."""

from __future__ import annotations

import torch
from torch import Tensor

from structprune.refit.statistics import Moments

__all__ = ["ridge_solution"]


def ridge_solution(
    moments: Moments, matrix: Tensor, bias: Tensor, ridge: float, intercept: bool
) -> tuple[Tensor, Tensor]:
    """The matrix ``[g, o, n]`` and bias ``[g, o]`` that minimise the squared error over the rows of ``moments`` plus
    ``ridge`` times the mean diagonal of the Gram matrix times the squared distance from ``matrix``.

    With an ``intercept`` the bias is free, and the Gram matrix is that about the mean; else the bias stays. Directions
    that the data does not have keep their weights, so no data changes nothing. All are float64. Hoerl and Kennard 1970,
    shrinking towards the kept weights instead of zero.
    """
    if not moments.count:
        return matrix, bias
    gram, cross = moments.gram, moments.cross
    if intercept:
        means = moments.inputs / moments.count
        gram = gram - means.unsqueeze(-1) * moments.inputs.unsqueeze(-2)
        cross = cross - means.unsqueeze(-1) * moments.outputs.unsqueeze(-2)
    else:
        cross = cross - moments.inputs.unsqueeze(-1) * bias.unsqueeze(-2)
    scale = ridge * gram.diagonal(dim1=-2, dim2=-1).mean(-1)
    matrix = matrix + _solved(gram, cross - gram @ matrix.mT, scale).mT
    if intercept:
        bias = (moments.outputs - (matrix @ moments.inputs.unsqueeze(-1)).squeeze(-1)) / moments.count
    return matrix, bias


def _solved(gram: Tensor, right: Tensor, ridge: Tensor) -> Tensor:
    """``(gram + ridge)^-1 right``; where that is singular, the smallest solution."""
    shifted = gram + ridge.view(-1, 1, 1) * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    if bool((ridge > 0).all()):
        factor, failed = torch.linalg.cholesky_ex(shifted)
        if not bool(failed.any()):
            return torch.cholesky_solve(right, factor)
    inverse: Tensor = torch.linalg.pinv(shifted, hermitian=True)
    return inverse @ right
