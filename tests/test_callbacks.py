"""Hooks in other packages' trainers, each really training a small network with a penalty and a mask."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import structprune as sp
from structprune.errors import InputError
from structprune.train import (
    Distillation,
    EarlyStopping,
    GroupLasso,
    Hook,
    JsonLines,
    Run,
    lightning_callback,
    transformers_callback,
)

POINTS = torch.randn(32, 3, generator=torch.Generator().manual_seed(0))
SIDES = (POINTS[:, 0] > POINTS[:, 1]).long()


class Net(nn.Module):
    """Returns the loss with the logits where it gets labels, as transformers' models do."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.body, self.head = nn.Linear(3, 12), nn.Linear(12, 2)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        logits = self.head(torch.relu(self.body(x)))
        return (
            {"logits": logits}
            if labels is None
            else {"loss": F.cross_entropy(logits, labels), "logits": logits}
        )


class Shrink(Hook):
    """A penalty on the gradient pulls the body down, a proximal step the head, to exact zeros."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def on_start(self, run: Run) -> None:
        self.calls.append(f"start of {run.steps}")

    def after_backward(self, run: Run) -> None:
        weight = run.model.get_parameter("body.bias")
        assert weight.grad is not None
        weight.grad.add_(weight.detach(), alpha=10.0)

    def after_step(self, run: Run) -> None:
        weight = run.model.get_parameter("head.bias")
        with torch.no_grad():
            weight.copy_(weight.sign() * (weight.abs() - 10 * run.lr).clamp_min(0))

    def after_epoch(self, run: Run, metrics: dict[str, float]) -> None:
        self.calls.append(f"epoch {metrics['epoch']:.0f} at {run.step}")

    def on_end(self, run: Run) -> None:
        self.calls.append("end")


class TestTransformers:
    def trainer(self, folder: Path, model: nn.Module, *hooks: Hook, epochs: int = 2, **options: Any) -> Any:
        transformers = pytest.importorskip("transformers")
        arguments = transformers.TrainingArguments(
            str(folder),
            num_train_epochs=epochs,
            per_device_train_batch_size=16,
            learning_rate=0.1,
            optim="sgd",
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            save_strategy="no",
            seed=0,
            **{"logging_strategy": "epoch", **options},
        )
        rows = [{"x": x, "labels": y} for x, y in zip(POINTS, SIDES, strict=True)]
        return transformers.Trainer(
            model, arguments, train_dataset=rows, eval_dataset=rows, callbacks=[transformers_callback(*hooks)]
        )

    def test_a_penalty_and_a_mask(self, tmp_path: Path) -> None:
        model, plain, hook = sp.sparsify(Net(), 0.5), Net(), Shrink()
        zeros = model.body.weight == 0
        self.trainer(tmp_path, model, hook).train()
        self.trainer(tmp_path, plain).train()
        assert hook.calls == ["start of 4", "epoch 1 at 2", "epoch 2 at 4", "end"]
        assert model.head.bias.abs().max() == 0 < plain.head.bias.abs().max()
        assert model.body.bias.abs().sum() < 0.3 * plain.body.bias.abs().sum()
        assert torch.equal(model.body.weight == 0, zeros)
        assert int(zeros.sum()) == 18

    def test_a_group_lasso_empties_channels(self, tmp_path: Path) -> None:
        model = Net()
        penalty = GroupLasso(sp.trace(model, POINTS), 0.2)
        self.trainer(tmp_path, model, penalty, epochs=20).train()
        (gone,) = penalty.zeros(model).values()
        assert int(gone.sum()) > 0
        assert int((model.body.weight == 0).all(1).sum()) == int(gone.sum())
        assert (model.head.weight[:, gone] == 0).all()

    def test_an_evaluation_belongs_to_its_epoch(self, tmp_path: Path) -> None:
        seen: list[dict[str, float]] = []

        class Note(Hook):
            def after_epoch(self, run: Run, metrics: dict[str, float]) -> None:
                seen.append(dict(metrics))

        stopping = EarlyStopping(1, metric="eval_loss", min_delta=100.0, lower=True)
        trainer = self.trainer(tmp_path, Net(), Note(), stopping, epochs=5, eval_strategy="epoch")
        trainer.train()
        evaluated = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
        assert [entry["epoch"] for entry in seen] == [1.0, 2.0]
        assert [entry["eval_loss"] for entry in seen] == evaluated
        assert stopping.best_epoch == 1

    @pytest.mark.parametrize("options", [{}, {"logging_strategy": "steps"}, {"eval_strategy": "epoch"}])
    def test_json_lines_have_what_the_trainer_logs(self, tmp_path: Path, options: dict[str, Any]) -> None:
        path = tmp_path / "log.jsonl"
        options = {"logging_strategy": "epoch", **options}  # by steps: every 500, more than there are
        trainer = self.trainer(tmp_path, Net(), JsonLines(path), epochs=3, **options)
        trainer.train()
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        logged: list[dict[str, float]] = [{}, {}, {}]
        for entry in trainer.state.log_history[:-1]:  # the last one is of the whole training
            logged[round(entry["epoch"]) - 1].update(entry)
        assert [line["epoch"] for line in lines] == [1, 2, 3]
        for line, entry in zip(lines, logged, strict=True):
            numbers = {name: value for name, value in entry.items() if name not in ("epoch", "step")}
            assert {"loss", "learning_rate", "grad_norm"} <= numbers.keys()
            assert ("eval_loss" in numbers) == ("eval_strategy" in options)
            assert line == {"epoch": line["epoch"], "lr": line["lr"], **numbers}
        losses = [line["loss"] for line in lines]
        assert losses == sorted(losses, reverse=True)

    @pytest.mark.parametrize("strategy", ["no", "epoch"])
    def test_a_training_without_logs_has_no_loss(self, tmp_path: Path, strategy: str) -> None:
        path, stopping = tmp_path / "log.jsonl", EarlyStopping(1, metric="loss", min_delta=100.0)
        trainer = self.trainer(
            *(tmp_path, Net(), JsonLines(path), stopping), epochs=5, logging_strategy=strategy
        )
        if strategy == "no":
            with pytest.raises(InputError, match="'loss': the epoch has epoch, lr"):
                trainer.train()
        else:
            trainer.train()
            assert stopping.best_epoch == 1
        assert len(path.read_text().splitlines()) == (1 if strategy == "no" else 2)

    def test_distillation(self, tmp_path: Path) -> None:
        dense = Net()
        with torch.no_grad():
            dense.head.weight.mul_(10)  # so that its logits say something else than the labels
        small = sp.prune(dense, POINTS[:2], sp.Budget(channels=0.5), outputs="logits")
        gaps = []
        for weight in (0.0, 1.0):
            student = sp.apply_plan(dense, small.plan)
            hint = Distillation(
                dense, outputs="logits", weight=weight, features=["body"] if weight else (), plan=small.plan
            )
            self.trainer(tmp_path, student, hint, epochs=10).train()
            with torch.no_grad():
                gaps.append(float((student(POINTS)["logits"] - dense(POINTS)["logits"]).square().mean()))
        assert gaps[1] < 0.5 * gaps[0]
        with pytest.raises(InputError, match="gradient_accumulation_steps=2"):
            self.trainer(tmp_path, student, hint, gradient_accumulation_steps=2).train()


class TestLightning:
    def test_a_penalty_and_a_mask(self, tmp_path: Path) -> None:
        lightning = pytest.importorskip("lightning.pytorch")

        class Module(lightning.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                net = sp.sparsify(Net(), 0.5)
                self.body, self.head = net.body, net.head

            def training_step(self, batch: Any, number: int) -> Tensor:
                loss = F.cross_entropy(self.head(torch.relu(self.body(batch[0]))), batch[1])
                self.log("loss", loss, on_epoch=True)
                return loss

            def configure_optimizers(self) -> torch.optim.Optimizer:
                return torch.optim.SGD(self.parameters(), lr=0.1)

        def train(*hooks: Hook, epochs: int) -> Any:
            model = Module()
            lightning.Trainer(
                max_epochs=epochs,
                accelerator="cpu",
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                default_root_dir=tmp_path,
                callbacks=[lightning_callback(*hooks)],
            ).fit(model, DataLoader(TensorDataset(POINTS, SIDES), 16))
            return model

        hook, stopping = Shrink(), EarlyStopping(1, metric="loss", lower=True, min_delta=100.0)
        model, plain = train(hook, epochs=2), train(epochs=2)
        assert hook.calls == ["start of 4", "epoch 1 at 2", "epoch 2 at 4", "end"]
        assert model.head.bias.abs().max() == 0 < plain.head.bias.abs().max()
        assert model.body.bias.abs().sum() < 0.3 * plain.body.bias.abs().sum()
        assert int((model.body.weight == 0).sum()) == 18
        train(stopping, counter := Shrink(), epochs=7)
        assert counter.calls[-2:] == ["epoch 2 at 4", "end"]
        with pytest.raises(InputError, match="training_step"):
            lightning_callback(Distillation(Net()))


@pytest.mark.parametrize(
    ("make", "module"),
    [(transformers_callback, "transformers"), (lightning_callback, "lightning.pytorch")],
)
def test_a_package_that_is_not_there_is_named(
    make: Any, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match="pip install"):
        make()
