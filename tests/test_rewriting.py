"""Rewriting: the same function as a graph in which widths that only the code ties come free."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import structprune as sp
from structprune import train
from tests.harness import flags
from tests.oracle import Verdict, compare, duplicate, fill_distinct

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


class Literal(nn.Module):
    """conv, pool, conv, pool, a view written with a product of numbers, two linear layers."""

    def __init__(self, width: int = 64, size: int = 16) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.fc1 = nn.Linear(64 * 16 * 16, 100)
        self.fc2 = nn.Linear(100, 10)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x)))
        x = x.view(-1, 64 * 16 * 16)
        return self.fc2(F.relu(self.fc1(x)))


class Block(nn.Module):
    """Attention as vision transformers write it, over a residual stream: C is read, and written again."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_heads = 4
        self.stem = nn.Linear(6, 32)
        self.norm = nn.LayerNorm(32)
        self.qkv = nn.Linear(32, 96)
        self.proj = nn.Linear(32, 32)
        self.dropout = dropout
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        B, N, C = x.shape
        qkv = self.qkv(self.norm(x)).reshape(B, N, 3, self.num_heads, C // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)[:3].unbind(0)
        scores = (q @ k.transpose(-2, -1)) * (C // self.num_heads) ** -0.5
        scores = F.dropout(scores.softmax(-1), self.dropout, self.training)
        x = x + self.proj((scores @ v).transpose(1, 2).reshape(B, N, C))
        return self.head(x.mean(1)) / math.sqrt(self.num_heads)


class Plain(nn.Module):
    """A kernel that scales by the width it finds, with literal sizes all around it."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(6, 16), nn.Linear(6, 16), nn.Linear(6, 16)
        self.out = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        B, N, _ = x.shape
        q, k, v = (layer(x).view(B, N, 4, 4).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, N, 16))


class Normed(nn.Module):
    """Statistics that training updates, dropout of both kinds; ``odd`` keeps torch.fx from tracing it."""

    def __init__(self, odd: bool) -> None:
        super().__init__()
        self.odd = odd
        self.conv = nn.Conv2d(3, 8, 3)
        self.bn = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(self.bn(self.conv(x)).relu(), 0.3, self.training)
        if self.odd and x.dim() != 4:
            raise ValueError("images are wanted")
        return self.fc(self.drop(x.mean((2, 3))).view(-1, 8))


class StochasticDepth(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * (torch.rand(x.shape[0], 1) > 0.5)


def judged(
    net: nn.Module, inputs: Any, channels: float = 0.5, **options: Any
) -> tuple[sp.PruneResult, Verdict]:
    """What pruning the rewritten net gives, and the oracle's verdict against the net itself."""
    fill_distinct(net)
    original = duplicate(net)
    result = sp.prune(net, inputs, sp.Budget(channels=channels), rewrite=True, **options)
    return result, compare(original, result.model, inputs)


def free(graph: sp.DependencyGraph) -> dict[str, int]:
    return {group.name: group.size for group in graph.groups if group.frozen is None}


def kept(net: nn.Module, inputs: Any, choice: dict[str, list[int]]) -> nn.Module:
    """The rewritten net with only these channels of these groups, once the oracle agrees with it."""
    rewritten = sp.rewrite(fill_distinct(net), inputs)
    small = sp.apply_plan(rewritten, sp.trace(rewritten, inputs).plan(choice))
    verdict = compare(net, small, inputs)
    assert verdict.status == "exact", verdict.detail
    return small


# -- the network whose view is a literal ---------------------------------------------------------------------------


def test_the_literal_network_prunes_in_every_layer_trains_exports_and_loads(tmp_path: Path) -> None:
    net, x = Literal(), torch.randn(2, 1, 70, 70)
    assert "conv2" not in free(sp.trace(net, x))
    result, verdict = judged(net, x)
    assert verdict.status == "exact", verdict.detail
    small = result.model
    assert [small.conv1.out_channels, small.conv2.out_channels, small.fc1.out_features] == [16, 32, 50]
    assert small.fc1.in_features == 32 * 16 * 16
    data = TensorDataset(torch.randn(16, 1, 70, 70), torch.arange(16) % 4)
    history = train.finetune(small, data, epochs=4, lr=0.01, batch_size=8)
    assert history[-1]["loss"] < history[0]["loss"]
    assert flags(small) == flags(net)
    sp.export_onnx(small, x, tmp_path / "small.onnx", plan=[result.plan])  # or it raises
    sp.save(tmp_path / "saved", small, result.plan)
    loaded = sp.load(tmp_path / "saved", lambda: sp.rewrite(Literal(), x))
    assert torch.equal(loaded(x), small(x))


def test_a_budget_is_a_share_of_the_original_over_two_steps() -> None:
    x = torch.randn(1, 1, 70, 70)
    net = fill_distinct(Literal())
    whole = sp.count_macs(net, x)
    once = sp.prune(net, x, sp.Budget(macs=0.5), rewrite=True)
    assert 0.49 * whole <= sp.count_macs(once.model, x) <= 0.5 * whole
    twice = sp.prune(copy.deepcopy(once.model), x, sp.Budget(macs=0.25))
    assert 0.245 * whole <= sp.count_macs(twice.model, x) <= 0.25 * whole
    assert compare(net, twice.model, x).status == "exact"
    again = sp.prune(once.model, x, sp.Budget(macs=0.25), rewrite=True)  # a graph is rewritten as it is
    assert again.plan == twice.plan


# -- sizes that are read in one place and used in another ----------------------------------------------------------


def test_the_inner_width_of_attention_is_free_of_the_residual_stream() -> None:
    net, x = Block(), torch.randn(2, 7, 6)
    assert free(sp.trace(net, x)) == {}
    rewritten = sp.rewrite(net, x)
    assert free(sp.trace(rewritten, x)) == {"stem": 32, "qkv[1]": 4, "qkv[2]": 8}
    result, verdict = judged(net, x, only="qkv*")
    assert verdict.status == "exact", verdict.detail
    assert result.model.stem.out_features == 32
    assert result.model.qkv.out_features == result.model.proj.in_features * 3 == 48


@pytest.mark.parametrize("shape", [(1, 7, 6), (5, 3, 6)])
def test_sizes_of_the_inputs_stay_free(shape: tuple[int, ...]) -> None:
    net, x = Block().double(), torch.randn(2, 7, 6).double()
    other = torch.randn(shape).double()
    assert torch.allclose(sp.rewrite(net, x)(other), net(other), atol=1e-12)


def test_a_kernels_scale_keeps_its_value_when_heads_get_narrower() -> None:
    net, x = Plain(), torch.randn(2, 7, 6)
    assert free(sp.trace(net, x)) == {}
    result, verdict = judged(net, x)
    assert verdict.status == "exact", verdict.detail
    assert result.model.q.out_features < 16
    assert "scale = 0.5" in result.model.code


class Mixed(nn.Module):
    """Numbers of the inputs times numbers of the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 12), nn.Linear(12, 2)
        self.mix = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        B, C = x.shape[0], self.a.out_features
        h = self.a(x).view(B * 3, 4).relu().view(B, C)
        return self.b(h * F.softmax(self.mix, 0).sum()) / C


def test_a_product_with_a_batch_is_solved_for_its_other_factor() -> None:
    net, x = Mixed(), torch.randn(2, 4)
    assert free(sp.trace(sp.rewrite(net, x), x)) == {"a[0]": 3, "a[1]": 4}
    assert kept(net, x, {"a[0]": [0, 2]}).a.out_features == 8


def test_what_is_computed_from_parameters_alone_stays_computed() -> None:
    rewritten = sp.rewrite(Mixed(), torch.randn(2, 4))
    rewritten(torch.randn(2, 4)).sum().backward()
    assert rewritten.mix.grad is not None


# -- training and inference ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("odd", [False, True], ids=["torch.fx", "torch.export"])
def test_training_and_inference_are_those_of_the_original(odd: bool) -> None:
    net, x = Normed(odd), torch.randn(3, 3, 8, 8)
    rewritten = sp.rewrite(net, x)
    assert type(rewritten.conv) is (nn.Module if odd else nn.Conv2d)
    for _ in range(2):
        torch.manual_seed(1)
        expected = net(x)
        torch.manual_seed(1)
        assert torch.allclose(rewritten(x), expected, atol=1e-6)
    assert rewritten.bn.num_batches_tracked == net.bn.num_batches_tracked == 2
    assert torch.allclose(rewritten.bn.running_mean, net.bn.running_mean)
    rewritten.eval(), net.eval()
    assert torch.allclose(rewritten(x), net(x), atol=1e-6)
    assert rewritten.bn.num_batches_tracked == 2
    rewritten.bn.train()  # a flag of its own, as it was
    rewritten(x)
    assert rewritten.bn.num_batches_tracked == 3


@pytest.mark.parametrize("odd", [False, True], ids=["torch.fx", "torch.export"])
def test_a_rewritten_network_prunes_casts_and_takes_other_batches(odd: bool) -> None:
    net, x = Normed(odd), torch.randn(2, 3, 8, 8)
    result, verdict = judged(net, x)
    assert verdict.status == "exact", verdict.detail
    assert result.model.conv.weight.shape[0] == 4
    assert result.model.eval()(torch.randn(5, 3, 9, 9)).shape == (5, 4)
    assert result.model.to(torch.bfloat16)(x.to(torch.bfloat16)).dtype == torch.bfloat16


def test_a_module_that_takes_other_steps_in_training_stays_a_module() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.skip, self.b = nn.Linear(4, 8), StochasticDepth(), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.skip(self.a(x)).view(-1, 8))

    result, verdict = judged(Net(), torch.randn(4, 4))
    assert verdict.status == "exact"
    assert isinstance(result.model.skip, StochasticDepth)
    assert result.model.a.out_features == 4


# -- what comes back ------------------------------------------------------------------------------------------------


def test_the_result_is_independent_with_the_originals_names_and_flags() -> None:
    net, x = Block(0.1), torch.randn(2, 7, 6)
    net.norm.eval()
    net.head.bias.requires_grad_(False)
    before = flags(net)
    rewritten = sp.rewrite(net, x)
    assert flags(net) == before
    assert flags(rewritten) == before
    assert list(rewritten.state_dict()) == list(net.state_dict())
    rewritten.load_state_dict(net.state_dict())
    with torch.no_grad():
        rewritten.qkv.weight.zero_()
    assert net.qkv.weight.abs().sum() > 0


def test_reasons_name_the_lines_of_the_original() -> None:
    net, x = Block(), torch.randn(2, 7, 6)
    graph = sp.trace(sp.rewrite(net, x), x)
    where = {group.frozen.where for group in graph.groups if group.frozen is not None and group.frozen.where}
    assert where
    assert all(place.startswith("test_rewriting.py:") for place in where)
    first = Block.forward.__code__.co_firstlineno
    assert all(first < int(place.split(":")[1]) < first + 12 for place in where)


def test_arguments_without_tensors_are_fixed() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor, scale: Tensor | None = None, twice: bool = False) -> Tensor:
            x = self.a(x) if scale is None else self.a(x) * scale
            return self.b(x * 2 if twice else x)

    x = torch.randn(2, 4)
    net = Net()
    rewritten = sp.rewrite(net, {"x": x, "twice": True})
    assert torch.allclose(rewritten(x, twice=True), net(x, twice=True))
    with pytest.raises(sp.InputError, match="rewritten with twice=True"):
        rewritten(x)
    with pytest.raises(sp.InputError, match="rewritten with scale=None"):
        rewritten(x, torch.ones(8), twice=True)


def test_control_flow_on_values_is_refused_with_both_reasons() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            return self.b(h if h.sum() > 0 else -h)

    net = Net()
    with pytest.raises(sp.TraceError, match=r"control flow.*exported: .*data-dependent.*rewrite=True"):
        sp.prune(net, torch.randn(2, 4), sp.Budget(channels=0.5), rewrite=True)
    assert net.training


def test_random_numbers_of_a_literal_size_are_drawn_at_each_call() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x) + torch.rand(8))

    x = torch.randn(2, 4)
    rewritten = sp.rewrite(Net(), x)
    assert not torch.equal(rewritten(x), rewritten(x))


def test_what_cannot_be_asked_together() -> None:
    with pytest.raises(sp.InputError, match="in place"):
        sp.prune(Plain(), torch.randn(2, 7, 6), sp.Budget(channels=0.5), rewrite=True, inplace=True)


# -- what the trace learned for it ---------------------------------------------------------------------------------


class Chunked(nn.Module):
    """As many pieces as each piece has positions: the number is that of the pieces."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces = 2
        self.a, self.b = nn.Linear(4, 4), nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.a(x).chunk(self.pieces, -1)
        return self.b(left * right)


def test_a_number_of_pieces_is_no_size_of_a_piece() -> None:
    net, x = Chunked(), torch.randn(2, 4)
    result = sp.prune(net, x, sp.Budget(channels=0.5))
    assert result.model.pieces == 2
    assert result.model.a.out_features == 2


class Grouped(nn.Module):
    """Keys that are shared by as many queries as there are of them."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = 2
        self.q, self.k, self.out = nn.Linear(6, 24), nn.Linear(6, 12), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (-1, 6))
        k = self.k(x).unflatten(-1, (-1, 6)).repeat_interleave(self.shared, dim=2)
        return self.out((q * k).flatten(2))


def test_repeated_heads_can_go_as_a_whole() -> None:
    net, x = fill_distinct(Grouped()), torch.randn(2, 5, 6)
    assert free(sp.trace(net, x)) == {"q[0]": 2, "q[1]": 2}  # the width is a literal
    assert free(sp.trace(sp.rewrite(net, x), x)) == {"q[0]": 2, "q[1]": 2, "q[2]": 6}
    heads = kept(net, x, {"q[0]": [1]})
    assert (heads.k.out_features, heads.q.out_features) == (6, 12)
    repeats = kept(net, x, {"q[1]": [0]})
    assert (repeats.k.out_features, repeats.q.out_features) == (12, 12)


class Narrowed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 12), nn.Linear(1, 3), nn.Linear(11, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.b(h.narrow(1, 0, 1)) + self.c(h.narrow(1, 1, 11))


def test_a_stretch_that_reaches_the_end_is_as_long_as_the_code_says() -> None:
    net, x = fill_distinct(Narrowed()), torch.randn(2, 4)
    assert free(sp.trace(net, x)) == {}
    assert kept(net, x, {"a": [0, 5, 10]}).a.out_features == 4


class Scaled(nn.Module):
    """A tensor in a plain attribute, and one that the forward makes in its own dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 32), nn.Linear(32, 4)
        self.scale = torch.rand(32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.down((self.up(x) * self.scale).relu() @ torch.eye(32))
        return y


def test_plain_tensors_are_saved_and_float32_of_the_forwards_own_is_no_hindrance(tmp_path: Path) -> None:
    model, x = Scaled(), torch.randn(2, 8)
    result = sp.prune(model, x, sp.Budget(macs=0.5), rewrite=True)
    assert result.report.macs_after <= result.report.macs_before / 2
    sp.save(tmp_path, result.model, result.plan)
    loaded = sp.load(tmp_path, lambda: sp.rewrite(Scaled(), x))
    assert torch.equal(loaded(x), result.model(x))
