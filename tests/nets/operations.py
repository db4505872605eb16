"""One operation between two convolutions: how the channels between them fare, operation by operation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.nets.case import Case, Net, conv, image

__all__ = ["CASES"]

ACTIVATIONS = (
    "celu elu gelu hardsigmoid hardswish leaky_relu logsigmoid mish relu6 rrelu selu silu softplus "
    "softsign tanhshrink softshrink hardshrink hardtanh sigmoid tanh"
)
FUNCTIONS = "sin erf exp square abs sign floor sinc"


# Maps of [n, 8, 8, 8] to images that keep the channels where they are, so that the channels can be cut.
TRANSPARENT: dict[str, Callable[[Tensor], Tensor]] = {
    **{name: getattr(F, name) for name in ACTIVATIONS.split()},
    **{name: getattr(torch, name) for name in FUNCTIONS.split()},
    "threshold": lambda x: F.threshold(x, 0.1, 0.0),
    "glu": lambda x: F.glu(x, 1),
    "clamp": lambda x: x.clamp(-1, 1),
    "root": lambda x: x.abs() ** 0.5,
    "where": lambda x: torch.where(x > 0, x, 0.1 * x),
    "masked_fill": lambda x: x.masked_fill(x < 0, 0.0),
    "maximum": lambda x: torch.maximum(x, -x),
    "lerp": lambda x: torch.lerp(x, -x, 0.3),
    "addcmul": lambda x: torch.addcmul(x, x, x, value=0.5),
    "cumsum over rows": lambda x: x.cumsum(2),
    "softmax over places": lambda x: x.flatten(2).softmax(-1).view_as(x),
    "softmax": lambda x: F.softmax(x, 1),
    "log_softmax": lambda x: F.log_softmax(x, 1),
    "logsumexp": lambda x: x + torch.logsumexp(x, 1, keepdim=True),
    "amax": lambda x: x + x.amax(1, keepdim=True),
    "min": lambda x: x + x.min(1, keepdim=True)[0],
    "variance": lambda x: x * torch.var_mean(x, dim=1, keepdim=True)[0],
    "variance over places": lambda x: x * torch.var_mean(x, dim=(2, 3), keepdim=True)[0],
    "deviation over places": lambda x: x / x.std(dim=(2, 3), keepdim=True),
    "unit length over places": lambda x: F.normalize(x, dim=2),
    "cosine similarity": lambda x: x * F.cosine_similarity(x, x * x, dim=1)[:, None],
    "product over places": lambda x: x.prod(-1, keepdim=True),
    "bilinear upsampling": lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear"),
    "bicubic resizing": lambda x: F.interpolate(x, size=(5, 5), mode="bicubic", antialias=True),
    "grid_sample": lambda x: F.grid_sample(x, x.new_zeros(2, 4, 4, 2), align_corners=False),
    "max_pool with indices": lambda x: F.max_pool2d(x, 2, return_indices=True)[0],
    "max_unpool": lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2),
    "lp_pool": lambda x: F.lp_pool2d(x.abs(), 2.0, 2),
    "adaptive_max_pool": lambda x: F.adaptive_max_pool2d(x, 2),
    "reflection padding": lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
    "replication padding": lambda x: F.pad(x, (1, 1, 1, 1), mode="replicate"),
    "unfold and fold": lambda x: F.fold(F.unfold(x, 3, padding=1), (8, 8), 3, padding=1),
    "fft over places": lambda x: torch.fft.irfft2(torch.fft.rfft2(x), s=x.shape[-2:]),
    "flip of rows": lambda x: x.flip(2),
    "even and odd channels": lambda x: torch.cat((x[:, ::2], x[:, 1::2]), 1),
    "index_select of rows": lambda x: x.index_select(2, torch.tensor([0, 2, 1])),
    "topk of places": lambda x: x.flatten(2).topk(4, -1)[0].unflatten(2, (2, 2)),
    "sort of rows": lambda x: x.sort(-1)[0],
    "tiling": lambda x: x.repeat(1, 1, 2, 2),
    "repeated channels": lambda x: x.repeat(1, 2, 1, 1),
    "repeat_interleave of channels": lambda x: x.repeat_interleave(2, 1),
    "repeat_interleave of rows": lambda x: x.repeat_interleave(2, 2),
    "movedim": lambda x: x.movedim(1, -1).movedim(-1, 1),
    "swapaxes": lambda x: x.swapaxes(1, 3).swapaxes(1, 3),
    "ones by width": lambda x: x * torch.ones(x.shape[1], dtype=x.dtype)[None, :, None, None],
    "new_zeros": lambda x: x + x.new_zeros(x.shape),
    "full_like": lambda x: x + torch.full_like(x, 2.0),
    "einsum over channels": lambda x: torch.einsum("bchw,bcij->bchj", x, x),
    "matmul over places": lambda x: x @ x.transpose(-1, -2),
    "in place": lambda x: x.mul_(2).add_(1).relu_(),
    "out=": lambda x: torch.mul(x, 2, out=torch.empty_like(x)),
    "complex pairs of places": lambda x: torch.view_as_real(
        torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2).contiguous()) * (1 + 1j)
    ).flatten(-2),
    "chunks of rows": lambda x: torch.cat(x.chunk(2, 2), 3),
    "vmap": lambda x: torch.vmap(F.relu)(x),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "pixel_unshuffle and back": lambda x: F.pixel_shuffle(F.pixel_unshuffle(x, 2), 2),
    "channel_shuffle": lambda x: F.channel_shuffle(x, 2),
    "batch_norm without a module": lambda x: F.batch_norm(x, None, None, training=True),
    "triangle": lambda x: x.tril(),
    "numbers at places": lambda x: written(x, (slice(None), slice(None), torch.tensor([0, 2])), 1.0),
    "rows at places": lambda x: written(x, (slice(None), slice(None), torch.tensor([0, 2])), x[:, :, [1, 3]]),
    "numbers where a mask says": lambda x: written(x, x < 0, 0.0),
    "scatter along places": lambda x: (
        x.flatten(2).scatter(2, x.flatten(2).argsort(-1), x.flatten(2)).view_as(x)
    ),
    "index_reduce": lambda x: x.new_zeros(2, x.shape[1], 4, 8).index_reduce(
        2, torch.arange(8) % 4, x, "amax"
    ),
    "index_copy": lambda x: x.index_copy(2, torch.tensor([0, 1]), x[:, :, 2:4]),
    "take_along_dim": lambda x: torch.take_along_dim(x, x.argsort(2), 2),
    "bucketize": lambda x: x + torch.bucketize(x.detach(), torch.linspace(-1, 1, 5, dtype=x.dtype)),
    "searchsorted": lambda x: x + torch.searchsorted(torch.linspace(-1, 1, 5, dtype=x.dtype), x.contiguous()),
    "diagonal": lambda x: x * x.diagonal(dim1=2, dim2=3)[..., None],
    "diagonal beside the main one": lambda x: x[..., 1:] * x.diagonal(1, 2, 3)[..., None, :],
    "diag_embed": lambda x: x + torch.diag_embed(x[..., 0]),
    "kronecker product": lambda x: torch.kron(x, torch.ones(1, 2, 1, 1, dtype=x.dtype)),
    "norm of matrices": lambda x: x / torch.linalg.matrix_norm(x)[..., None, None],
    "affine_grid by shape": lambda x: F.grid_sample(x, grid(x, x.shape), align_corners=False),
    "lists item by item": lambda x: torch._foreach_add([x, x[:, :, :4]], [x * 2, x[:, :, :4]])[0],
    "lists in place": lambda x: doubled([x.clone(), x.clone()]),
    "fftshift": lambda x: torch.fft.ifft2(torch.fft.fftshift(torch.fft.fft2(x), (2, 3))).real,
    "angles": lambda x: torch.complex(x, x).angle() + torch.complex(x, x).abs(),
    "argmax as one_hot over places": lambda x: x * F.one_hot(x.flatten(2).argmax(-1), 64).view(2, -1, 8, 8),
}


def written(x: Tensor, index: Any, values: Any) -> Tensor:
    x = x.clone()
    x[index] = values
    return x


def grid(x: Tensor, size: torch.Size) -> Tensor:
    return F.affine_grid(
        torch.eye(2, 3, dtype=x.dtype)[None].expand(2, -1, -1), list(size), align_corners=False
    )


def doubled(tensors: list[Tensor]) -> Tensor:
    torch._foreach_mul_(tensors, 2.0)
    torch._foreach_add_(tensors, [torch.ones_like(one) for one in tensors])
    return tensors[0] + tensors[1]


# Maps that tie the channels to their positions or their number: the cut is refused, and says why.
OPAQUE: dict[str, Callable[[Tensor], Tensor]] = {
    "fft": lambda x: torch.fft.fft(x, dim=1).real,
    "flip": lambda x: x.flip(1),
    "roll": lambda x: x.roll(1, 1),
    "permutation by list": lambda x: x[:, [3, 1, 2, 0, 4, 5, 6, 7]],
    "first of repeated channels": lambda x: x.repeat(1, 2, 1, 1)[:, :8],
    "one channel after the other": lambda x: torch.stack([t * 2 for t in x.unbind(1)], 1),
    "linspace": lambda x: x * torch.linspace(0, 1, x.shape[1], dtype=x.dtype)[None, :, None, None],
    "mean by hand": lambda x: x * (x.sum(1, keepdim=True) / x.shape[1]),
    "number of channels": lambda x: x * float(x.shape[1]) ** -0.5,
    "tags lost in int()": lambda x: x.reshape(int(x.shape[0]), int(x.shape[1]), -1).view_as(x),
    "pooling across channels": lambda x: F.avg_pool3d(x[:, None], (3, 1, 1), 1, (1, 0, 0))[:, 0],
    "square matrices of channels": lambda x: x * torch.linalg.det(x[:, :, 0])[:, None, None, None],
    "numpy": lambda x: torch.from_numpy(x.detach().numpy() * 2),
    "lists of numbers": lambda x: torch.tensor(x.tolist(), dtype=x.dtype),
    "argmax over channels": lambda x: x * x.argmax(1, keepdim=True),
}


def between(operation: Callable[[Tensor], Tensor]) -> nn.Module:
    width = operation(torch.randn(2, 8, 8, 8)).shape[1]
    return Net(
        lambda m, x: m.head(m.operation(m.stem(x))), stem=conv(3, 8), operation=operation, head=conv(width, 5)
    )


def case(name: str, operation: Callable[[Tensor], Tensor], names: tuple[str, ...]) -> Case:
    return Case(name, 0, lambda: between(operation), image(), names)


CASES = [case(name, operation, ("stem.weight", "head.weight")) for name, operation in TRANSPARENT.items()]
CASES += [case(name, operation, ()) for name, operation in OPAQUE.items()]
