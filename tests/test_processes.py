"""Several processes: the same plan on every rank, and after fine-tuning the weights that one process gets."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import TensorDataset

import structprune as sp
from structprune.train import Distillation, GroupLasso, Hook, Run, finetune
from structprune.train.batches import Shares
from tests.launcher import torchrun

pytest.importorskip("accelerate")

SETTINGS = {"epochs": 2, "lr": 0.1, "batch_size": 9, "optimizer": "sgd"}


def data() -> TensorDataset:
    """37 points: with batches of 9 over two processes no share is even, and the last batch is a single row."""
    points = torch.randn(37, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return TensorDataset(points, (points[:, 0] > points[:, 1]).long())


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 2)).double()


class Seen(Hook):
    """Counts the examples that this process trained on."""

    count = 0

    def before_step(self, run: Run, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        self.count += len(inputs) if run.weight else 0


def prune_and_train() -> tuple[nn.Module, sp.PruningPlan, list[dict[str, float]], int]:
    dense, seen = net(), Seen()
    result = sp.prune(dense, data().tensors[0][:2], sp.Budget(macs=0.5))
    hint = Distillation(dense, features=["0"], plan=result.plan)
    lasso = GroupLasso(sp.trace(result.model, data().tensors[0][:2]), strength=0.09)
    log = finetune(
        result.model, data(), validation=data(), distillation=hint, hooks=[lasso, seen], **SETTINGS
    )
    return result.model, result.plan, log, seen.count


def work(folder: Path) -> None:
    """What each process does; `torchrun` runs this file."""
    model, plan, log, seen = prune_and_train()
    name = f"rank{os.environ['RANK']}of{torch.distributed.get_world_size()}"
    save_file(model.state_dict(), folder / f"{name}.safetensors")
    main = Run(model, torch.optim.SGD(model.parameters(), lr=0.1), 1).main  # in a loop of one's own
    told = {"plan": plan.to_json(), "log": log, "seen": seen, "main": main}
    (folder / f"{name}.json").write_text(json.dumps(told))
    torch.distributed.destroy_process_group()


def test_two_processes_give_the_plan_and_the_weights_of_one(tmp_path: Path) -> None:
    status, said = torchrun(__file__, 2, str(tmp_path))
    assert status == 0, said[-3000:]
    model, plan, log, seen = prune_and_train()
    assert seen == 2 * len(data())
    assert 0 < log[-1]["zero_channels"] < len(model.get_submodule("0").weight)
    assert (model.get_submodule("0").weight == 0).all(1).sum() == log[-1]["zero_channels"]
    said_by = [json.loads((tmp_path / f"rank{rank}of2.json").read_text()) for rank in (0, 1)]
    assert sorted(told["seen"] for told in said_by) == [
        2 * 16,
        2 * 21,
    ]  # 5 and 4 of each batch of 9; of the last 1
    assert [told["main"] for told in said_by] == [True, False]
    for rank, told in enumerate(said_by):
        assert told["plan"] == plan.to_json()
        for entry, own in zip(told["log"], log, strict=True):
            assert entry == pytest.approx(own, rel=1e-9)
        for name, tensor in load_file(tmp_path / f"rank{rank}of2.safetensors").items():
            torch.testing.assert_close(tensor, model.state_dict()[name], rtol=1e-9, atol=1e-12, msg=name)


def test_processes_that_accelerate_does_not_know_of_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("structprune.train.surroundings.processes", lambda: 2)
    with pytest.raises(sp.InputError, match=r"2 processes were started and accelerate works with 1"):
        finetune(net(), data(), **SETTINGS)


def test_the_shares_of_a_batch_are_all_of_it_once() -> None:
    for processes in (1, 2, 3, 5):
        shares = [
            Shares(torch.utils.data.BatchSampler(range(11), 4, False), 11, rank, processes)
            for rank in range(processes)
        ]
        for batch in zip(*(zip(share, share.weights(), strict=True) for share in shares), strict=True):
            rows = sorted(row for own, weight in batch for row in own if weight)
            assert rows in ([0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10])
            mean = sum(weight * sum(own) / len(own) for own, weight in batch) / processes
            assert mean == pytest.approx(sum(rows) / len(rows))


if __name__ == "__main__":
    work(Path(sys.argv[1]))
