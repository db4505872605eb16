"""Linear algebra over whole matrices: batches of them pass through, rows and columns stay as they are."""

from __future__ import annotations

import torch

from structprune.axes import Const, Expr
from structprune.rules.call import Call
from structprune.rules.context import iter_tensors
from structprune.rules.pointwise import broadcast
from structprune.rules.registry import rule

_DECOMPOSITIONS = (
    "_linalg_det _linalg_eigh _linalg_eigvals _linalg_slogdet _linalg_svd _lu_with_info cholesky cholesky_inverse "
    "linalg_cholesky_ex linalg_eig linalg_inv_ex linalg_ldl_factor_ex linalg_lu linalg_lu_factor_ex linalg_matrix_exp "
    "linalg_pinv linalg_qr linalg_householder_product geqrf"
)
_SYSTEMS = "_linalg_solve_ex _cholesky_solve_helper linalg_lstsq linalg_lu_solve linalg_solve_triangular cholesky_solve"
_SYSTEMS += " triangular_solve linalg_ldl_solve"


@rule(*_DECOMPOSITIONS.split(), *_SYSTEMS.split())
def whole_matrix(c: Call) -> None:
    """[a], [n, m] -> [a], ...: each result depends on every row and column of its matrix."""
    tensors = c.tensors()
    batch: list[tuple[Expr, ...]] = []
    for tensor in tensors:
        dims = c.dims(tensor)
        batch.append(dims[: max(len(dims) - 2, 0)])
        for dim in dims[-2:]:
            c.freeze(dim, f"{c.name} works on whole matrices")
    rank = max(len(dims) for dims in batch)
    lead = broadcast(c, batch, rank)
    for tensor in iter_tensors([c.out]):
        own = lead if tensor.shape[:rank] == torch.Size([dim.size for dim in lead]) else ()
        c.set(tensor, [*own, *(Const(size) for size in tensor.shape[len(own) :])])


@rule("linalg_cross")
def cross(c: Call) -> None:
    """[a], [3] and [a], [3] -> [a], [3]."""
    operands = [c.dims(c["self"]), c.dims(c["other"])]
    for dims in operands:
        c.freeze(dims[c.get("dim", -1)], "a cross product mixes these three")
    c.set(c.out, broadcast(c, operands, c.out.ndim))


@rule("_cdist_forward", "_euclidean_dist")
def distances(c: Call) -> None:
    """[p, m], [r, m] -> [p, r]: distances over m, to which removed positions add nothing."""
    one, two = c.dims(c["x1"]), c.dims(c["x2"])
    c.unify(one[-1], two[-1])
    lead = broadcast(c, [one[:-2], two[:-2]], c.out.ndim - 2)
    c.macs(*lead, one[-2], two[-2], one[-1])
    c.set(c.out, (*lead, one[-2], two[-2]))
    c.statistic("", {"x1": one, "x2": two}, [one[-1]])


@rule("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "binary_cross_entropy", "soft_margin_loss")
def loss(c: Call) -> None:
    """[n], [n] -> [] or [n]: a mean or sum over all, of the kept positions, or each alone."""
    named = {name: c.dims(value) for name, value in c.arguments.items() if isinstance(value, torch.Tensor)}
    dims = broadcast(c, list(named.values()), max(len(one) for one in named.values()))
    c.set(c.out, dims[len(dims) - c.out.ndim :])
    if not c.out.ndim:
        c.statistic(f"{c.name} is taken over the kept channels", named, dims)
