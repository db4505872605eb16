"""Reports: fvcore's figure beside structprune's own, every difference explained."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import structprune as sp
from structprune.report import FvcoreFigure, coverage, fvcore_figure, fvcore_line, network_size


class Keywords(nn.Module):
    """Takes keywords, one of them integers, and returns a dict with something that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.fc = nn.Embedding(10, 4), nn.Linear(4, 3)

    def forward(self, *, ids: Tensor, scale: Tensor) -> dict[str, Any]:
        return {"y": self.fc(self.table(ids)) * scale, "steps": 1}


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return nn.functional.scaled_dot_product_attention(q, k, v)


def test_fvcore_agrees_where_both_count_contractions_only() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, groups=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 6 * 6, 5))
    x = torch.zeros(2, 3, 8, 8)
    expected = 2 * (8 * 36 * 3 * 9 + 8 * 36 * 5)
    assert fvcore_figure(net, x).macs == sp.count_macs(net, x) == expected


def test_what_fvcore_counts_beyond_contractions_is_named_and_explains_the_difference() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.AdaptiveAvgPool2d(1),
    )
    x = torch.zeros(1, 3, 8, 8)
    figure, macs = fvcore_figure(net, x), sp.count_macs(net, x)
    assert figure.macs is not None
    assert set(figure.beyond) == {"batch_norm", "upsample_bilinear2d", "adaptive_avg_pool2d"}
    assert figure.macs - sum(figure.beyond.values()) == macs
    assert "it counts batch_norm" in fvcore_line(figure, macs)


def test_contractions_that_fvcore_has_no_formula_for_are_named() -> None:
    figure = fvcore_figure(Attention(), torch.zeros(1, 5, 8))
    assert figure.uncounted == ("aten::scaled_dot_product_attention",)
    assert "no formula for aten::scaled_dot_product_attention" in fvcore_line(figure, 10_000)


def test_keyword_inputs_and_outputs_that_are_no_tensors_are_counted() -> None:
    inputs = {"ids": torch.zeros(2, 5, dtype=torch.int64), "scale": torch.ones(1)}
    assert fvcore_figure(Keywords(), inputs).macs == 2 * 5 * 4 * 3


def test_a_network_that_fvcore_cannot_run_is_a_result_with_the_reason() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError("not here\nand more")

    figure = fvcore_figure(Broken(), torch.zeros(1))
    assert figure == FvcoreFigure(None, error="ValueError: not here")
    assert fvcore_line(figure, 5) == "fvcore: not available (ValueError: not here)"


@pytest.mark.parametrize("training", [True, False])
def test_counting_leaves_flags_buffers_and_the_fast_path_as_they_were(training: bool) -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).train(training)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    network_size(net, torch.randn(3, 4))
    assert [module.training for module in net.modules()] == [training] * 3
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert torch.backends.mha.get_fastpath_enabled()


def test_size_counts_zeros_and_shared_weights_once() -> None:
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 4, bias=False))
    net[2].weight = net[0].weight
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(4))
    size = network_size(net, torch.zeros(1, 4))
    assert (size.params, size.nonzero, size.macs, size.weight_bytes) == (16, 4, 2 * 16, 64)


def test_coverage_is_the_share_that_free_groups_reach() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    share = coverage(sp.trace(net, torch.zeros(1, 4)))
    assert (share.params, share.macs) == (4 * 8 + 8 + 8 * 2 + 2, 4 * 8 + 8 * 2)
    assert share.free_macs == 1.0
    assert share.free_params == pytest.approx(56 / 58)  # all but the last bias
