"""What parameters are multiplied with: each product, seen as matrices, gives the operation's own output."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from structprune.observe import Twin, Use


class Functional(nn.Module):
    """Parameters without layers: a stacked weight in slices, a product from the left, an einsum, a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Parameter(torch.randn(6, 4))
        self.left = nn.Parameter(torch.randn(5, 3))
        self.heads = nn.Parameter(torch.randn(2, 5, 4))
        self.one = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        up, gate = self.both.chunk(2)
        hidden = F.linear(x, up) * (x @ gate.t())
        wide = (self.left @ hidden.mT).mT
        return torch.einsum("bth,nhk->bntk", wide, self.heads).sum(1) @ self.one


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight[0]) + F.linear(x, self.weight[2])


def tied() -> nn.Module:
    net = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 4))
    net[2].weight = net[0].weight
    return net


def masked() -> nn.Module:
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    prune.l1_unstructured(net[0], "weight", 0.5)
    return net


NORMED = "parametrizations.weight.original"
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], set[str]]] = {
    "linear": (lambda: nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), (5, 4), {"0.weight", "1.weight"}),
    "tokens": (lambda: nn.Linear(4, 3), (2, 5, 4), {"weight"}),
    "without bias": (lambda: nn.Linear(4, 3, bias=False), (2, 5, 4), {"weight"}),
    "functional": (Functional, (2, 5, 4), {"both", "left", "heads", "one"}),
    "slices of a stack": (Experts, (5, 4), {"weight"}),
    "tied": (tied, (5, 4), {"0.weight"}),
    "masked": (masked, (5, 4), {"0.weight_orig", "2.weight"}),
    "weight norm": (lambda: parametrizations.weight_norm(nn.Linear(4, 3)), (5, 4), {f"{NORMED}1"}),
    "convolution": (lambda: nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 0), (1, 2)), (2, 4, 9, 8), {"weight"}),
    "convolution by groups": (lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1), (2, 4, 5, 5), {"weight"}),
    "depthwise": (lambda: nn.Conv1d(4, 8, 3, groups=4), (2, 4, 9), {"weight"}),
    "three dimensions": (lambda: nn.Conv3d(2, 3, 2), (2, 2, 4, 4, 4), {"weight"}),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2, dilation=2), (2, 4, 5, 4), {"weight"}),
    "channels last": (lambda: nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last), (2, 4, 5, 5), {"weight"}),
}  # fmt: skip


def observed(net: nn.Module, x: Tensor) -> tuple[list[Use], Tensor]:
    uses: list[Use] = []
    return uses, Twin(net).watch(uses.append, x)


@pytest.mark.parametrize("case", sorted(CASES))
def test_rows_times_matrices_are_the_output(case: str) -> None:
    torch.manual_seed(0)
    build, shape, names = CASES[case]
    net, x = build().double().eval(), torch.randn(shape, dtype=torch.float64)
    uses, out = observed(net, x)
    torch.testing.assert_close(out, net(x))
    assert {use.place.parameter for use in uses} == names
    for use in uses:
        rows = use.rows()
        got, expected = rows @ use.matrices().mT, use.output
        if use.place.sliding is not None:
            expected = expected - net.bias.view(-1, *[1] * (x.ndim - 2))
            expected = expected.unflatten(1, (use.place.sliding.groups, -1)).transpose(0, 1)
            expected = expected.movedim(2, -1).flatten(1, -2)
        elif use.operation == "addmm":
            expected = F.linear(use.input, use.weight.t())
        elif use.place.side == "left":
            expected = expected.mT
        torch.testing.assert_close(got.flatten(), expected.reshape(got.shape).flatten())
        torch.testing.assert_close(use.square_sums(), rows.square().sum(1))
        parameter = dict(net.named_parameters())[use.place.parameter].detach()
        if case not in ("masked", "weight norm"):
            assert torch.equal(use.place.matrices(parameter), use.matrices())


