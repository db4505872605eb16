"""Subnormal weights: counted whatever the thread does with them, never timed, never exported, else left alone."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import structprune as sp
from structprune.runtimes import register_runtime, registry
from structprune.runtimes.onnx_convert import convert
from structprune.subnormals import count_subnormals, without_subnormals

TINY = 1e-40
X = torch.randn(2, 4)
SEEN: list[nn.Module] = []


@pytest.fixture(autouse=True)
def spy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_FACTORIES", dict(registry._FACTORIES))
    SEEN.clear()

    @register_runtime("spy")
    @contextmanager
    def factory(model: nn.Module, args: Any, kwargs: Mapping[str, Any], runtime: sp.Runtime) -> Iterator[Any]:
        SEEN.append(model)
        yield lambda: 1.0


def net() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    with torch.no_grad():
        model[0].weight[0, :3] = torch.tensor([TINY, -TINY, 0.0])
    return model


def smallest(dtype: torch.dtype) -> float:
    return float(torch.finfo(dtype).smallest_normal)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_lies_between_zero_and_the_smallest_normal_number_is_flushed(dtype: torch.dtype) -> None:
    normal = smallest(dtype)
    values = torch.tensor([normal, -normal, 0.0, -0.0, 1.0, -2.0, float("inf"), float("nan")], dtype=dtype)
    below = torch.tensor([normal, -normal, normal / 64, -normal / 64], dtype=dtype) / 2
    model = nn.ParameterList([nn.Parameter(torch.cat([values, below]).view(3, 4).T)])
    assert count_subnormals(model) == 4
    before = model[0].detach().clone()
    assert sp.flush_subnormals(model) == 4
    assert count_subnormals(model) == sp.flush_subnormals(model) == 0
    flat, kept = model[0].detach().T.reshape(-1), before.T.reshape(-1)
    assert torch.equal(flat[:7], kept[:7])
    assert flat[7].isnan()
    assert torch.equal(flat[8:], torch.zeros(4, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float8_e4m3fn])
def test_small_numbers_of_narrow_formats_are_ordinary(dtype: torch.dtype) -> None:
    model = nn.Module()
    model.register_buffer("scale", torch.tensor([2.0**-9]).to(dtype))
    assert float(model.scale.float()) > 0
    assert count_subnormals(model) == sp.flush_subnormals(model) == 0


def test_a_thread_that_cannot_see_them_counts_them_all_the_same() -> None:
    model = net()
    torch.set_flush_denormal(True)
    try:
        assert count_subnormals(model) == 2
        assert sp.flush_subnormals(model) == 2
    finally:
        torch.set_flush_denormal(False)
    assert model[0].weight.view(torch.int32)[0, :3].tolist() == [0, 0, 0]


def test_everything_that_holds_numbers_is_looked_at_once() -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([TINY, 1.0]))
            self.tied = self.weight
            self.register_buffer("hidden", torch.tensor([TINY]), persistent=False)
            self.register_buffer("turns", torch.tensor([complex(1.0, TINY), complex(TINY, TINY)]))
            self.register_buffer("whole", torch.tensor([1, 2]))
            self.register_buffer("coo", torch.tensor([[0.0, TINY]]).to_sparse())
            self.register_buffer("csr", torch.tensor([[0.0, TINY]]).to_sparse_csr())
            self.table = [torch.tensor(TINY)]
            self.meta = nn.Parameter(torch.empty(3, device="meta"))

    model = Holder()
    assert count_subnormals(model) == 1 + 1 + 3 + 1 + 1 + 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sp.flush_subnormals(model) == 8
    assert count_subnormals(model) == 0
    assert model.table[0].item() == 0


def test_weights_made_in_inference_mode_are_flushed_too() -> None:
    with torch.inference_mode():
        model = net()
    assert sp.flush_subnormals(model) == 2


def test_a_flush_leaves_gradients_and_requirements_alone() -> None:
    model = net()
    model(X).sum().backward()
    gradient = model[0].weight.grad
    sp.flush_subnormals(model)
    assert model[0].weight.grad is gradient
    assert model[0].weight.requires_grad


def test_no_number_is_taken_with_them_and_the_model_keeps_them() -> None:
    model, clean = net(), nn.Linear(4, 3)
    bits = model[0].weight.detach().view(torch.int32).clone()
    with pytest.warns(UserWarning, match=r"2 weights of Sequential.*structprune\.flush_subnormals\(model\)"):
        dirty, fine = sp.measure_latency((model, clean), X, runtime="spy", repeats=6, min_time=0.0)
    assert (dirty.subnormal_weights, fine.subnormal_weights) == (2, 0)
    assert dirty.to_dict()["subnormal_weights"] == 2
    assert "2 subnormal weights timed as zero" in str(dirty)
    assert [count_subnormals(seen) for seen in SEEN] == [0, 0]
    assert SEEN[0] is not model
    assert SEEN[1] is clean
    assert torch.equal(model[0].weight.detach().view(torch.int32), bits)


def test_those_that_a_conversion_makes_are_not_timed_either() -> None:
    model = nn.Linear(4, 3).double()
    nn.init.constant_(model.weight, TINY)
    on = sp.Runtime("spy", dtype="float32")
    with pytest.warns(UserWarning, match="12 weights of Linear"):
        got = sp.measure_latency(model, X.double(), runtime=on, repeats=1, min_time=0.0)
    assert got.subnormal_weights == 12
    assert count_subnormals(SEEN[0]) == 0
    assert count_subnormals(model) == 0


def test_a_model_that_cannot_be_copied_is_told_what_to_do() -> None:
    class Locked(nn.Linear):
        def __deepcopy__(self, memo: Any) -> Locked:
            raise TypeError("cannot pickle a lock")

    model = Locked(4, 3)
    nn.init.constant_(model.weight, TINY)
    with pytest.raises(sp.InputError, match=r"cannot pickle a lock.*flush_subnormals\(model\) first"):
        sp.measure_latency(model, X, runtime="spy")


class Emptied(nn.Module):
    """Its norms scale half of the channels by next to nothing: folded, they leave subnormal weights and biases."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.head, self.last = nn.Linear(8, 8), nn.BatchNorm1d(8)
        with torch.no_grad():
            self.norm.weight[:4] = 1e-37
            self.norm.running_var[4] = 1e37
            self.norm.weight[4] = 1e-20
            self.last.weight[:4] = 1e-37

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).relu().mean((2, 3))
        out: Tensor = self.last(self.head(x))
        return out


