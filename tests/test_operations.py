"""Operations that the independent judge cannot compute with absent numbers, and reasons of those that stay whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import structprune as sp
from tests.nets.case import Net, image
from tests.nets.operations import between

EYE = 8 * torch.eye(8, dtype=torch.float64)


def square(x: Tensor) -> Tensor:
    """Positive definite matrices over the places."""
    return x @ x.transpose(2, 3) + EYE.to(x)


def heads_last(operation: Callable[..., Any]) -> Callable[[Tensor], Tensor]:
    """Attention with the channels as its width."""

    def run(x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1).contiguous()
        out = operation(x, x, x, scale=1.0)
        return (out[0] if isinstance(out, tuple) else out).permute(0, 3, 1, 2)

    return run


PROVEN: dict[str, Callable[[Tensor], Tensor]] = {
    "inverse": lambda x: torch.linalg.inv(square(x)),
    "solve": lambda x: torch.linalg.solve(square(x), x),
    "cholesky": lambda x: torch.linalg.cholesky(square(x)),
    "qr": lambda x: torch.linalg.qr(x)[1],
    "singular values": lambda x: x * torch.linalg.svdvals(x)[..., None, :],
    "eigenvalues": lambda x: x * torch.linalg.eigvalsh(square(x))[..., None],
    "determinant": lambda x: x * torch.linalg.slogdet(square(x))[1][..., None, None],
    "matrix exponential": lambda x: torch.matrix_exp(x * 0.1),
    "triangular system": lambda x: torch.linalg.solve_triangular(square(x).tril(), x, upper=False),
    "cross product": lambda x: torch.linalg.cross(x[..., :3], x[..., 3:6]),
    "distances over channels": lambda x: (
        x * torch.cdist(x.flatten(2).mT, x.flatten(2).mT).mean((1, 2))[:, None, None, None]
    ),
    "squared loss": lambda x: x * F.mse_loss(x, x * 2),
    "flash attention by name": heads_last(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu),
    "plain attention by name": heads_last(torch.ops.aten._scaled_dot_product_attention_math),
    "attention by name": heads_last(torch.ops.aten.scaled_dot_product_attention),
    "fractional pooling": lambda x: F.fractional_max_pool2d(
        x, 2, output_size=4, _random_samples=x.new_full((2, x.shape[1], 2), 0.5)
    ),
}


@pytest.mark.parametrize("name", PROVEN)
def test_channels_are_cut_and_proven(name: str) -> None:
    torch.manual_seed(0)
    result = sp.prune(between(PROVEN[name]), image()(), sp.Budget(channels=0.5))
    assert result.model.get_parameter("stem.weight").shape[0] == 4
    assert result.report.verify is not None
    assert result.report.verify.max_error <= 1e-9


WHOLE: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "cumsum": (lambda x: x.cumsum(1), "cumsum depends on the order of positions"),
    "fourier": (
        lambda x: torch.fft.rfft2(x, dim=(1, 2)).abs(),
        "a Fourier transform runs along this dimension",
    ),
    "take": (
        lambda x: x.take(torch.arange(1024)).view(2, 8, 8, 8),
        "take picks positions by value or number",
    ),
    "as_strided": (
        lambda x: x.contiguous().as_strided((2, 8, 4, 8), (512, 64, 16, 1)),
        "as_strided reads rows",
    ),
    "norms of a list": (lambda x: x * torch._foreach_norm([x])[0], "no rule for the operation _foreach_norm"),
    "numpy": (lambda x: torch.from_numpy(x.detach().numpy() * 2), "numpy() takes these numbers out of torch"),
    "matrices of channels": (
        lambda x: torch.linalg.pinv(x.flatten(2)).mT.reshape(x.shape),
        "works on whole matrices",
    ),
    "loss over classes": (
        lambda x: x * F.cross_entropy(x, torch.zeros(2, 8, 8, dtype=torch.long)),
        "picks positions by value or number",
    ),
}


@pytest.mark.parametrize("name", WHOLE)
def test_what_stays_says_why(name: str) -> None:
    operation, words = WHOLE[name]
    found = {group.name: str(group.frozen) for group in sp.trace(between(operation), image()()).groups}
    assert words in found["stem"]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_nested_tensors_are_refused() -> None:
    def nested(x: Tensor) -> Tensor:
        return torch.nested.nested_tensor([x[0], x[1]]).to_padded_tensor(0.0)

    with pytest.raises(sp.TraceError, match=r"makes a nested tensor, of rows that differ"):
        sp.trace(
            Net(lambda m, x: m.head(nested(m.stem(x))), stem=nn.Linear(4, 8), head=nn.Linear(8, 2)),
            torch.ones(2, 3, 4),
        )


# -- rows that are put in or read as wholes ----------------------------------------------------------------------------


def merged(net: Any, ids: Tensor, pixels: Tensor) -> Tensor:
    """Embeddings of which some are replaced by an image's, as vision-language models write it."""
    x = net.table(ids)
    mask = (ids == 0)[..., None].expand_as(x)
    return net.head(x.masked_scatter(mask, net.image(pixels)))  # type: ignore[no-any-return]


def chunked(net: Any, x: Tensor) -> Tensor:
    """Windows that overlap by half, as sliding-window attention reads them."""
    x = net.stem(x)
    size, stride = list(x.size()), list(x.stride())
    size = [size[0], 2, 4, size[2]]
    stride = [stride[0], stride[1] * 2, stride[1], stride[2]]
    return net.head(x.as_strided(size=size, stride=stride))  # type: ignore[no-any-return]


IDS = torch.tensor([[0, 1, 2], [3, 0, 0]])
ROWS: dict[str, tuple[Callable[..., Any], dict[str, nn.Module], Any]] = {
    "masked_scatter": (
        merged,
        {"table": nn.Embedding(4, 8), "image": nn.Linear(5, 8), "head": nn.Linear(8, 3)},
        (IDS, torch.randn(3, 5)),
    ),
    "as_strided": (chunked, {"stem": nn.Linear(4, 8), "head": nn.Linear(8, 3)}, torch.randn(2, 6, 4)),
}


@pytest.mark.parametrize("name", ROWS)
def test_whole_rows_keep_their_channels_together(name: str) -> None:
    forward, parts, inputs = ROWS[name]
    result = sp.prune(Net(forward, **parts), inputs, sp.Budget(channels=0.5))
    assert {tuple(p.shape) for n, p in result.model.named_parameters() if n == "head.weight"} == {(3, 4)}
    assert result.report.verify is not None


def test_constants_that_change_their_form_in_place() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(4, 12), nn.Linear(12, 3)

        def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            kept = mask * 1.0
            kept.unsqueeze_(1)
            y: torch.Tensor = self.down(self.up(x).relu()[:, None] + kept)
            return y

    x, mask = torch.randn(3, 4), torch.randn(3, 1)
    result = sp.prune(Masked(), (x, mask), sp.Budget(channels=0.5))
    assert result.model.up.out_features == 6
