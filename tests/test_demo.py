"""The demo on a toy network: every figure of its table is there, and every file it says it wrote."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from rich.console import Console
from torch import nn

import structprune as sp
from structprune.data import digits
from structprune.demo import Settings, resnet20, run
from structprune.demo.networks import Candidate, Trainer, mask_weights
from structprune.train import evaluate


def toy() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 12, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(12, 10),
    )


TOY = Settings(
    build_model=toy,
    image_size=8,
    epochs=2,
    finetune_epochs=1,
    multiple_of=1,
    batch=2,
    repeats=6,
    min_time_s=0.0,
)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    folder, told = tmp_path_factory.mktemp("demo") / "out", io.StringIO()
    threads = torch.get_num_threads()
    result = run(folder, 0, Console(file=told, width=80), TOY)
    assert torch.get_num_threads() == threads
    return folder, result, told.getvalue()


def by_name(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {network["network"]: network for network in result["networks"]}


def test_four_networks_in_order(demo: tuple[Path, dict[str, Any], str]) -> None:
    assert list(by_name(demo[1])) == ["dense", "structured", "random", "unstructured"]


def test_the_budget_holds_and_the_twin_keeps_as_many_weights(demo: tuple[Path, dict[str, Any], str]) -> None:
    rows = by_name(demo[1])
    assert rows["structured"]["macs"] <= rows["dense"]["macs"] / 2
    assert rows["random"]["macs"] <= rows["dense"]["macs"] / 2
    assert rows["unstructured"]["nonzeros"] == rows["structured"]["params"] == rows["structured"]["nonzeros"]
    assert rows["unstructured"]["params"] == rows["dense"]["params"] > rows["structured"]["params"]
    assert rows["unstructured"]["macs"] == rows["dense"]["macs"] == (1 * 16 * 9) * 9 + 16 * 12 * 9 + 12 * 10


def test_every_cut_is_proven_and_every_file_checked(demo: tuple[Path, dict[str, Any], str]) -> None:
    rows = by_name(demo[1])
    assert all(0 <= rows[name]["proof_error"] <= 1e-9 for name in ("structured", "random"))
    assert rows["dense"]["proof_error"] is rows["unstructured"]["proof_error"] is None
    assert all(row["onnx_error"] < 1e-4 for row in rows.values())


def test_accuracies_and_latencies_are_complete(demo: tuple[Path, dict[str, Any], str]) -> None:
    for name, row in by_name(demo[1]).items():
        accuracies = [row[f"accuracy_{when}"] for when in ("before", "cut", "after")]
        known = [accuracy for accuracy in accuracies if accuracy is not None]
        assert len(known) == (1 if name == "dense" else 3)
        assert all(0 < accuracy <= 1 for accuracy in known)
        for runtime in ("torch", "onnxruntime"):
            low, high = row["latency"][runtime]["interval_ms"]
            assert 0 < low <= row["latency"][runtime]["median_ms"] <= high
            assert len(row["latency"][runtime]["times_ms"]) >= 6


def test_the_files(demo: tuple[Path, dict[str, Any], str]) -> None:
    folder, result, _ = demo
    assert json.loads((folder / "results.json").read_text()) == result
    for name, row in by_name(result).items():
        path = folder / f"{name}.onnx"
        onnx.checker.check_model(str(path))
        assert path.stat().st_size == row["onnx_bytes"]
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".") or path.suffix == ".new"]


def test_the_saved_network_is_the_one_in_the_table(demo: tuple[Path, dict[str, Any], str]) -> None:
    folder, result, _ = demo
    loaded, row = sp.load(folder, toy), by_name(result)["structured"]
    _, test = digits(8)
    assert sp.count_params(loaded) == row["params"]
    assert evaluate(loaded, test) == row["accuracy_after"]


def test_the_table_fits_a_narrow_terminal(demo: tuple[Path, dict[str, Any], str]) -> None:
    text = demo[2]
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    for word in (
        "dense",
        "structured",
        "random",
        "unstructured",
        "proof",
        "points of accuracy against dense",
    ):
        assert word in text


def test_a_twin_is_not_cut_below_the_weights_asked_for() -> None:
    data = digits(8)
    model = toy()
    twin = mask_weights(Candidate("dense", model, 0.1), 1000, Trainer(*data, TOY, 0), lambda done, of: None)
    assert sp.nonzeros(twin.model) == 1000
    assert not any(type(module).__name__.startswith("Parametrized") for module in twin.model.modules())


def test_the_network_is_a_resnet_20_that_can_be_cut_everywhere() -> None:
    model, image = resnet20(), torch.zeros(1, 1, 12, 12)
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert len([layer for layer in layers if getattr(layer, "kernel_size", None) != (1, 1)]) == 20
    free = [group for group in sp.trace(model, image).groups if group.frozen is None]
    assert len(free) == 9 + 3  # inside each block, and the residual stream of each stage
    result = sp.prune(model, image, sp.Budget(channels=0.5))
    assert sp.count_params(result.model) == sp.count_params(type(model)(width=16))


@pytest.mark.nightly
def test_the_whole_demo_keeps_its_promises(tmp_path: Path) -> None:
    rows = by_name(run(tmp_path, 0, Console(file=io.StringIO())))
    assert rows["dense"]["accuracy_before"] >= 0.97
    assert rows["structured"]["accuracy_after"] >= rows["dense"]["accuracy_before"] - 0.01
    assert 0.49 < rows["structured"]["macs"] / rows["dense"]["macs"] <= 0.5
