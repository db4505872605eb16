"""The hooks that come with the package: early stopping gives the best weights back, every epoch is written once."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn
from torch.utils.data import TensorDataset

from structprune.errors import InputError
from structprune.train import (
    Cubic,
    EarlyStopping,
    Hook,
    JsonLines,
    ProgressBar,
    Run,
    TrainOptions,
    finetune,
    sparsify_gradually,
)
from tests.resuming import Continue, Keep


def data() -> TensorDataset:
    points = torch.randn(32, 2, generator=torch.Generator().manual_seed(0))
    return TensorDataset(points, (points[:, 0] > points[:, 1]).long())


def net() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


class Scores(Hook):
    """Adds the scores of a list to the epochs, and keeps the weights of each."""

    def __init__(self, *scores: float) -> None:
        self.scores, self.weights = scores, {}

    def after_epoch(self, run: Run, metrics: dict[str, float]) -> None:
        metrics["score"] = self.scores[run.epoch - 1]
        self.weights[run.epoch] = copy.deepcopy(run.model.state_dict())


def trained(
    scores: Scores, *hooks: Hook, epochs: int = 6, **options: Any
) -> tuple[nn.Module, list[dict[str, float]]]:
    model = net()
    return model, finetune(
        model, data(), epochs=epochs, lr=0.1, batch_size=16, hooks=[scores, *hooks], **options
    )


def same(model: nn.Module, weights: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


class TestEarlyStopping:
    @pytest.mark.parametrize(
        ("scores", "options", "epochs", "best"),
        [
            ((1, 3, 2, 2, 9, 9), {"patience": 2}, 4, 2),
            ((1, 3, 2, 4, 3, 3), {"patience": 2}, 6, 4),
            ((3, 1, 2, 1, 9, 9), {"patience": 2, "lower": True}, 4, 2),
            ((1.0, 1.05, 1.2, 1.25, 1.25, 9), {"patience": 2, "min_delta": 0.1}, 5, 3),
            ((2, 2, 2, 9, 9, 9), {"patience": 2}, 3, 1),
            ((1, float("nan"), float("nan"), 9, 9, 9), {"patience": 2}, 3, 1),
            ((float("nan"), 1, 2, 3, 2, 2), {"patience": 2}, 6, 4),
            ((float("nan"), 3, 2, float("nan"), 9, 9), {"patience": 2, "lower": True}, 5, 3),
            ((6, 5, 4, 3, 2, 1), {"patience": 9}, 6, 1),
        ],
    )
    def test_the_weights_of_the_best_epoch_come_back(
        self, scores: tuple[float, ...], options: dict[str, Any], epochs: int, best: int
    ) -> None:
        told, stopping = Scores(*scores), EarlyStopping(metric="score", **options)
        model, log = trained(told, stopping)
        assert (len(log), stopping.best_epoch, stopping.best) == (epochs, best, scores[best - 1])
        assert same(model, told.weights[best])

    def test_where_all_is_nan_it_ends_with_the_last_weights(self) -> None:
        told, stopping = Scores(*[float("nan")] * 6), EarlyStopping(2, metric="score")
        model, log = trained(told, stopping)
        assert (len(log), stopping.best_epoch, stopping.best) == (2, 0, None)
        assert same(model, told.weights[2])

    def test_a_metric_that_nothing_gives_is_refused_before_the_first_step(self) -> None:
        model, before = net(), copy.deepcopy(net().state_dict())
        for hooks in ([EarlyStopping(1, metric="score")], [EarlyStopping(1, metric="score"), Scores(1.0)]):
            with pytest.raises(InputError, match="'score': the epoch has epoch, loss, lr, accuracy;"):
                finetune(model, data(), epochs=2, lr=0.1, validation=data(), hooks=hooks)
        assert same(model, before)

    def test_the_last_weights_stay_where_that_is_wanted(self) -> None:
        told = Scores(3, 2, 1)
        model, log = trained(told, EarlyStopping(2, metric="score", restore=False), epochs=3)
        assert len(log) == 3
        assert same(model, told.weights[3])

    def test_it_can_be_used_again(self) -> None:
        stopping = EarlyStopping(1, metric="score")
        trained(Scores(9, 8), stopping)
        told = Scores(1, 2, 1)
        model, log = trained(told, stopping)
        assert (len(log), stopping.best) == (3, 2)
        assert same(model, told.weights[2])

    def test_a_run_that_is_continued_remembers_its_best(self) -> None:
        keep = Keep(epoch=2)
        scores = (5, 4, 3, 2, 1, 0)
        whole, log = trained(Scores(*scores), EarlyStopping(3, metric="score"), keep)
        again, same_log = trained(Scores(*scores), EarlyStopping(3, metric="score"), Continue(keep.state))
        assert log == same_log
        assert len(log) == 4
        assert same(again, whole.state_dict())

    def test_accuracy_is_the_default(self) -> None:
        with pytest.raises(InputError, match="'accuracy': the epoch has epoch, loss, lr"):
            finetune(net(), data(), epochs=2, lr=0.1, hooks=[EarlyStopping(1)])
        stopping = EarlyStopping(1)
        log = finetune(net(), data(), epochs=9, lr=1e-6, validation=data(), hooks=[stopping])
        assert stopping.best == max(entry["accuracy"] for entry in log)

    @pytest.mark.parametrize(
        ("metric", "lower", "expected"),
        [
            *((name, None, True) for name in ("loss", "eval_loss", "Perplexity", "mean_squared_error")),
            *((name, None, False) for name in ("accuracy", "metric", "loss_ratio", "terror_index")),
            ("loss", False, False),
            ("accuracy", True, True),
        ],
    )
    def test_what_is_better_lower(self, metric: str, lower: bool | None, expected: bool) -> None:
        assert EarlyStopping(1, metric=metric, lower=lower).lower is expected

    def test_a_falling_loss_is_getting_better(self) -> None:
        stopping = EarlyStopping(1, metric="loss")
        log = finetune(net(), data(), epochs=4, lr=0.05, batch_size=16, hooks=stopping)
        assert log[-1]["loss"] < log[0]["loss"]
        assert (len(log), stopping.best_epoch) == (4, 4)

    def test_bad_options_are_named(self) -> None:
        for patience in ("2", 1.5, float("nan")):
            with pytest.raises(InputError, match=rf"EarlyStopping\(patience={patience!r}\): expected int"):
                EarlyStopping(patience)  # type: ignore[arg-type]
        with pytest.raises(InputError, match="patience=0: must be at least 1"):
            EarlyStopping(0)
        with pytest.raises(InputError, match="metric=None"):
            EarlyStopping(1, metric=None)  # type: ignore[arg-type]
        with pytest.raises(InputError, match="lower='x'"):
            EarlyStopping(1, lower="x")  # type: ignore[arg-type]
        for small in (-1, "0.1", None, float("nan")):
            with pytest.raises(InputError, match=f"min_delta={small!r}"):
                EarlyStopping(1, min_delta=small)  # type: ignore[arg-type]


class TestJsonLines:
    def test_a_line_that_was_cut_short_stays_apart(self, tmp_path: Path) -> None:
        path = tmp_path / "metrics.jsonl"
        path.write_text('{"epoch": 1.0}\n{"epo')
        finetune(net(), data(), epochs=2, lr=0.1, hooks=JsonLines(path))
        lines = path.read_text().splitlines()
        assert lines[:2] == ['{"epoch": 1.0}', '{"epo']
        assert [json.loads(line)["epoch"] for line in lines[2:]] == [1.0, 2.0]

    def test_every_epoch_is_there_before_the_next_begins(self, tmp_path: Path) -> None:
        path, seen = tmp_path / "log.jsonl", []

        class Read(Hook):
            def after_epoch(self, run: Run, metrics: dict[str, float]) -> None:
                seen.append(path.read_text().splitlines())

        log = finetune(net(), data(), epochs=3, lr=0.1, validation=data(), hooks=[JsonLines(path), Read()])
        assert [len(lines) for lines in seen] == [1, 2, 3]
        assert [json.loads(line) for line in seen[-1]] == log

    def test_runs_are_appended_and_what_is_not_finite_is_null(self, tmp_path: Path) -> None:
        path = tmp_path / "log.jsonl"
        for score in (1.5, float("inf")):
            trained(Scores(score), JsonLines(path), epochs=1)
        assert [json.loads(line)["score"] for line in path.read_text().splitlines()] == [1.5, None]

    def test_a_run_that_is_continued_writes_no_epoch_twice(self, tmp_path: Path) -> None:
        class Break(Keep):
            def after_epoch(self, run: Run, metrics: dict[str, float]) -> None:
                super().after_epoch(run, metrics)
                if run.epoch == 3:
                    raise KeyError  # epochs 2 and 3 are in the file, and in no state

        keep = Break(epoch=1)
        path = tmp_path / "log.jsonl"
        with pytest.raises(KeyError):
            finetune(net(), data(), epochs=4, lr=0.1, hooks=[JsonLines(path), keep])
        log = finetune(net(), data(), epochs=4, lr=0.1, hooks=[JsonLines(path), Continue(keep.state)])
        assert [json.loads(line) for line in path.read_text().splitlines()] == log
        assert len(log) == 4

    def test_only_the_process_that_writes_takes_lines_back(self, tmp_path: Path) -> None:
        path, model = tmp_path / "log.jsonl", net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for main, left in ((False, 2), (True, 1)):
            path.write_text('{"epoch": 1}\n{"epoch": 2}\n')
            hook = JsonLines(path)
            run = Run(model, optimizer, 1, SimpleNamespace(is_main_process=main))
            hook.on_start(run)
            hook.load_state_dict({"bytes": len('{"epoch": 1}\n')})
            hook.on_end(run)
            assert len(path.read_text().splitlines()) == left

    def test_a_path_that_cannot_be_written_is_refused_before_the_first_step(self, tmp_path: Path) -> None:
        steps: list[int] = []
        (tmp_path / "file").touch()
        with pytest.raises(InputError, match="metrics cannot be written"):
            finetune(
                net(),
                data(),
                epochs=1,
                lr=0.1,
                hooks=[JsonLines(tmp_path / "file" / "log")],
                progress=lambda step, of: steps.append(step),
            )
        assert steps == []

    def test_a_missing_folder_is_made_and_lines_of_a_gradual_run_name_its_step(self, tmp_path: Path) -> None:
        path = tmp_path / "new" / "folder" / "log.jsonl"
        options = TrainOptions(epochs=2, lr=0.1)
        for _ in range(2):  # the hook belongs to all the steps of a run, and to what comes after it
            hook = JsonLines(path)
            sparsify_gradually(net(), 0.5, data(), options, schedule=Cubic(2), hooks=[hook])
            finetune(net(), data(), epochs=1, lr=0.1, hooks=[hook])
        steps = [json.loads(line).get("gradual_step") for line in path.read_text().splitlines()]
        assert steps == [1, 1, 2, 2, None] * 2


class TestProgressBar:
    @pytest.mark.parametrize("terminal", [True, False])
    def test_it_shows_steps_and_metrics(self, terminal: bool) -> None:
        shown = io.StringIO()
        console = Console(file=shown, force_terminal=terminal, width=120)
        finetune(
            net(), data(), epochs=2, lr=0.1, batch_size=16, validation=data(), hooks=[ProgressBar(console)]
        )
        text = shown.getvalue()
        assert ("4/4" in text) == terminal
        assert "epoch 2  loss 0." in text
        assert "accuracy" in text
        assert not terminal or text.rstrip("\n").endswith("\x1b[?25h")  # the cursor is back
        assert terminal or text.count("\n") == 2

    def test_the_terminal_is_given_back_after_an_error(self) -> None:
        class Fail(Hook):
            def after_step(self, run: Run) -> None:
                raise KeyError

        shown = io.StringIO()
        console = Console(file=shown, force_terminal=True, width=120)
        with pytest.raises(KeyError):
            finetune(net(), data(), epochs=1, lr=0.1, hooks=[ProgressBar(console), Fail()])
        assert shown.getvalue().rstrip("\n").endswith("\x1b[?25h")
