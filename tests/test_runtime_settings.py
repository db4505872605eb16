"""The settings of a runtime: what is refused, that they reach it, and that plans and caches tell them apart."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import structprune as sp
from structprune.forecast.cache import Cache
from structprune.plan import plan_digest
from structprune.runtimes import Kernel, Profile, profiles, register_profiler, register_runtime, registry
from structprune.runtimes.ort import session_options

X = torch.randn(2, 16)
SPIN = "session.intra_op.allow_spinning"
SETTINGS = sp.Runtime("spy", threads=2, batch=5, dtype="float64", provider_options={"depth": 3, "a.b": True})
SEEN: list[tuple[nn.Module, tuple[Any, ...], dict[str, Any], sp.Runtime]] = []


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))


@pytest.fixture(autouse=True)
def spy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A runtime that writes down what it is given; its clock says how many weights there are."""
    monkeypatch.setattr(registry, "_FACTORIES", dict(registry._FACTORIES))
    monkeypatch.setattr(registry, "_TAKE_OPTIONS", set(registry._TAKE_OPTIONS))
    monkeypatch.setattr(profiles, "_PROFILERS", dict(profiles._PROFILERS))
    monkeypatch.setenv("STRUCTPRUNE_CACHE", str(tmp_path))
    SEEN.clear()

    def kernels(model: nn.Module) -> tuple[Kernel, ...]:
        layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
        return tuple(
            Kernel(
                f"{i}", "toy", ((5, layer.in_features), tuple(layer.weight.shape)), layer.weight.numel() / 1e3
            )
            for i, layer in enumerate(layers)
        )

    @register_runtime("spy", takes_options=True)
    @contextmanager
    def factory(model: Any, args: Any, kwargs: Mapping[str, Any], runtime: sp.Runtime) -> Iterator[Any]:
        SEEN.append((model, args, dict(kwargs), runtime))
        yield lambda: sum(kernel.ms for kernel in kernels(model))

    @register_profiler("spy")
    def profiler(model: Any, args: Any, kwargs: Mapping[str, Any], runtime: sp.Runtime) -> Profile:
        SEEN.append((model, args, dict(kwargs), runtime))
        return Profile(kernels(model), sum(kernel.ms for kernel in kernels(model)))


def test_settings_are_plain_frozen_and_hashable() -> None:
    assert SETTINGS.options == {"a.b": "1", "depth": "3"}
    assert hash(SETTINGS) == hash(replace(SETTINGS, provider_options={"a.b": "1", "depth": "3"}))
    assert sp.Runtime(provider_options={}) == sp.Runtime(provider_options=None) == sp.Runtime()
    assert sp.Runtime(dtype=torch.bfloat16).dtype == "bfloat16"  # type: ignore[arg-type]
    assert json.loads(json.dumps(SETTINGS.settings()))["provider_options"] == SETTINGS.options
    assert str(SETTINGS) == "spy, 2 threads, batch 5, float64, a.b=1, depth=3"


