"""torch.compile as a runtime: compiled before it is timed, an error where it cannot be, and nothing left behind."""

from __future__ import annotations

import functools
import types
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo import eval_frame
from torch._dynamo.exc import BackendCompilerFailed
from torch._inductor.exc import InvalidCxxCompiler

import structprune as sp

X = torch.randn(2, 4)
REAL_COMPILE = torch.compile


class Broken(nn.Module):
    """Its forward is compiled in two pieces, so that torch's caches hold entries of the class's own code."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        torch._dynamo.graph_break()
        out: Tensor = self.second(x)
        return out


def entries(code: types.CodeType) -> int:
    return len(eval_frame._debug_get_cache_entry_list(code))


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()  # code that was run while compiling was switched off stays as it was


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """torch.compile without inductor, which takes seconds; the options of each call."""
    calls: list[dict[str, Any]] = []

    def quick(function: Any, **options: Any) -> Any:
        calls.append(options)
        return REAL_COMPILE(function, **options, backend="eager")

    monkeypatch.setattr(torch, "compile", quick)
    return calls


def measure(*models: nn.Module, runtime: str | sp.Runtime = "torch-compile") -> tuple[sp.Measurement, ...]:
    return sp.measure_latency(models, X, runtime=runtime, warmup=0, repeats=6, min_time=0.0)


@pytest.mark.slow
def test_inductor_is_timed() -> None:
    (got,) = measure(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
    assert len(got.times_ms) == 6
    assert got.median_ms < 1e3  # compiling takes seconds


def test_shapes_are_static_and_nothing_is_left_in_the_caches(seen: list[dict[str, Any]]) -> None:
    models = [Broken(width) for width in (3, 5, 7)]
    state = [dict(vars(model)) for model in models]
    measure(*models)
    assert seen == [{"dynamic": False}] * 3
    assert entries(Broken.forward.__code__) == 0
    assert [dict(vars(model)) for model in models] == state
    assert all(model.training for model in models)


def test_more_networks_of_one_class_than_torch_keeps_are_all_compiled(seen: list[dict[str, Any]]) -> None:
    with torch._dynamo.config.patch(recompile_limit=2, fail_on_recompile_limit_hit=True):
        assert len(measure(*(Broken(width) for width in range(2, 7)))) == 5


def test_the_users_own_compiled_functions_stay_compiled(seen: list[dict[str, Any]]) -> None:
    ran = []

    def backend(graph: Any, inputs: Any) -> Any:
        ran.append(graph)
        return graph.forward

    own = REAL_COMPILE(Broken(6), backend=backend)
    expected = own(X)
    graphs = len(ran)
    measure(Broken(6), Broken(9))
    assert torch.equal(own(X), expected)
    assert len(ran) == graphs  # nothing was compiled again
    with torch._dynamo.config.patch(recompile_limit=8):
        assert entries(Broken.forward.__code__) >= 1


def test_the_shapes_that_were_compiled_are_run_and_not_others(seen: list[dict[str, Any]]) -> None:
    (got,) = measure(Broken(), runtime=sp.Runtime("torch-compile", batch=5, dtype="float64"))
    assert (got.batch, got.dtype) == (5, "float64")


@pytest.mark.parametrize("switch", ["disabled", "stance"])
def test_a_compiler_that_is_switched_off_is_no_measurement(seen: list[dict[str, Any]], switch: str) -> None:
    if switch == "stance":
        context: Any = torch.compiler.set_stance("force_eager")
    else:
        context = torch._dynamo.config.patch(disable=True)
    with context, pytest.raises(sp.InputError, match="compiles nothing of Broken"):
        measure(Broken())


def test_errors_are_not_suppressed_and_a_missing_compiler_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(graph: Any, inputs: Any, error: Exception) -> Any:
        raise error

    def compile_with(error: Exception) -> None:
        backend = functools.partial(fails, error=error)
        monkeypatch.setattr(
            torch, "compile", lambda f, **options: REAL_COMPILE(f, **options, backend=backend)
        )

    with torch._dynamo.config.patch(suppress_errors=True):
        compile_with(InvalidCxxCompiler())
        with pytest.raises(sp.InputError, match=r"torch-compile.*C\+\+ compiler.*install g\+\+"):
            measure(Broken())
        compile_with(ValueError("no such kernel"))
        with pytest.raises(sp.InputError, match=r"torch\.compile fails: no such kernel") as caught:
            measure(Broken())
        assert isinstance(caught.value.__cause__, BackendCompilerFailed)


def test_an_error_of_the_models_own_stays_its_own(seen: list[dict[str, Any]]) -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        sp.measure_latency(Broken(), torch.zeros(1, 5), runtime="torch-compile")


@pytest.mark.skipif(torch.cuda.is_available(), reason="speaks of machines without CUDA")
def test_without_cuda_the_error_names_what_works() -> None:
    with pytest.raises(
        sp.InputError, match=r"'torch-compile-cuda' needs a CUDA device.*'torch-compile' works"
    ):
        measure(Broken(), runtime="torch-compile-cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_times_a_compiled_copy() -> None:
    model = Broken()
    (got,) = measure(model, runtime="torch-compile-cuda")
    assert 0 < min(got.times_ms) < 1e3
    assert next(model.parameters()).device.type == "cpu"