@pytest.mark.parametrize("case", ["functional", "convolution by groups", "transposed", "channels last"])
def test_put_is_the_way_back(case: str) -> None:
    build, shape, _ = CASES[case]
    net = build()
    uses, _ = observed(net, torch.randn(shape))
    for use in uses:
        parameter = dict(net.named_parameters())[use.place.parameter].detach()
        plain = torch.zeros(parameter.shape)
        for target in (plain, torch.zeros_like(parameter)):
            for place in {one.place for one in uses if one.place.parameter == use.place.parameter}:
                place.put(target, place.matrices(parameter))
            torch.testing.assert_close(target, parameter)


def test_layers_of_torch_are_seen_through() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    names = [use.place.parameter for use in observed(layer, torch.randn(2, 3, 8))[0]]
    weights = ["self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight"]
    assert names == weights
    for kind in (nn.LSTM, nn.GRU, nn.RNN):
        rnn = kind(4, 3, num_layers=2)
        found = {use.place.parameter for use in observed(rnn, torch.randn(5, 2, 4))[0]}
        assert found == {name for name in dict(rnn.named_parameters()) if name.startswith("weight")}


def test_the_model_stays_as_it_is() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.fc, self.calls = nn.BatchNorm1d(4), nn.Linear(4, 2), 0
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.seen += 1
            return self.fc(self.norm(F.dropout(x, training=self.training)) + torch.rand(()))

    net = Counting().train().requires_grad_(False)
    before, state = copy.deepcopy(net.state_dict()), torch.random.get_rng_state()
    for gradients in (False, True):
        twin = Twin(net, gradients)
        twin.watch(lambda use: None, torch.randn(5, 4, generator=torch.Generator().manual_seed(0)))
        assert all(p.requires_grad is gradients for p in twin.parameters.values())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert net.calls == 0
    assert net.training
    assert not any(p.requires_grad for p in net.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert torch.backends.mha.get_fastpath_enabled()


def test_what_is_no_known_product_is_named() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 4))

        def forward(self, x: Tensor) -> Tensor:
            return (x.unsqueeze(1) * self.weight).sum(2)

    twin = Twin(Own())
    twin.watch(lambda use: pytest.fail("no product"), torch.randn(2, 4))
    assert twin.unread == {"weight": "mul"}


def test_what_is_made_of_parameters_alone_is_told_from_views() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.plain, self.scaled, self.seen = (nn.Linear(4, 4) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            weight = self.scaled.weight / self.scaled.weight.norm()
            return F.linear(F.linear(self.plain(x), weight), self.seen.weight.t().contiguous()[:2])

    twin = Twin(Scaled())
    twin.watch(lambda use: None, torch.randn(2, 4))
    assert twin.remade == {"scaled.weight", "seen.weight"}
    assert not twin.unread


def test_what_is_asked_for_is_called_once_autograd_knows_and_before_anything_is_written_over() -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(inplace=True), nn.Linear(3, 2))
    known: list[str] = []

    def each(use: Use) -> Callable[[], None]:
        return lambda: known.append(type(use.output.grad_fn).__name__)

    Twin(net, gradients=True).watch(each, torch.randn(2, 4))
    assert known == ["AddmmBackward0", "AddmmBackward0"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.complex64])
def test_squares_of_more_samples_than_are_squared_at_once(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    cases: list[tuple[nn.Module, tuple[int, ...]]] = [(nn.Linear(1024, 2, dtype=dtype), (300, 1024))]
    if not dtype.is_complex:
        cases.append((nn.Conv2d(16, 2, 3, padding=1, dtype=dtype), (37, 16, 24, 24)))
    for net, shape in cases:
        (use,), _ = observed(net, torch.randn(shape, dtype=dtype))
        exact, twice = use.rows().abs().double().square().sum(1), use.place.swept(2 * use.squares())
        torch.testing.assert_close(use.square_sums().double(), exact, rtol=1e-5, atol=0)
        torch.testing.assert_close(twice.double(), 2 * exact, rtol=1e-5, atol=0)
