"""Reductions: sums, means, extremes, norms, softmax and running totals over some dimensions."""

from __future__ import annotations

from structprune.axes import Const, Expr
from structprune.rules.call import Call
from structprune.rules.context import iter_tensors
from structprune.rules.registry import rule

_UNCHANGED = ("sum", "nansum", "any", "count_nonzero")


def _axes(c: Call, rank: int) -> list[int]:
    chosen = c.get("dim")
    if chosen is None or (isinstance(chosen, list | tuple) and not chosen):
        return list(range(rank))
    return [axis % max(rank, 1) for axis in ([chosen] if isinstance(chosen, int) else chosen)]


@rule(
    "sum",
    "nansum",
    "mean",
    "var",
    "std",
    "var_mean",
    "std_mean",
    "amax",
    "amin",
    "aminmax",
    "max",
    "min",
    "prod",
    "any",
    "all",
    "norm",
    "linalg_vector_norm",
    "logsumexp",
    "median",
    "nanmedian",
    "mode",
    "count_nonzero",
    "nanmean",
)
def reduce(c: Call) -> None:
    """[n], [a] -> [a]: statistics over n, of the kept positions."""
    x = c.tensors()[0]
    if len(c.tensors()) == 2 and c.name in ("max", "min"):
        from structprune.rules.pointwise import pointwise

        pointwise(c)
        return
    dims = c.dims(x)
    gone = set(_axes(c, len(dims)))
    keep = bool(c.get("keepdim", False))
    out: list[Expr] = []
    for position, dim in enumerate(dims):
        if position not in gone:
            out.append(dim)
        elif keep:
            out.append(Const(1))
    for tensor in iter_tensors([c.out]):
        c.set(tensor, out)
    name = next(name for name, value in c.arguments.items() if value is x)
    changes = "" if c.name in _UNCHANGED else f"{c.name} is taken over the kept channels"
    c.statistic(changes, {name: dims}, [dims[axis] for axis in sorted(gone) if axis < len(dims)])


@rule("argmax", "argmin")
def position_of_extreme(c: Call) -> None:
    """[n], [a] -> [a]: the answer is a position in n, so n stays as it is."""
    dims = c.dims(c["self"])
    gone = set(_axes(c, len(dims)))
    for axis in gone:
        if axis < len(dims):
            c.freeze(dims[axis], f"{c.name} returns a position in this dimension")
    keep = bool(c.get("keepdim", False))
    c.set(c.out, [Const(1) if i in gone else dim for i, dim in enumerate(dims) if keep or i not in gone])


@rule("_softmax", "_log_softmax", "softmax", "log_softmax", "_safe_softmax", "_softmax_backward_data")
def softmax(c: Call) -> None:
    """[n] -> [n]: shares among the kept positions."""
    x = c["self"]
    dims = c.dims(x)
    c.set(c.out, dims)
    if dims:
        c.statistic("softmax is taken over the kept channels", {"self": dims}, [dims[c["dim"]]])


@rule("cumsum", "cumprod", "cummax", "cummin", "logcumsumexp", "sort", "argsort", "msort", "_cummax_helper")
def ordered(c: Call) -> None:
    """[n] -> [n]: the order of positions matters, so n stays as it is."""
    dims = c.dims(c["self"])
    if dims:
        c.freeze(dims[c.get("dim", -1)], f"{c.name} depends on the order of positions")
    for tensor in iter_tensors([c.out]):
        c.set(tensor, dims)


@rule("topk", "kthvalue")
def chosen(c: Call) -> None:
    """[n], [a] -> [k], [a]: which positions are chosen depends on all of n."""
    dims = list(c.dims(c["self"]))
    axis = c.get("dim", -1) % len(dims)
    c.freeze(dims[axis], f"{c.name} chooses among the positions of this dimension")
    for tensor in iter_tensors([c.out]):
        own = list(dims)
        if tensor.ndim == len(dims):
            own[axis] = Const(tensor.shape[axis])
        else:
            del own[axis]
        c.set(tensor, own)


@rule("tril", "triu")
def triangle(c: Call) -> None:
    """[n, m] -> [n, m]: half is set to zero by position, so n and m stay as they are."""
    dims = c.dims(c["self"])
    for dim in dims[-2:]:
        c.freeze(dim, f"{c.name} counts positions along this dimension")
    c.set(c.out, dims)


@rule("_fft_r2c", "_fft_c2r", "_fft_c2c")
def fourier(c: Call) -> None:
    """[n], [a] -> [m], [a]: every frequency depends on all of n."""
    dims = list(c.dims(c["self"]))
    for axis in c["dim"]:
        c.freeze(dims[axis], "a Fourier transform runs along this dimension")
        dims[axis] = Const(c.out.shape[axis])
    c.set(c.out, dims)
