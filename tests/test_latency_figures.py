"""The benchmarks of latency budgets and forecasts, on tiny networks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import forecast, latency_targets
from benchmarks.catalogue import CATALOGUE
from benchmarks.modern_networks import MODERN


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRUCTPRUNE_CACHE", str(tmp_path / "cache"))


NETWORK = ["--network", "tests.toy_runtime:mlp", "--input", "1x32", "--runtime", "toy"]


def test_the_table_of_targets_says_what_was_asked_and_what_was_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "targets.json"
    status = latency_targets.main([*NETWORK, "--share", "0.6", "--share", "0.01", "--out", str(out)])
    reached, missed = json.loads(out.read_text())["rows"]
    assert status == 1
    assert reached["met"]
    assert 0.97 * 0.6 <= reached["measured"] <= 0.6
    assert not missed["met"]
    assert "reached" in missed["error"]
    text = capsys.readouterr().out
    assert "1 of 2 within" in text
    assert "not reached" in text


def test_forecasts_are_held_against_networks_that_were_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "forecast.json"
    assert forecast.main([*NETWORK, "--prunings", "4", "--min-time", "0.01", "--out", str(out)]) == 0
    (row,) = json.loads(out.read_text())["rows"]
    assert len(row["pairs"]) == 4
    assert row["median_error"] < 0.5
    assert row["rank_correlation"] > 0.9
    assert "rank corr." in capsys.readouterr().out


@pytest.mark.parametrize("name", ["efficientnet_b0", "convnext_tiny", "vit_small"])
def test_networks_have_the_parameters_that_are_published(name: str) -> None:
    make, params = MODERN[name]
    with torch.device("meta"):
        assert sum(p.numel() for p in make().parameters()) == params
    assert CATALOGUE[name] == (make, params)
