"""Two processes cut in steps to what one process comes to, and one of them writes the checkpoint."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import TensorDataset

import structprune as sp
from structprune.train import Cubic, GradualResult, TrainOptions, prune_gradually
from tests.launcher import torchrun

pytest.importorskip("accelerate")


def go(checkpoint: Path | None) -> GradualResult:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 16), nn.GELU(), nn.Linear(16, 2)).double()
    points = torch.randn(36, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(points, (points[:, 0] > points[:, 1]).long())
    options = TrainOptions(epochs=1, lr=0.1, batch_size=12)
    return prune_gradually(
        net, points[:1], sp.Budget(macs=0.5), data, options, schedule=Cubic(2),
        validation=data, max_drop=0.5, checkpoint=checkpoint,
    )  # fmt: skip


def work(folder: Path) -> None:
    """What each process does; `torchrun` runs this file."""
    result = go(folder / "run.safetensors")
    save_file(result.model.state_dict(), folder / f"rank{os.environ['RANK']}.safetensors")
    torch.distributed.destroy_process_group()


def test_two_processes_come_to_what_one_does(tmp_path: Path) -> None:
    status, said = torchrun(__file__, 2, str(tmp_path))
    assert status == 0, said[-3000:]
    alone = go(None)
    assert alone.reached
    for rank in (0, 1):
        for name, tensor in load_file(tmp_path / f"rank{rank}.safetensors").items():
            torch.testing.assert_close(
                tensor, alone.model.state_dict()[name], rtol=1e-9, atol=1e-12, msg=name
            )
    again = go(tmp_path / "run.safetensors")  # all steps are done: nothing is left to train
    torch.testing.assert_close(
        again.model.state_dict(), load_file(tmp_path / "rank0.safetensors"), rtol=0, atol=0
    )


if __name__ == "__main__":
    work(Path(sys.argv[1]))
