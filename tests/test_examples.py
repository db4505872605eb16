"""Two whole examples: an MLP, and a conv net whose `view` names its width as a literal."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import structprune as sp
from structprune.train import finetune


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))


class LiteralNet(nn.Module):
    """70 -> 68 -> 34 -> 32 -> 16 pixels a side, and 64 channels that `forward` fixes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.fc1 = nn.Linear(64 * 16 * 16, 100)
        self.fc2 = nn.Linear(100, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = x.view(-1, 64 * 16 * 16)
        return self.fc2(F.relu(self.fc1(x)))  # type: ignore[no-any-return]


VIEW_LINE = LiteralNet.forward.__code__.co_firstlineno + 3


def train_a_step_and_export(model: nn.Module, images: Tensor, path: Path) -> sp.ExportReport:
    before = [parameter.detach().clone() for parameter in model.parameters()]
    finetune(model, TensorDataset(images, torch.arange(len(images)) % 10), epochs=1, lr=0.01)
    assert any(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    return sp.export_onnx(model, images[:2], path)


@pytest.mark.parametrize("criterion", ["l1", "l2", "random"])
def test_mlp_at_half_its_neurons(criterion: str) -> None:
    model, image = mlp(), torch.randn(1, 784)
    result = sp.prune(model, image, sp.Budget(channels=0.5), criterion=criterion)
    assert [tuple(layer.weight.shape) for layer in result.model if isinstance(layer, nn.Linear)] == [
        (64, 784),
        (32, 64),
        (10, 32),
    ]
    assert sp.count_params(result.model) == 784 * 64 + 64 + 64 * 32 + 32 + 32 * 10 + 10
    assert sp.count_macs(result.model, image) == 784 * 64 + 64 * 32 + 32 * 10
    assert result.report.verify is not None
    assert result.report.verify.max_error <= 1e-9
    assert sp.count_params(model) == 784 * 128 + 128 + 128 * 64 + 64 + 64 * 10 + 10


def test_mlp_fine_tunes_and_exports(tmp_path: Path) -> None:
    small = sp.prune(mlp(), torch.randn(1, 784), sp.Budget(macs=0.5)).model
    report = train_a_step_and_export(small, torch.randn(8, 784), tmp_path / "mlp.onnx")
    assert report.dynamic_batch
    assert max(report.errors.values()) < 1e-4


def test_literal_net_freezes_the_width_that_its_view_names() -> None:
    graph = sp.trace(LiteralNet(), torch.randn(1, 1, 70, 70))
    groups = {
        member.tensor: group for group in graph.groups for member in group.members if member.role == "out"
    }
    frozen = groups["conv2.weight"].frozen
    assert frozen is not None
    assert "16384" in frozen.reason or "64" in frozen.reason
    assert frozen.where.endswith(f"test_examples.py:{VIEW_LINE}")
    assert groups["conv1.weight"].frozen is None
    assert groups["fc1.weight"].frozen is None


def test_literal_net_is_cut_where_it_can_be_fine_tunes_and_exports(tmp_path: Path) -> None:
    model, image = LiteralNet(), torch.randn(1, 1, 70, 70)
    result = sp.prune(model, image, sp.Budget(channels=0.5))
    small = result.model
    assert isinstance(small, LiteralNet)
    assert tuple(small.conv1.weight.shape) == (16, 1, 3, 3)
    assert tuple(small.conv2.weight.shape) == (64, 16, 3, 3)
    assert tuple(small.fc1.weight.shape) == (50, 64 * 16 * 16)
    assert (small.conv1.out_channels, small.conv2.in_channels, small.fc2.in_features) == (16, 16, 50)
    assert result.report.verify is not None
    assert result.report.verify.max_error <= 1e-9
    report = train_a_step_and_export(small, torch.randn(4, 1, 70, 70), tmp_path / "net.onnx")
    assert max(report.errors.values()) < 1e-4