def test_those_that_folding_a_norm_makes_are_told_of_where_they_are_timed() -> None:
    with pytest.warns(UserWarning, match=r"folding the norms of Emptied makes \d+ of its weights subnormal"):
        got = sp.measure_latency(Emptied(), torch.randn(2, 3, 8, 8), repeats=1, min_time=0.0)
    assert got.subnormal_weights == 0  # the module itself has none


def subnormals_in(path: Path) -> int:
    arrays = [onnx.numpy_helper.to_array(one) for one in onnx.load(path).graph.initializer]
    return sum(without_subnormals(array)[1] for array in arrays)


def test_those_that_folding_a_norm_makes_are_zero_in_the_file(tmp_path: Path) -> None:
    model = Emptied().eval()
    assert count_subnormals(model) == 0
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = sp.export_onnx(model, torch.randn(2, 3, 8, 8), tmp_path / "model.onnx")
    assert report.subnormal_weights > 50
    assert f"{report.subnormal_weights} subnormal weights written as zero" in str(report)
    assert subnormals_in(tmp_path / "model.onnx") == 0
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


def test_a_conversion_leaves_the_modules_own_tensors() -> None:
    model = net()
    converted = convert(model, (X,), {})
    assert converted.subnormal_weights == 2
    assert count_subnormals(model) == 2


def test_a_cut_keeps_weights_bit_for_bit_and_the_report_counts_them() -> None:
    model = net()
    result = sp.prune(model, X, sp.Budget(channels=1.0))
    assert torch.equal(result.model[0].weight.view(torch.int32), model[0].weight.view(torch.int32))
    assert result.report.subnormal_weights == 2
    assert "2 weights are subnormal" in str(result.report)
    assert (
        sp.prune(
            nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2)), X, sp.Budget(channels=1.0)
        ).report.subnormal_weights
        == 0
    )


def test_arrays_of_other_formats_and_without_subnormals_are_handed_back() -> None:
    for array in (
        np.ones(3, np.float32),
        np.zeros((0,), np.float64),
        np.arange(3),
        np.full(2, 1e-7, np.float16),
    ):
        assert without_subnormals(array)[0] is array
    strided = np.array([[1.0, TINY], [TINY, 2.0]], np.float32).T
    array, count = without_subnormals(strided)
    assert count == 2
    assert array.tolist() == [[1.0, 0.0], [0.0, 2.0]]
