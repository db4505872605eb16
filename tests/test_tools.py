"""The scripts around the library: the export tool, and benchmarks on networks of seconds."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import structprune as sp
from benchmarks import coverage, full_size, streaming
from benchmarks.coverage_worker import judged
from benchmarks.environment import environment
from structprune.plan import GroupPlan, PruningPlan
from structprune.surgery import apply_plan
from structprune.tensors import fingerprint

ROOT = Path(__file__).parents[1]
FACTORY = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))

number = 3

def text():
    return "no module"
"""


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"factories_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(tmp_path)
    return name


@pytest.fixture
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("export_onnx_tool", ROOT / "tools" / "export_onnx.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def small_net(name: str) -> nn.Module:
    net: nn.Module = importlib.import_module(name).net()
    return net


def computed(path: Path, x: torch.Tensor) -> np.ndarray:
    (got,) = onnxruntime.InferenceSession(str(path)).run(None, {"input": x.numpy()})
    return np.asarray(got)


def test_the_tool_exports_a_factory(tmp_path: Path, tool: ModuleType, factories: str) -> None:
    out = tmp_path / "new" / "net.onnx"
    assert tool.main([f"{factories}:net", "--input", "1x4", "--out", str(out), "--opset", "18"]) == 0
    x = torch.randn(5, 4)
    want = small_net(factories)(x).detach().numpy()
    np.testing.assert_allclose(computed(out, x), want, rtol=1e-4, atol=1e-5)
    assert onnx.load(out).opset_import[0].version == 18


def test_the_tool_exports_a_saved_folder(tmp_path: Path, tool: ModuleType, factories: str) -> None:
    model = small_net(factories)
    kept = (0, 2, 5)
    plan = PruningPlan(
        fingerprint=fingerprint(model),
        groups=(GroupPlan("0", 6, kept),),
        tensors={"0.weight": {0: kept}, "0.bias": {0: kept}, "2.weight": {1: kept}},
        shapes={"0.weight": (6, 4), "0.bias": (6,), "2.weight": (3, 6)},
        attributes=(),
        criterion="l2",
    )
    small = apply_plan(model, plan)
    sp.save(tmp_path / "saved", small, plan)
    out = tmp_path / "small.onnx"
    options = ["--input", "2x4", "--out", str(out), "--folder", str(tmp_path / "saved"), "--fixed-batch"]
    assert tool.main([f"{factories}:net", *options]) == 0
    x = torch.randn(2, 4)
    np.testing.assert_allclose(computed(out, x), small(x).detach().numpy(), rtol=1e-4, atol=1e-5)
    found = {entry.key: entry.value for entry in onnx.load(out).metadata_props}
    assert found["structprune.fingerprint"] == fingerprint(model)
    assert found["structprune.criterion"] == "l2"


@pytest.mark.parametrize(
    ("model", "spec", "message"),
    [
        ("no_such_module:net", "1x4", "package.module:factory"),
        ("FACTORIES:absent", "1x4", "package.module:factory"),
        ("FACTORIES", "1x4", "package.module:factory"),
        ("FACTORIES:number", "1x4", "is a int"),
        ("FACTORIES:text", "1x4", "no torch module"),
        ("FACTORIES:net", "1xfour", "1xfour"),
        ("FACTORIES:net", "1x5", "Sequential"),
    ],
)
def test_the_tool_says_what_is_wrong_and_leaves_no_file(
    tmp_path: Path,
    tool: ModuleType,
    factories: str,
    capsys: pytest.CaptureFixture[str],
    model: str,
    spec: str,
    message: str,
) -> None:
    out = tmp_path / "net.onnx"
    assert tool.main([model.replace("FACTORIES", factories), "--input", spec, "--out", str(out)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert not out.exists()


def test_the_tool_runs_as_a_script_and_finds_models_in_the_callers_folder(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(FACTORY)
    command = [
        sys.executable,
        str(ROOT / "tools" / "export_onnx.py"),
        "mine:net",
        "--input",
        "1x4",
        "--out",
        "m.onnx",
    ]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, env=_environment_with_package()
    )
    assert done.returncode == 0, done.stderr
    assert "m.onnx" in done.stdout
    assert done.stderr == ""
    assert (tmp_path / "m.onnx").is_file()


def _environment_with_package() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def test_the_environment_is_plain_data() -> None:
    found = json.loads(json.dumps(environment(3)))
    assert found["threads"]["inference"] == 3
    assert found["packages"]["torch"] == torch.__version__
    assert found["cores"] >= 1


def test_a_network_of_full_size_is_priced_as_it_is_counted() -> None:
    """860 million parameters, never in memory; `measure` compares prices with what is there after a cut."""
    row = full_size.measure("sd-unet", threads=1)
    assert row["params"] == 859_520_964
    assert 0.49 * row["params"] < row["at_half_params"]["params"] <= 0.5 * row["params"]
    assert row["at_half_macs"]["macs"] < row["at_half_params"]["macs"]


def test_the_streaming_benchmark_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        streaming.SHAPES,
        "llama-3.2-1b",
        {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 4},
    )
    monkeypatch.setattr(streaming, "_alone", lambda threads, function, *arguments: function(*arguments))
    out = tmp_path / "streaming.json"
    assert (
        streaming.main(["--folder", str(tmp_path / "weights"), "--shard-gb", "0.001", "--out", str(out)]) == 0
    )
    steps = json.loads(out.read_text())["steps"]
    assert 0.49 < steps["cut"]["bytes_after"] / steps["cut"]["bytes_before"] <= 0.51
    assert [path.name for path in (tmp_path / "weights").iterdir()] == ["llama-3.2-1b-plan.json"]


@pytest.mark.parametrize(("name", "other"), [("mpnet", "exact"), ("bert", "wrong")])
def test_the_coverage_benchmark_judges_both_tools_alike(name: str, other: str) -> None:
    """One oracle over both; torch-pruning cuts heads of bert in two, which only the values show."""
    case = next(case for case in coverage.cases() if case.name == name)
    ours, theirs = (judged(case, tool) for tool in coverage.TOOLS)
    assert (ours["status"], theirs["status"]) == ("exact", other)
    assert ours["removed"] > 0.5
    assert ours["error"] < 1e-9
    assert ours["seconds"] > 0


def test_the_coverage_benchmark_has_the_families_that_people_use() -> None:
    families = {case.family for case in coverage.cases()}
    assert len(coverage.cases()) >= 60
    assert {"text encoder", "detection", "segmentation", "state space", "mixture of experts"} <= families
