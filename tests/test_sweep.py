"""Sweeps: each point is what its budget alone would choose, and all the work that they share is done once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import structprune as sp
from structprune.cli import app
from structprune.report.sweep import plot_sweep, sweep_table
from tests.toy_runtime import EXAMPLE, WASTE, kernels, mlp, toy_profile

SHARES = (0.9, 0.75, 0.5, 0.33)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRUCTPRUNE_CACHE", str(tmp_path / "cache"))


def profiled(model: nn.Module) -> float:
    """What a profile gives for a whole inference, in milliseconds."""
    return toy_profile(model, (), {}, sp.Runtime("toy")).whole_ms


def counted(monkeypatch: pytest.MonkeyPatch, name: str) -> list[str]:
    """The calls of a step of the sweep."""

    module = __import__("sys").modules["structprune.sweep"]
    step, calls = getattr(module, name), []

    def once(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        return step(*args, **kwargs)

    monkeypatch.setattr(module, name, once)
    return calls


def test_each_point_is_what_its_budget_alone_would_choose() -> None:
    budgets = [sp.Budget(macs=share) for share in SHARES[:3]]
    model = mlp()
    graph = sp.trace(model, EXAMPLE)
    scores = sp.score(model, graph)
    points = sp.sweep(model, EXAMPLE, budgets, keep="2", multiple_of=4)
    for point, budget in zip(points, budgets, strict=True):
        assert point.plan is not None
        assert point.plan == sp.select(graph, scores, budget, keep="2", multiple_of=4, criterion="l2")
        assert point.budget == budget
        assert point.remaining is not None
        assert point.remaining["macs"] <= budget.fraction
        assert point.forecast is point.measured is None
    kept = [point.importance for point in points]
    assert kept == sorted(kept, reverse=True)
    assert 0 < kept[-1] < kept[0] < 1


def test_a_whole_network_keeps_all_importance() -> None:
    (point,) = sp.sweep(mlp(), EXAMPLE, [sp.Budget(macs=1.0)])
    assert point.importance == pytest.approx(1.0)
    assert point.remaining == dict.fromkeys(("channels", "params", "macs", "peak_memory", "file_size"), 1.0)


def test_latencies_are_forecast_from_one_set_of_profiles(monkeypatch: pytest.MonkeyPatch) -> None:
    done = [counted(monkeypatch, name) for name in ("trace", "score", "learn")]
    model = mlp()
    before = {name: p.clone() for name, p in model.named_parameters()}
    points = sp.sweep(model, EXAMPLE, [sp.Budget(latency=share, runtime="toy") for share in SHARES])
    assert [len(calls) for calls in done] == [1, 1, 1]
    for share, point in zip(SHARES, points, strict=True):
        assert point.forecast is not None
        assert 0.9 * share <= point.forecast <= share
        assert point.forecast_ms == pytest.approx(point.forecast * profiled(model))
        assert point.measured is None
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())


def test_budgets_of_macs_have_a_latency_too_where_a_runtime_is_named() -> None:
    budgets = [sp.Budget(macs=0.5), sp.Budget(latency=0.5, runtime="toy"), sp.Budget(params=0.6, macs=0.7)]
    points = sp.sweep(mlp(), EXAMPLE, budgets)
    assert all(point.forecast is not None for point in points)
    assert all(point.forecast is None for point in sp.sweep(mlp(), EXAMPLE, budgets[:1]))
    (named,) = sp.sweep(mlp(), EXAMPLE, budgets[:1], runtime="toy")
    assert named.forecast == pytest.approx(points[0].forecast)


def test_what_is_measured_is_measured_by_turns_with_the_dense_network() -> None:
    budgets = [sp.Budget(latency=share, runtime="toy") for share in (0.75, 0.5, 0.001)]
    points = sp.sweep(mlp(), EXAMPLE, budgets, measure=True)
    sessions = {point.measurement.session for point in points if point.measurement is not None}
    assert len(sessions) == 1
    for point in points[:2]:
        assert point.measured is not None
        assert point.plan is not None
        small = sp.apply_plan(mlp(), point.plan)
        true = (WASTE + sum(k.ms for k in kernels(small))) / (WASTE + sum(k.ms for k in kernels(mlp())))
        assert point.measured.value == pytest.approx(true)
        assert point.measured.paired
    assert points[2].plan is points[2].measured is points[2].importance is None
    assert "latency=0.001" in points[2].unreachable
    assert "can be reached" in points[2].unreachable


def test_milliseconds_and_throughput_are_shares_of_the_dense_latency() -> None:
    dense = profiled(mlp())
    by_share, by_ms, by_rate = sp.sweep(
        mlp(),
        torch.zeros(2, 32),
        [
            sp.Budget(latency=0.6, runtime="toy"),
            sp.Budget(latency_ms=0.6 * dense, runtime="toy"),
            sp.Budget(throughput=2e3 / (0.6 * dense), runtime="toy"),
        ],
    )
    assert by_share.forecast == pytest.approx(by_ms.forecast, rel=0.03)
    assert by_ms.forecast == pytest.approx(by_rate.forecast)
    (easy,) = sp.sweep(mlp(), EXAMPLE, [sp.Budget(latency_ms=1e6, runtime="toy")])
    assert easy.importance == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("budgets", "options", "message"),
    [
        ([], {}, "budgets is"),
        ([0.5], {}, "expected Iterable.Budget., got list of float"),
        (5, {}, "budgets=5"),
        ([sp.Budget(macs=0.5)], {"measure": True}, "measure=True"),
        ([sp.Budget(latency=0.5, runtime="toy")], {"runtime": "torch"}, "one runtime"),
        (
            [sp.Budget(latency=0.5, runtime="toy"), sp.Budget(latency=0.5, runtime="toy", threads=2)],
            {},
            "one runtime",
        ),
    ],
    ids=["none", "numbers", "a number", "measured nowhere", "another runtime", "other threads"],
)
def test_a_sweep_that_makes_no_sense_is_refused(budgets: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(sp.InputError, match=message):
        sp.sweep(mlp(), EXAMPLE, budgets, **options)


def test_points_are_plain_data_and_rows() -> None:
    points = sp.sweep(mlp(), EXAMPLE, [sp.Budget(macs=0.5), sp.Budget(params=0.5, file_size=0.0001)])
    met, missed = (json.loads(json.dumps(point.to_dict(), allow_nan=False)) for point in points)
    assert met["budget"] == {"macs": 0.5}
    assert met["widths"]["0"][0] == 200
    assert missed["widths"] == {}
    assert "file_size cannot" in missed["unreachable"]
    assert sweep_table(points).row_count == 2


def test_a_plot_has_one_line_for_each_kind_of_budget(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    budgets = [sp.Budget(macs=s) for s in SHARES] + [sp.Budget(latency=s, runtime="toy") for s in SHARES]
    file = plot_sweep(sp.sweep(mlp(), EXAMPLE, budgets), tmp_path / "sweep.svg")
    text = file.read_text()
    for label in ("budgets of macs", "budgets of latency", "importance kept", "latency, share of dense"):
        assert label in text


# -- the command -----------------------------------------------------------------------------------


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nets.py").write_text(
        "from torch import nn\n"
        "def mlp():\n    return nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 16), nn.Linear(16, 3))\n"
    )
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("nets")
def test_the_command_prints_a_row_for_each_value_and_needs_no_runtime() -> None:
    done = CliRunner().invoke(app, ["sweep", "nets.py:mlp", "-i", "1x6", "--at", "0.8,0.5,0.001"])
    assert done.exit_code == 0, done.output
    rows = [line for line in done.output.splitlines() if line.startswith("macs=")]
    assert len(rows) == 4  # the last one is the reason
    assert "not met" in rows[2]
    assert "can be reached" in rows[3]
    assert "cannot be met" not in done.output  # the table says so


@pytest.mark.usefixtures("nets")
@pytest.mark.parametrize("more", [[], ["--json"]])
def test_a_sweep_of_which_nothing_can_be_met_is_exit_code_4(more: list[str]) -> None:
    asked = ["sweep", "nets.py:mlp", "-i", "1x6", "--at", "0.001,0.002", *more]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 4, done.output
    assert done.stderr.count("can be reached") == 2
    assert "macs=0.002" in done.stderr
    if more:
        assert json.loads(done.stdout)["error"]["exit_code"] == 4


@pytest.mark.usefixtures("nets")
def test_the_command_sweeps_several_quantities_as_json() -> None:
    arguments = ["sweep", "nets.py:mlp", "-i", "1x6", "--quantity", "macs", "--quantity", "peak-memory"]
    done = CliRunner().invoke(app, [*arguments, "--at", "0.9,0.7", "--json"])
    assert done.exit_code == 0, done.output
    points = json.loads(done.stdout)["points"]
    assert [point["budget"] for point in points] == [
        *({"macs": 0.9}, {"macs": 0.7}, {"peak_memory": 0.9}, {"peak_memory": 0.7})
    ]
    assert all(point["remaining"][q] <= v for point in points for q, v in point["budget"].items())


@pytest.mark.usefixtures("nets")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--at", "half"], "expected numbers"),
        (["--at", "0.5,1.5"], "fraction in"),
        (["--quantity", "time"], "expected one of"),
        (["--plot", "sweep.txt"], "a plot"),
    ],
)
def test_arguments_that_make_no_sense_are_explained(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(app, ["sweep", "nets.py:mlp", "-i", "1x6", *arguments])
    assert done.exit_code == 2
    assert message in done.output


def test_sizes_are_those_of_the_plan() -> None:
    (point,) = sp.sweep(mlp(), EXAMPLE, [sp.Budget(params=0.5)])
    assert point.plan is not None
    small = sp.apply_plan(mlp(), point.plan)
    assert point.remaining is not None
    assert point.remaining["params"] == pytest.approx(sp.count_params(small) / sp.count_params(mlp()))
    assert np.isclose(point.remaining["file_size"], sp.weight_bytes(small) / sp.weight_bytes(mlp()))
