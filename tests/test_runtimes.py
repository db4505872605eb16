"""Timing: real sessions on small nets, and the order of turns on a runtime whose clock the test holds."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from structprune.errors import ExportError, InputError
from structprune.latency import Measurement, measure_latency, ratio
from structprune.runtime_settings import Runtime
from structprune.runtimes import (
    inference_mode,
    prepare,
    register_runtime,
    registry,
    runtime_names,
    torch_threads,
)
from structprune.runtimes.flags import subnormals_as_zero

X = torch.randn(2, 4)
CALLS: list[str] = []


class Named(nn.Module):
    """A module whose fake inference takes a set number of milliseconds, one number a call."""

    def __init__(self, name: str, *times_ms: float) -> None:
        super().__init__()
        self.name = name
        self.times = itertools.cycle(times_ms or (1.0,))

    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.fixture(autouse=True)
def fake_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_FACTORIES", dict(registry._FACTORIES))
    CALLS.clear()

    @register_runtime("fake")
    @contextmanager
    def fake(model: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], runtime: Runtime) -> Iterator[Any]:
        def timed() -> float:
            CALLS.append(model.name)
            return float(next(model.times))

        yield timed
        CALLS.append(f"{model.name} closed")


def small_net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))


def flags(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime"])
def test_a_real_measurement_leaves_everything_as_it_was(runtime: str) -> None:
    model = small_net().train()
    model[1].eval()
    before, state = flags(model), {name: t.clone() for name, t in model.state_dict().items()}
    threads = torch.get_num_threads()
    got = measure_latency(model, X, runtime=runtime, threads=1, repeats=7, min_time=0.0)
    assert len(got.times_ms) == 7
    assert min(got.times_ms) > 0
    assert (got.runtime, got.threads, got.batch) == (runtime, 1, 2)
    assert got.environment["torch"] == torch.__version__
    assert flags(model) == before
    assert torch.get_num_threads() == threads
    assert all(torch.equal(state[name], t) for name, t in model.state_dict().items())
    assert torch.is_grad_enabled()


def test_onnxruntime_runs_what_the_module_computes_with_threads_and_no_spinning() -> None:
    import onnxruntime

    seen: list[Any] = []
    real = onnxruntime.InferenceSession

    def spy(*args: Any, **kwargs: Any) -> Any:
        seen.append(kwargs["sess_options"])
        return real(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnxruntime, "InferenceSession", spy)
        measure_latency(small_net(), X, runtime="onnxruntime", threads=2, repeats=1, min_time=0.0)
    (options,) = seen
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (2, 1)
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_threads_are_set_while_running_and_put_back_after_an_error() -> None:
    before = torch.get_num_threads()

    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert torch.get_num_threads() == before + 1
            assert not self.training
            assert not torch.is_grad_enabled()
            raise RuntimeError("the model's own error")

    model = Fails().train()
    with pytest.raises(RuntimeError, match="own error"):
        measure_latency(model, X, runtime="torch", threads=before + 1)
    assert torch.get_num_threads() == before
    assert model.training


def test_flags_come_back_without_the_models_own_train() -> None:
    class Frozen(nn.Module):
        def train(self, mode: bool = True) -> Frozen:
            raise AssertionError("train() may do more than set flags")

    model = Frozen()
    with inference_mode(model):
        assert not model.training
    assert model.training


def test_torch_threads_restores() -> None:
    before = torch.get_num_threads()
    with torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_every_round_runs_every_model_once_in_changing_order() -> None:
    models = {name: Named(name) for name in "abc"}
    got = measure_latency(models, X, runtime="fake", warmup=2, repeats=20, min_time=0.0)
    runs = [call for call in CALLS if "closed" not in call]
    rounds = [tuple(runs[i : i + 3]) for i in range(0, len(runs), 3)]
    assert len(rounds) == 22
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert len(set(rounds)) > 3
    assert list(got) == ["a", "b", "c"]
    assert sum("closed" in call for call in CALLS) == 3


def test_warm_up_rounds_are_not_counted_and_times_keep_their_order() -> None:
    got = measure_latency(Named("a", 9, 9, 1, 2, 3), X, runtime="fake", warmup=2, repeats=3, min_time=0.0)
    assert got.times_ms == (1.0, 2.0, 3.0)


def test_min_time_adds_rounds_until_the_fastest_model_has_it() -> None:
    got = measure_latency(
        (Named("slow", 50.0), Named("fast", 10.0)), X, runtime="fake", warmup=0, repeats=2, min_time=0.1
    )
    assert [len(m.times_ms) for m in got] == [10, 10]


def test_rounds_are_bounded_for_very_short_calls() -> None:
    got = measure_latency(Named("a", 1e-6), X, runtime="fake", warmup=0, repeats=1, min_time=10.0)
    assert len(got.times_ms) == 10_000


def test_batch_repeats_the_example() -> None:
    seen: list[torch.Size] = []

    class Spy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.shape)
            return x

    got = measure_latency(Spy(), {"x": X}, runtime="torch", batch=5, warmup=0, repeats=1, min_time=0.0)
    assert got.batch == 5
    assert set(seen) == {torch.Size([5, 4])}


def test_median_interval_and_flags_of_known_times() -> None:
    times = tuple(float(t) for t in range(1, 51))
    got = Measurement(times, "fake", 1, 1)
    assert got.median_ms == 25.5
    assert got.interval_ms == (18.0, 33.0)  # the 18th and 33rd of 50: the table's 95 % ranks
    assert got.iqr_ms == pytest.approx(24.5)
    assert got.unstable
    assert not Measurement((1.0, 1.01, 1.0, 1.0, 0.99, 1.0), "fake", 1, 1).unstable
    assert Measurement((1.0, 1.0), "fake", 1, 1).unstable
    assert Measurement((3.0, 1.0, 2.0), "fake", 1, 1).interval_ms == (1.0, 3.0)


def test_measurement_is_plain_data_in_json() -> None:
    got = measure_latency(Named("a", 2.0), X, runtime="fake", repeats=6, min_time=0.0)
    data = json.loads(json.dumps(got.to_dict()))
    assert data["median_ms"] == 2.0
    assert data["times_ms"] == [2.0] * 6
    assert got.to_dict(times=False) == {key: value for key, value in data.items() if key != "times_ms"}
    assert data["rounds"] == 6
    assert data["environment"]["onnxruntime"]


def test_paired_ratio_cancels_what_disturbs_both() -> None:
    drift = [1 + 3 * (i % 10) / 10 for i in range(60)]
    pair = [Measurement(tuple(k * d for d in drift), "fake", 1, 1, session="s") for k in (1.0, 2.0)]
    got = ratio(pair[1], pair[0])
    assert got.paired
    assert (got.value, got.low, got.high) == pytest.approx((2.0, 2.0, 2.0))
    apart = ratio(pair[1], Measurement(pair[0].times_ms, "fake", 1, 1, session="t"))
    assert not apart.paired
    assert apart.low < 2.0 < apart.high


@contextmanager
def thread_flushes(on: bool) -> Iterator[None]:
    before = (torch.tensor(1e-40) * 1e10).item() == 0
    torch.set_flush_denormal(on)
    yield
    now = (torch.tensor(1e-40) * 1e10).item() == 0
    torch.set_flush_denormal(before)
    assert now == on


@pytest.mark.parametrize("before", [False, True])
def test_how_the_thread_computes_with_subnormals_is_put_back(before: bool) -> None:
    for on in (None, False, True):
        with thread_flushes(before):
            with subnormals_as_zero(on):
                assert ((torch.tensor(1e-40) * 1e10).item() == 0) == (before if on is None else on)
            with subnormals_as_zero(on):
                torch.set_flush_denormal(not before)  # as a library does that is loaded in between


def test_the_first_session_of_a_process_leaves_the_thread_as_it_was() -> None:
    code = (
        "import torch, structprune as sp;"
        "zero = lambda: (torch.tensor(1e-40) * 1e10).item() == 0;"
        "assert not zero(); sp.measure_latency(torch.nn.Linear(2, 2), torch.ones(1, 2), repeats=1, min_time=0);"
        "assert not zero(), 'onnxruntime left the thread flushing'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(("option", "flushed"), [("1", True), ("0", False)])
def test_onnxruntime_computes_with_subnormals_as_zero_unless_told_otherwise(
    option: str, flushed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    outputs: list[Any] = []
    real = onnxruntime.InferenceSession.run

    def spy(session: Any, *args: Any) -> Any:
        outputs.extend(real(session, *args))
        return outputs[-1:]

    class Squares(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * x

    monkeypatch.setattr(onnxruntime.InferenceSession, "run", spy)
    for threads in (1, 2):
        on = Runtime(threads=threads, provider_options={"session.set_denormal_as_zero": option})
        measure_latency(
            Squares(), torch.full((1 << 20,), 1e-20), runtime=on, warmup=0, repeats=1, min_time=0.0
        )
    assert [bool((array.view("int32") == 0).all()) for array in outputs] == [flushed, flushed]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"runtime": "tpu"}, "onnxruntime"),
        ({"threads": 0}, "threads=0"),
        ({"repeats": 0}, "repeats=0"),
        ({"warmup": -1}, "warmup=-1"),
        ({"batch": 0}, "batch=0"),
    ],
    ids=lambda value: str(value),
)
def test_arguments_out_of_range_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        measure_latency(small_net(), X, **change)


@pytest.mark.parametrize("models", [{}, (), {"a": 3}, "net"])
def test_what_is_no_module_is_refused(models: Any) -> None:
    with pytest.raises(InputError):
        measure_latency(models, X, runtime="fake")


def test_a_name_is_registered_once() -> None:
    assert "fake" in runtime_names()
    with pytest.raises(InputError, match="registered"):
        register_runtime("torch")(registry._FACTORIES["fake"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="speaks of machines without CUDA")
@pytest.mark.parametrize("runtime", ["torch-cuda", "onnxruntime-cuda"])
def test_an_absent_device_is_an_error_that_says_so(runtime: str) -> None:
    with pytest.raises(InputError, match="CUDA"), prepare(Runtime(runtime), small_net(), (X,), {}):
        pass


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_times_a_copy() -> None:
    model = small_net()
    got = measure_latency(model, X, runtime="torch-cuda", repeats=6, min_time=0.0)
    assert min(got.times_ms) > 0
    assert next(model.parameters()).device.type == "cpu"


def test_what_cannot_be_converted_is_an_export_error_with_the_cause() -> None:
    class Reads(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.sum().item() > 0:
                return x
            return -x

    with pytest.raises(ExportError, match="Reads"):
        measure_latency(Reads(), X, runtime="onnxruntime")
