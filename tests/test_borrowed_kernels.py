"""Budgets on a runtime that times whole networks only: another's kernels stand for its own, weighed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

import structprune as sp
from structprune.forecast.borrowed import weigh
from structprune.runtimes import Kernel, Profile, register_runtime, registry
from structprune.staircase import staircase
from tests.toy_runtime import EXAMPLE, kernels, mlp

CONSTANT = 0.2
PREPARED: list[nn.Module] = []


def mute_ms(model: nn.Module) -> float:
    return CONSTANT + 0.25 * sum(kernel.ms for kernel in kernels(model))


@pytest.fixture(autouse=True)
def mute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRUCTPRUNE_CACHE", str(tmp_path))
    for table in ("_FACTORIES", "_LENDERS"):
        monkeypatch.setattr(registry, table, dict(getattr(registry, table)))
    PREPARED.clear()

    @register_runtime("mute", kernels_of="toy")
    @contextmanager
    def factory(model: nn.Module, args: Any, kwargs: Mapping[str, Any], runtime: sp.Runtime) -> Iterator[Any]:
        PREPARED.append(model)
        yield lambda: mute_ms(model)


@pytest.mark.parametrize("share", [0.7, 0.5])
def test_a_budget_is_met_without_a_profiler(share: float) -> None:
    result = sp.prune(mlp(), EXAMPLE, sp.Budget(latency=share, runtime="mute"))
    assert 0.97 * share <= mute_ms(result.model) / mute_ms(mlp()) <= share
    report = result.report.latency
    assert report is not None
    assert len(report.turns) <= 3
    assert all(turn.forecast == pytest.approx(turn.measured.value, rel=0.05) for turn in report.turns)


def test_few_networks_are_made_ready_and_none_twice(tmp_path: Path) -> None:
    forecast = sp.forecast_latency(mlp(), EXAMPLE, runtime="mute")
    assert forecast(forecast.graph.sizes()) == pytest.approx(mute_ms(mlp()), rel=0.03)
    assert len(PREPARED) <= 8
    PREPARED.clear()
    sp.forecast_latency(mlp(), EXAMPLE, runtime="mute")
    assert PREPARED == []
    assert len(list(tmp_path.glob("latency/*.jsonl"))) == 2  # the forecast's, and what it was weighed by


def profile(conv: float, norm: float, add: float, whole: float) -> Profile:
    times = {"conv": conv, "norm": norm, "add": add}
    return Profile(tuple(Kernel(f"{name}0", name, ((1,),), ms) for name, ms in times.items()), whole)


def test_weights_and_constant_are_found_where_the_networks_tell_them_apart() -> None:
    generator = np.random.default_rng(0)
    rows = generator.uniform(0.5, 2.0, (40, 3))
    factors, constant = weigh([profile(*row, whole=0.9 + 0.5 * row[0] + 0.1 * row[1]) for row in rows])
    assert factors["conv"] == pytest.approx(0.5, abs=0.03)
    assert factors["norm"] == pytest.approx(0.1, abs=0.03)
    assert factors["add"] == pytest.approx(0.0, abs=0.03)
    assert constant == pytest.approx(0.9, abs=0.08)


def test_what_few_networks_leave_open_is_one_factor_for_all() -> None:
    factors, constant = weigh([profile(k, 0.1 * k, 0.2 * k, whole=2 * 1.3 * k) for k in (1.0, 0.7, 0.4)])
    assert list(factors.values()) == pytest.approx([2.0] * 3, rel=1e-3)
    assert constant == pytest.approx(0.0, abs=1e-3)


def test_kernels_still_cost_something_where_all_networks_take_as_long() -> None:
    factors, constant = weigh([profile(k, k, k, whole=5.0) for k in (1.0, 0.7, 0.4)])
    assert constant > 4.0
    assert all(np.isfinite(factor) and factor >= 0 for factor in factors.values())


def test_a_staircase_needs_kernels_of_the_runtimes_own() -> None:
    with pytest.raises(sp.InputError, match="does not say how long each of its kernels takes"):
        staircase(mlp(), EXAMPLE, "0", runtime="mute")


def test_a_runtime_lends_nothing_to_itself() -> None:
    with pytest.raises(sp.InputError, match="names the runtime itself"):
        register_runtime("loop", kernels_of="loop")(registry._FACTORIES["mute"])
