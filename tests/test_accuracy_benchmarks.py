"""The benchmarks of accuracy, of schedules and of scoring time, on a small network and a few images."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from benchmarks import accuracy, schedules, scoring_time
from benchmarks.accuracy_cuts import mean_gradients, square_gradients
from benchmarks.accuracy_table import best, compared, sentences
from benchmarks.docstrings import LENGTH, PACKAGES, WORDS, docstrings
from structprune.data import digits


def small() -> nn.Module:
    layers: list[nn.Module] = []
    for into, out in ((1, 8), (8, 16)):
        layers += [nn.Conv2d(into, out, 3, stride=2, padding=1), nn.BatchNorm2d(out), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))


def few(seed: int) -> tuple[TensorDataset, TensorDataset]:
    train, test = (part.tensors for part in digits(8, seed=seed))
    return TensorDataset(*(t[:160] for t in train)), TensorDataset(*(t[:100] for t in test))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = accuracy.NETWORKS["resnet"]
    short = {"epochs": 1, "lr": 0.05}
    monkeypatch.setitem(
        accuracy.NETWORKS, "resnet", replace(plain, build=small, data=few, training=short, tuning=short)
    )


def test_accuracy_of_both_tools_at_the_same_macs(
    quick: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "runs" / "rows.jsonl"
    options = ["--network", "resnet", "--seed", "0", "--share", "0.5", "--out", str(out)]
    options += ["--criterion", "l2", "--criterion", "random", "--criterion", "taylor", "--criterion", "wanda"]
    assert accuracy.main(options) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    ours = [row for row in rows if row["tool"] == "structprune"]
    theirs = [row for row in rows if row["tool"] == "torch-pruning"]
    assert [row["criterion"] for row in ours] == ["random", "l2", "wanda", "taylor", "l2", "taylor"]
    assert [row["mode"] for row in ours] == ["default"] * 4 + ["sensitivity"] * 2
    assert {row["criterion"] for row in theirs} <= {"random", "l2", "taylor"}  # it has no wanda
    assert all(row["macs"] <= 0.5 for row in ours)
    assert all(abs(row["macs"] - 0.5) <= 0.05 for row in theirs)
    stages = ("cut", "bn", "fold", "all", "cut, tuned", "all, tuned")
    assert all(0 <= row[stage] <= 1 for row in ours for stage in stages)
    said = capsys.readouterr().out
    assert "resnet, 0.5 of the macs" in said
    assert accuracy.main(options) == 0  # what is there is not run again
    assert len(out.read_text().splitlines()) == len(rows)


def rows_of(tool: str, criterion: str, values: list[float], mode: str = "default") -> list[dict[str, Any]]:
    place = {"network": "n", "share": 0.5, "asked": "half", "dense": 1.0, "macs": 0.5}
    who = {"tool": tool, "criterion": criterion, "mode": mode}
    return [{**place, **who, "seed": n, "cut": v} for n, v in enumerate(values)]


def test_the_best_of_both_are_compared_seed_by_seed() -> None:
    rows = rows_of("structprune", "l1", [0.5, 0.6, 0.7]) + rows_of("structprune", "l2", [0.6, 0.7, 0.81])
    rows += rows_of("structprune", "random", [0.9, 0.1, 0.5])
    rows += rows_of("torch-pruning", "l1", [0.5, 0.6, 0.7], "global")
    rows += rows_of("torch-pruning", "l2", [0.5, 0.6, 0.6], "uniform")
    assert best(rows, "structprune", "cut") == ("structprune", "l2", "default")
    (found,) = compared(rows)
    assert (found["ours_is"], found["theirs_is"]) == ("l2", "global l1")
    assert found["difference"] == pytest.approx(0.31 / 3)
    assert found["verdict"] == "higher"
    first, second = sentences(rows)
    assert "1 higher, 0 lower, 0 not told apart" in first
    assert second.endswith("of 2, 0 higher, 0 lower, 2 not told apart.")


def test_gradients_for_torch_pruning_are_means_over_samples() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).double().eval()
    x, y = torch.randn(6, 1, 2, 2).double(), torch.tensor([0, 1, 2, 0, 1, 2])
    halves = [(x[:3], y[:3]), (x[3:], y[3:])]
    mean, squares = mean_gradients(model, halves), square_gradients(model, halves)
    residual = model(x).softmax(1) - nn.functional.one_hot(y, 3)  # the gradient by the logits
    each = residual.unsqueeze(2) * x.flatten(1).unsqueeze(1)
    torch.testing.assert_close(mean["1.weight"], each.detach().mean(0) * 2)  # summed over two batches
    torch.testing.assert_close(squares["1.weight"], each.detach().square().mean(0))


def test_the_text_task_is_made_of_the_standard_library() -> None:
    train, test = docstrings(0)
    words, labels = train.tensors
    assert words.shape[1] == LENGTH
    assert len(words) > 1000
    assert set(labels.tolist()) == set(test.tensors[1].tolist()) == set(range(len(PACKAGES)))
    assert 0 <= int(words.min()) < int(words.max()) < WORDS
    assert torch.equal(docstrings(0)[1].tensors[0], test.tensors[0])


def test_scoring_is_timed_by_turns(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(scoring_time.NETWORKS, "resnet", small)
    out = tmp_path / "times.json"
    options = ["--network", "resnet", "--samples", "8", "--batch", "4", "--rounds", "2", "--image-size", "8"]
    assert scoring_time.main([*options, "--out", str(out)]) == 0
    rows = {row["criterion"]: row for row in json.loads(out.read_text())["rows"]}
    assert set(rows) == {*scoring_time.PAIRS, *scoring_time.ALONE}
    assert all(len(row["ours"]) == 2 for row in rows.values())
    assert all((row["theirs"] is not None) == (name in scoring_time.PAIRS) for name, row in rows.items())
    assert "taylor" in capsys.readouterr().out


def test_ways_to_a_size_are_compared_with_one_cut(
    quick: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = ("one cut", "gradual, distilled", "one cut after group lasso, refitted")
    out = tmp_path / "rows.jsonl"
    options = ["--network", "resnet", "--seed", "0", "--seed", "1", "--share", "0.4", "--out", str(out)]
    options += [part for way in kept for part in ("--way", way)]
    assert schedules.main(options) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["seed"], row["way"]) for row in rows] == [(seed, way) for seed in (0, 1) for way in kept]
    assert all(0 <= row["accuracy"] <= 1 for row in rows)
    assert "gradual" in capsys.readouterr().out
    assert schedules.main(options) == 0  # nothing is run again
    assert len(out.read_text().splitlines()) == len(rows)
