"""The latency benchmarks, on small networks and on a runtime whose clock is a formula: widths off a multiple of 8 are
slow.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import structprune as sp
from benchmarks import latency, latency_accuracy
from benchmarks.by_torch_pruning import MODES, cut, nearest, plan_of
from benchmarks.latency_accuracy_table import paired, sentences, statistics, tables
from benchmarks.latency_rows import AGAIN, BY_LATENCY, BY_MACS, DENSE, ROWS, UNSTRUCTURED, sparse, twins
from benchmarks.latency_table import plot, summary, verdict
from structprune.data import digits
from structprune.runtimes import Kernel, Profile, register_profiler, register_runtime

EXAMPLE = torch.zeros(1, 3, 8, 8)
INPUTS = ((EXAMPLE,), {})


def kernels(model: nn.Module) -> list[Kernel]:
    found = []
    for name, layer in model.named_modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            out, into = layer.weight.shape[:2]
            slow = 1.0 if out % 8 == 0 else 3.0
            blocks = math.ceil(out / 8) * math.ceil(into / 8)
            found.append(Kernel(name, "toy", (tuple(layer.weight.shape),), slow * (0.01 + 0.02 * blocks)))
    return found


@register_profiler("blocks")
def profile(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], runtime: sp.Runtime
) -> Profile:
    parts = kernels(model)
    return Profile(tuple(parts), sum(part.ms for part in parts))


@register_runtime("blocks")
@contextmanager
def stairs(model: nn.Module, args: Any, kwargs: Mapping[str, Any], runtime: sp.Runtime) -> Iterator[Any]:
    yield lambda: sum(part.ms for part in kernels(model))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRUCTPRUNE_CACHE", str(tmp_path / "cache"))


def conv_net() -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for into, out in ((3, 32), (32, 64), (64, 64)):
        layers += [nn.Conv2d(into, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 5)).eval()


@pytest.mark.parametrize("remaining", [1200, 7000, 30000])
def test_the_sparse_twin_has_as_many_weights_as_asked(remaining: int) -> None:
    twin = sparse(conv_net(), remaining)
    assert remaining <= sp.nonzeros(twin) <= remaining + 4  # rounded in each of four layers
    assert sp.nonzeros(conv_net()) > remaining


def test_torch_prunings_rows_have_the_macs_of_the_cut_by_macs() -> None:
    models = twins(conv_net(), INPUTS, 0.5)
    macs = {name: sp.count_macs(model, EXAMPLE) for name, model in models.items()}
    assert list(models) == [name for name in ROWS if name != BY_LATENCY]
    assert macs[BY_MACS] <= 0.5 * macs[DENSE]
    for mode in MODES:
        widths = [m.out_channels for m in models[mode.name].modules() if isinstance(m, nn.Conv2d)]
        assert all(width % mode.round_to == 0 for width in widths)
        assert macs[mode.name] == pytest.approx(
            macs[BY_MACS], rel=0.15
        )  # the ladder of three layers is coarse


def test_the_nearest_cut_is_the_nearest_there_is() -> None:
    model, mode = conv_net(), MODES[1]
    sizes = {sp.count_macs(cut(model, INPUTS, mode, n / 100).model, EXAMPLE) for n in range(0, 95, 3)}
    found = nearest(
        lambda at: cut(model, INPUTS, mode, at), lambda one: sp.count_macs(one.model, EXAMPLE), 1_500_000
    )
    least = min(abs(size - 1_500_000) for size in sizes)
    assert abs(sp.count_macs(found.model, EXAMPLE) - 1_500_000) <= least


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_a_plan_makes_the_same_network_as_torch_pruning(mode: Any) -> None:
    model = conv_net()
    theirs = cut(model, INPUTS, mode, 0.6)
    plan = plan_of(sp.trace(model, EXAMPLE), theirs.history)
    ours = sp.apply_plan(model, plan)
    assert sp.count_params(ours) < 0.6 * sp.count_params(model)
    state = theirs.model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in ours.state_dict().items())


def run(tmp_path: Path, *more: str) -> dict[str, Any]:
    out = tmp_path / "runs" / "latency.json"
    options = ["--network", f"{__name__}:conv_net", "--input", "1x3x8x8", "--batch", "1", "--threads", "1"]
    options += ["--repeats", "10", "--min-time", "0"]
    assert latency.main([*options, *more, "--out", str(out)]) == 0
    document: dict[str, Any] = json.loads(out.read_text())
    return document


def test_the_latency_benchmark_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = run(tmp_path, "--runtime", "blocks", "--macs", "0.6")
    rows = {row["model"]: row for row in document["rows"]}
    assert list(rows) == list(ROWS)
    assert rows[DENSE]["ratio"] == rows[AGAIN]["ratio"] == rows[UNSTRUCTURED]["ratio"] == 1.0
    assert rows[AGAIN]["macs"] == rows[DENSE]["macs"] == rows[UNSTRUCTURED]["macs"]
    assert rows[BY_MACS]["macs"] <= 0.6 * rows[DENSE]["macs"]
    assert rows[BY_LATENCY]["ratio"] <= 0.6
    assert 0 <= rows[UNSTRUCTURED]["nonzeros"] - rows[BY_MACS]["nonzeros"] <= 4
    assert {len(row["times_ms"]) for row in document["rows"]} == {10}
    assert document["environment"]["threads"]["inference"] == 1
    # widths off the stairs: fewer MACs and slower, which is said
    assert rows[BY_MACS]["ratio"] > 1.0
    place = f"{__name__}:conv_net, blocks, batch 1, 1 threads"
    assert document["summary"]["slower_than_dense"][BY_MACS] == [place]
    assert document["summary"]["slower_than_dense"][BY_LATENCY] == []
    said = capsys.readouterr().out
    assert "slower than dense" in said
    assert f"by MACs: 1 ({place})" in said
    assert "the one by latency is so 0 times" in said


def test_a_latency_out_of_reach_is_said_in_its_row(tmp_path: Path) -> None:
    rows = ("--row", DENSE, "--row", BY_LATENCY)
    document = run(tmp_path, "--runtime", "blocks", "--latency", "0.01", *rows)
    dense, absent = document["rows"]
    assert dense["model"] == DENSE
    assert "latency=0.01" in absent["error"]
    assert document["summary"]["not_reached"] == [f"{__name__}:conv_net, blocks, batch 1, 1 threads"]


def test_the_latency_benchmark_on_real_runtimes(tmp_path: Path) -> None:
    document = run(tmp_path, "--runtime", "torch", "--runtime", "onnxruntime", "--row", BY_MACS)
    assert [row["runtime"] for row in document["rows"]] == ["torch"] * 2 + ["onnxruntime"] * 2
    assert all(row["median_ms"] > 0 for row in document["rows"])


def test_the_verdict_counts_by_the_whole_interval(tmp_path: Path) -> None:
    place = {"network": "n", "runtime": "r", "batch": 1}
    rows = [
        {**place, "threads": t, "model": m, "slower": slow, "ratio": 1.0, "ratio_interval": [0.9, 1.1]}
        for t, m, slow in (
            (1, BY_MACS, True),
            (2, BY_MACS, False),
            (1, BY_LATENCY, False),
            (2, BY_LATENCY, False),
        )
    ]
    found = verdict(rows)
    assert found["configurations"] == 2
    assert found["slower_than_dense"] == {BY_MACS: ["n, r, batch 1, 1 threads"], BY_LATENCY: []}
    assert "by MACs: 1 (n, r, batch 1, 1 threads)" in summary(found)
    pytest.importorskip("matplotlib")
    assert plot(rows, tmp_path / "latency.svg").stat().st_size > 1000


# -- accuracy at equal latency ---------------------------------------------------------------------


def digits_net() -> nn.Module:
    layers: list[nn.Module] = []
    for into, out in ((1, 32), (32, 64), (64, 64)):
        layers += [nn.Conv2d(into, out, 3, stride=2, padding=1), nn.BatchNorm2d(out), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


@pytest.fixture
def few_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    def few(size: int, *, test_share: float, seed: int) -> tuple[TensorDataset, TensorDataset]:
        parts = digits(size, test_share=test_share, seed=seed)
        return tuple(TensorDataset(*(tensor[:160] for tensor in part.tensors)) for part in parts)

    monkeypatch.setattr(latency_accuracy, "digits", few)
    monkeypatch.setitem(latency_accuracy.DIGITS_NETWORKS, "resnet", digits_net)


def test_the_accuracy_benchmark_pairs_networks_of_one_latency(
    tmp_path: Path, few_digits: None, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "accuracy.json"
    options = [
        "--network",
        "resnet",
        "--seeds",
        "1",
        "--share",
        "0.5",
        "--runtime",
        "blocks",
        "--epochs",
        "2",
    ]
    options += ["--finetune-epochs", "1", "--image-size", "8", "--repeats", "6", "--min-time", "0"]
    assert latency_accuracy.main([*options, "--train-threads", "1", "--out", str(out)]) == 0
    document = json.loads(out.read_text())
    rows = document["rows"]
    assert [row["mode"] for row in rows] == [mode.name for mode in MODES]
    for row in rows:
        ours, theirs, alike = row["ours"], row["theirs"], row["equal_macs"]
        assert (
            ours["latency"]["ratio"] <= theirs["latency"]["ratio"]
        )  # the clock of this runtime has no noise
        assert alike["macs"] >= theirs["macs"]
        assert len(ours["accuracy"]) == len(ours["refitted"]) == len(theirs["accuracy"]) == 2
        assert all(0 < share <= 1 for share in ours["importance"].values())
    figures = document["figures"]
    assert len(figures) == len(MODES)
    assert all(one["seeds"] == one["latency"]["seeds"] == 1 for one in figures)
    assert latency_accuracy.main([*options, "--train-threads", "1", "--out", str(out)]) == 0  # all is there
    assert json.loads(out.read_text()) == document
    with pytest.raises(SystemExit, match="other options"):
        latency_accuracy.main([*options, "--batch", "3", "--train-threads", "1", "--out", str(out)])
    said = capsys.readouterr().out
    assert "At equal measured latency" in said
    assert "of 4 comparisons" in said


def test_differences_are_paired_within_seeds() -> None:
    found = paired([0.90, 0.80, 0.70], [0.89, 0.78, 0.69])
    assert found["difference"] == pytest.approx(0.04 / 3)
    assert found["interval"] == pytest.approx(
        [-0.001010, 0.027676], abs=1e-5
    )  # t with two degrees of freedom
    assert (found["better"], found["worse"], found["verdict"]) == (3, 0, "not told apart")
    assert paired([1.0], [0.5])["verdict"] == "not told apart"
    assert paired([1.0, 1.1, 1.0], [2.0, 2.0, 2.1])["verdict"] == "lower"


def test_what_is_out_of_reach_is_counted() -> None:
    cut = {"latency": {"ratio": 0.1}, "macs": 0.1, "importance": {"harmonic": 0.2}}
    cut |= {"accuracy": [0.1, 0.9], "refitted": [0.8, 0.95]}
    rows = [
        {"network": "n", "share": 0.1, "mode": "m", "theirs": cut, "ours": ours, "equal_macs": None}
        for ours in (None, cut)
    ]
    (found,) = statistics(rows)
    assert (found["seeds"], found["not_reached"], found["accuracy"][-1]["seeds"]) == (2, 1, 1)
    assert found["refitted"][0]["difference"] == pytest.approx(0.7)  # against torch-pruning's, not refitted
    assert "latency at equal MACs" not in found
    assert [made.row_count for made in tables([found])] == [1, 1, 1, 0]
    assert sentences([found])[-1].startswith("1 latencies")