def test_the_settings_need_no_torch() -> None:
    code = (
        "import sys, importlib.util as u; sys.modules['structprune'] = type(sys)('structprune');"
        "sys.modules['structprune'].__path__ = [sys.argv[1]];"
        "import structprune.runtime_settings; assert 'torch' not in sys.modules"
    )
    package = str(Path(sp.__file__).parent)
    subprocess.run([sys.executable, "-c", code, package], check=True)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"name": ""}, "name"),
        ({"name": 3}, "name"),
        ({"threads": 0}, "threads=0"),
        ({"threads": True}, "threads=True"),
        ({"batch": 0}, "batch=0"),
        ({"batch": 2.0}, r"batch=2\.0"),
        ({"dtype": "int8"}, "float16, bfloat16"),
        ({"provider_options": "a=1"}, "expected a dict"),
        ({"provider_options": {"": 1}}, "key"),
        ({"provider_options": {"a": None}}, "'a'.*NoneType"),
        ({"provider_options": {"a": "x" * 2000}}, "'a'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(sp.InputError, match=message):
        sp.Runtime(**wrong)


def test_what_is_said_twice_must_agree() -> None:
    on = sp.Runtime("spy", threads=2, batch=3)
    assert sp.measure_latency(net(), X, runtime=on, threads=2, batch=3, repeats=1, min_time=0).batch == 3
    with pytest.raises(sp.InputError, match="threads=4 beside a Runtime with threads=2"):
        sp.measure_latency(net(), X, runtime=on, threads=4)
    with pytest.raises(sp.InputError, match="batch=4 beside"):
        sp.measure_latency(net(), X, runtime=on, batch=4)
    with pytest.raises(sp.InputError, match="threads=1 beside"):
        sp.Budget(latency=0.5, runtime=on, threads=1)
    with pytest.raises(sp.InputError, match="threads=1 beside"):
        sp.forecast_latency(net(), X, runtime=on, threads=1)


def test_a_measurement_runs_a_converted_copy_and_says_its_settings() -> None:
    model = net()
    got = sp.measure_latency(model, X, runtime=SETTINGS, repeats=6, min_time=0)
    ((timed, args, _, runtime),) = SEEN
    assert runtime == SETTINGS
    assert timed is not model
    assert {p.dtype for p in timed.parameters()} == {args[0].dtype} == {torch.float64}
    assert args[0].shape == (5, 16)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert (got.runtime, got.threads, got.batch, got.dtype) == ("spy", 2, 5, "float64")
    data = json.loads(json.dumps(got.to_dict()))
    assert (data["dtype"], data["provider_options"]) == ("float64", SETTINGS.options)
    assert "spy, 2 threads, batch 5, float64, a.b=1, depth=3" in str(got)


def test_only_floating_numbers_are_converted_and_complex_ones_stay_complex() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("turns", torch.zeros(3, dtype=torch.complex64))
            self.register_buffer("places", torch.arange(3))
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
            return x

    model = Mixed()
    on = sp.Runtime("spy", dtype="float16")
    sp.measure_latency(model, {"x": torch.ones(3), "ids": torch.arange(3)}, runtime=on, repeats=1, min_time=0)
    ((timed, _, kwargs, _),) = SEEN
    assert [t.dtype for t in (*timed.parameters(), *timed.buffers())] == [
        torch.float16,
        torch.complex64,
        torch.int64,
    ]
    assert (kwargs["x"].dtype, kwargs["ids"].dtype) == (torch.float16, torch.int64)
    sp.measure_latency(
        model, {"x": torch.ones(3), "ids": torch.arange(3)}, runtime=replace(on, dtype="float32"), repeats=1
    )
    assert SEEN[-1][0] is model


def test_a_budget_and_its_plan_keep_the_settings() -> None:
    budget = sp.Budget(latency=0.6, runtime=SETTINGS)
    result = sp.prune(net(), X, budget)
    assert {runtime for *_, runtime in SEEN} == {SETTINGS}
    assert {args[0].shape for _, args, *_ in SEEN} == {(5, 16)}
    assert {p.dtype for model, *_ in SEEN for p in model.parameters()} == {torch.float64}
    assert {p.dtype for p in result.model.parameters()} == {torch.float32}
    again = sp.PruningPlan.from_json(result.plan.to_json())
    assert again == result.plan
    assert again.budget == budget
    assert "spy, 2 threads, batch 5" in str(again)
    others = [replace(result.plan, budget=replace(budget, runtime=one, threads=None)) for one in varied()]
    digests = {plan_digest([plan]) for plan in (result.plan, *others)}
    assert len(digests) == 1 + len(others)


def varied() -> list[sp.Runtime]:
    changes: list[dict[str, Any]] = [{"name": "torch"}, {"threads": 1}, {"batch": None}, {"dtype": None}]
    return [replace(SETTINGS, **change) for change in (*changes, {"provider_options": None})]


def test_each_setting_has_profiles_of_its_own() -> None:
    graph = sp.trace(net(), X)
    paths = {Cache.of(graph, ((X,), {}), one).path for one in (SETTINGS, *varied())}
    assert len(paths) == 1 + len(varied())


@pytest.mark.parametrize("name", ["torch", "torch-cuda"])
def test_options_are_refused_where_nothing_reads_them(name: str) -> None:
    on = sp.Runtime(name, provider_options={"device_id": 1})
    with pytest.raises(sp.InputError, match="takes no provider options"):
        sp.measure_latency(net(), X, runtime=on)
    with pytest.raises(sp.InputError, match="takes no provider options"):
        sp.forecast_latency(net(), X, runtime=on)


def test_onnxruntime_takes_session_entries_and_refuses_options_that_its_cpu_ignores() -> None:
    assert session_options(sp.Runtime()).get_session_config_entry(SPIN) == "0"
    spinning = sp.Runtime(provider_options={SPIN: True})
    assert session_options(spinning).get_session_config_entry(SPIN) == "1"
    got = sp.measure_latency(net(), X, runtime=spinning, repeats=1, min_time=0)
    assert got.provider_options == {SPIN: "1"}
    with pytest.raises(sp.InputError, match="CPU provider has no options"):
        sp.measure_latency(net(), X, runtime=sp.Runtime(provider_options={"device_id": 0}))


@pytest.mark.parametrize(
    ("name", "dtype"), [("torch", "float16"), ("torch", "float64"), ("onnxruntime", "float16")]
)
def test_real_runtimes_run_in_the_dtype(name: str, dtype: str) -> None:
    on = sp.Runtime(name, dtype=dtype, batch=3)
    got = sp.measure_latency(net(), X, runtime=on, repeats=1, min_time=0)
    assert (got.dtype, got.batch) == (dtype, 3)


def test_a_dtype_that_onnxruntime_has_no_kernels_for_is_said() -> None:
    with pytest.raises(
        sp.ExportError, match=r"(?s)implementation.*float32 where the model is in a half-precision"
    ):
        sp.measure_latency(net(), X, runtime=sp.Runtime(dtype="bfloat16"))
