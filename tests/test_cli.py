"""The command line as its users meet it: what is on which stream, what exit codes mean, what is written."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

import structprune as sp
from structprune.cli import app, main
from structprune.cli.exit_codes import ExitCode

MODELS = '''
import torch
from torch import nn

def mlp():
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))

class Literal(nn.Module):
    """A conv net whose view is written with a literal, and that prints while it runs."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 8, 3, padding=1)
        self.fc = nn.Linear(8 * 6 * 6, 3)

    def forward(self, x):
        print("noise of the model's own")
        x = self.conv2(self.conv1(x).relu()).relu()
        return self.fc(x.view(-1, 8 * 6 * 6))

class Embedder(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.up, self.down = nn.Embedding(50, 8), nn.Linear(8, 32), nn.Linear(32, 8)

    def forward(self, ids, scale):
        return self.down(self.up(self.table(ids)).relu()) * scale

class OneLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.only = nn.Linear(4, 4)

    def forward(self, x):
        return self.only(x)

class Broken(nn.Module):
    def forward(self, x):
        raise ValueError("no forward here")

instance = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 2))
number = 3

def grouped():
    layers = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 3, 1)
    return nn.Sequential(*layers)

def fails():
    raise RuntimeError("the weights are elsewhere")

def wrong():
    return [1, 2]
'''


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file of models in an otherwise empty working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models.py").write_text(MODELS)
    return "models.py"


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def document(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)  # type: ignore[no-any-return]


# -- inspect ---------------------------------------------------------------------------------------


def test_inspect_shows_groups_reasons_with_line_and_coverage(models: str) -> None:
    result = call("inspect", f"{models}:Literal", "--input", "1x1x6x6")
    assert result.exit_code == 0, result.stderr
    line = 1 + MODELS.splitlines().index("        return self.fc(x.view(-1, 8 * 6 * 6))")
    assert f"models.py:{line}" in result.stdout.replace("\n", "")
    assert "model output" in result.stdout
    assert "free groups reach" in result.stdout
    assert "fvcore:" in result.stdout


def test_inspect_json_is_clean_though_the_model_prints(models: str) -> None:
    result = call("inspect", f"{models}:Literal", "--input", "1x1x6x6", "--types", "--json")
    found = document(result)
    groups = {group["name"]: group for group in found["groups"]}
    assert groups["conv1"]["free"]
    assert groups["conv1"]["channels"] == 4
    assert (groups["conv1"]["kind"], groups["conv1"]["changes"]) == ("conv", [])
    assert not groups["conv2"]["free"]
    assert groups["conv2"]["where"].startswith("models.py:")
    assert {(m["tensor"], m["dim"], m["role"]) for m in groups["conv1"]["members"]} >= {
        ("conv1.weight", 0, "out"),
        ("conv2.weight", 1, "in"),
    }
    assert found["macs"] == found["fvcore"]["macs"] == 36 * (4 * 1 * 9 + 8 * 4 * 9) + 8 * 36 * 3
    assert found["params"] == (4 * 9 + 4) + (8 * 4 * 9 + 8) + (8 * 36 * 3 + 3)
    assert any(layer["name"] == "conv1.weight" for layer in found["types"])


def test_named_and_integer_inputs_reach_the_forward(models: str) -> None:
    result = call("inspect", f"{models}:Embedder", "-i", "ids=1x5:int64:50", "-i", "scale=1", "--json")
    assert {group["name"]: group["free"] for group in document(result)["groups"]}["up"]


# -- prune, and what is written --------------------------------------------------------------------


def test_prune_writes_a_folder_and_onnx_that_load_again(models: str) -> None:
    found = document(
        call(
            "prune",
            f"{models}:mlp",
            "-i",
            "1x6",
            "--macs",
            "0.5",
            "--out",
            "small",
            "--onnx",
            "small.onnx",
            "--json",
        )
    )
    before, after = found["before"], found["after"]
    assert before["macs"] == before["fvcore"]["macs"] == 6 * 16 + 16 * 8 + 8 * 3
    assert after["macs"] == after["fvcore"]["macs"]
    assert 0.4 * before["macs"] < after["macs"] <= 0.5 * before["macs"]
    assert found["proof"]["max_error"] <= 1e-9
    assert Path("small.onnx").stat().st_size > 0
    assert sorted(path.name for path in Path("small").iterdir()) == ["model.safetensors", "plan.json"]

    exported = document(
        call("export", f"{models}:mlp", "-i", "1x6", "--folder", "small", "-o", "again.onnx", "--json")
    )
    assert Path(exported["path"]).stat().st_size == exported["bytes"]
    inspected = document(call("inspect", f"{models}:mlp", "-i", "1x6", "--folder", "small", "--json"))
    assert inspected["macs"] == after["macs"]


def test_prune_prints_before_and_after_and_the_proof(models: str) -> None:
    result = call("prune", f"{models}:mlp", "-i", "1x6", "--channels", "0.5")
    assert result.exit_code == 0, result.stderr
    for word in ("params", "MACs by fvcore", "weights", "peak activations", "before", "after", "proven"):
        assert word in result.stdout
    assert not list(Path().glob("*.json"))


def test_rewritten_a_literal_is_no_obstacle_and_the_folder_loads_again(models: str) -> None:
    model = (f"{models}:Literal", "--input", "1x1x6x6")
    left = document(call("prune", *model, "--channels", "0.5", "--out", "left", "--json"))
    small = document(call("prune", *model, "--channels", "0.5", "--out", "small", "--rewrite", "--json"))
    assert "conv2" not in left["widths"]
    assert small["widths"]["conv2"] == [8, 4]
    exported = document(
        call("export", *model, "--folder", "small", "--rewrite", "--out", "small.onnx", "--json")
    )
    assert Path(exported["path"]).is_file()
    further = call("prune", *model, "--folder", "small", "--rewrite", "--channels", "0.25", "--json")
    assert document(further)["widths"]["conv2"] == [4, 2]


def test_seed_makes_two_runs_equal_and_another_seed_differs(models: str) -> None:
    def weights(seed: str, folder: str) -> list[list[float]]:
        arguments = ("--params", "0.5", "--seed", seed, "--out", folder, "--json")
        document(call("prune", f"{models}:mlp", "-i", "1x6", *arguments))
        return load_file(Path(folder) / "model.safetensors")["0.weight"].tolist()  # type: ignore[no-any-return]

    assert weights("1", "a") == weights("1", "b")
    assert weights("1", "a") != weights("2", "c")


def test_keep_leaves_a_layer_whole(models: str) -> None:
    call("prune", f"{models}:mlp", "-i", "1x6", "--macs", "0.7", "--keep", "0", "--out", "kept")
    torch.manual_seed(0)
    small = sp.load("kept", lambda: torch.nn.Sequential(*_mlp_layers()))
    assert small.get_submodule("0").weight.shape == (16, 6)


def _mlp_layers() -> list[torch.nn.Module]:
    sizes = ((6, 16), (16, 8), (8, 3))
    layers = [layer for size in sizes for layer in (torch.nn.Linear(*size), torch.nn.ReLU())]
    return layers[:-1]


def test_a_saved_network_is_cut_further_to_a_share_of_the_original(models: str) -> None:
    def cut(macs: str, *more: str) -> dict[str, Any]:
        return document(call("prune", f"{models}:mlp", "-i", "1x6", "--macs", macs, "--json", *more))

    first = cut("0.8", "--out", "once")
    second = cut("0.4", "--folder", "once", "--out", "twice")
    assert second["before"] == first["before"]
    assert 0.3 * first["before"]["macs"] < second["after"]["macs"] <= 0.4 * first["before"]["macs"]
    inspected = document(call("inspect", f"{models}:mlp", "-i", "1x6", "--folder", "twice", "--json"))
    assert inspected["macs"] == second["after"]["macs"]


def test_weights_on_disk_are_planned_and_cut_without_the_network(models: str) -> None:
    torch.manual_seed(7)
    trained = torch.nn.Sequential(*_mlp_layers())
    save_file(trained.state_dict(), "trained.safetensors")
    arguments = ("--params", "0.5", "--weights", "trained.safetensors", "--out", "plan.json", "--json")
    planned = document(call("plan", f"{models}:mlp", "-i", "1x6", *arguments))
    expected = sp.prune(trained, torch.zeros(1, 6), sp.Budget(params=0.5))
    assert planned["widths"] == {group.name: [group.size, len(group.keep)] for group in expected.plan.groups}
    assert planned["remaining"]["params"] <= 0.5
    for more in ((), ("--model", f"{models}:mlp")):
        target = f"small{len(more)}"
        found = document(call("apply", "plan.json", "trained.safetensors", target, *more, "--json"))
        assert (found["tensors"], found["cut"], found["left_out"]) == (6, 5, [])
        small = sp.load(target, lambda: torch.nn.Sequential(*_mlp_layers()))
        assert all(map(torch.equal, small.state_dict().values(), expected.model.state_dict().values()))
    again = call("apply", "plan.json", "trained.safetensors", "small0")
    assert again.exit_code == ExitCode.STORAGE
    assert "small0 exists" in again.stderr.replace("\n", " ")


def test_a_plan_by_magnitude_needs_the_weights(models: str) -> None:
    result = call("plan", f"{models}:mlp", "-i", "1x6", "--params", "0.5", "--out", "plan.json")
    assert result.exit_code == ExitCode.USAGE
    assert "without values" in result.stderr
    assert not Path("plan.json").exists()
    by_chance = call(
        "plan", f"{models}:mlp", "-i", "1x6", "--params", "0.5", "--criterion", "random", "-o", "plan.json"
    )
    assert by_chance.exit_code == 0, by_chance.stderr
    assert call("apply", "absent.json", "a", "b").exit_code == ExitCode.USAGE


def test_a_criterion_is_worked_out_on_data(models: str) -> None:
    Path("feed.py").write_text(FEED)
    asked = ("prune", f"{models}:mlp", "-i", "1x6", "--channels", "0.5", "--criterion", "taylor")
    found = document(call(*asked, "--data", "feed.py:batches", "--json"))
    assert found["criterion"] == "taylor"
    assert found["proof"] is not None
    own = document(call(*asked, "--data", "feed.py:once", "--loss", "feed.py:loss", "--json"))
    assert own["widths"] == found["widths"]
    for more, said in (
        ((), "give data="),
        (("--data", "feed.py:absent"), "--data 'feed.py:absent'"),
        (("--data", "feed.py:number"), "expected an iterable"),
        (("--data", "feed.py:broken"), "feed.py:broken() failed at feed.py"),
        (("--data", "feed.py:batches", "--loss", "feed.py:number"), "expected a function"),
    ):
        result = call(*asked, *more)
        assert result.exit_code == ExitCode.USAGE
        assert said in " ".join(result.stderr.split())


def test_what_is_left_is_refitted_on_calibration_data(models: str) -> None:
    Path("feed.py").write_text(FEED)
    asked = ("prune", f"{models}:mlp", "-i", "1x6", "--channels", "0.5")
    assert document(call(*asked, "--json"))["refit"] is None
    cut, *steps = document(call(*asked, "--calibration", "feed.py:batches", "--json"))["refit"]["steps"]
    assert cut["step"] == "cut"
    assert steps[-1]["error"] < cut["error"]
    missing = call(*asked, "--calibration", "feed.py:absent")
    assert missing.exit_code == ExitCode.USAGE
    assert "--calibration 'feed.py:absent'" in " ".join(missing.stderr.split())


FEED = """
import torch

once = [(torch.randn(5, 6), torch.randint(0, 3, (5,)))]
number = 3

def batches():
    yield from once

def loss(output, target):
    return output.square().mean()

def broken():
    raise OSError("no such disk")
"""


def test_sparsify_writes_zeros_at_full_size(models: str) -> None:
    arguments = ("--sparsity", "0.75", "--out", "sparse", "--onnx", "sparse.onnx", "--json")
    found = document(call("sparsify", f"{models}:mlp", "-i", "1x6", *arguments))
    weights, biases = 6 * 16 + 16 * 8 + 8 * 3, 16 + 8 + 3
    assert found["before"]["params"] == found["after"]["params"] == weights + biases
    assert found["after"]["nonzero"] == weights // 4 + biases
    assert Path("sparse.onnx").is_file()
    saved = load_file("sparse/model.safetensors")
    assert sum(int(tensor.count_nonzero()) for tensor in saved.values()) == weights // 4 + biases


def test_bench_times_the_original_twice_beside_the_pruned(models: str) -> None:
    call("prune", f"{models}:mlp", "-i", "1x6", "--macs", "0.5", "--out", "small")
    found = document(
        call(
            "bench", f"{models}:mlp", "-i", "1x6", "--folder", "small", "--runtime", "torch", "--batch", "1",
            "--batch", "3", "--dtype", "float64", "--repeats", "5", "--times", "--json",
        )
    )  # fmt: skip
    assert {row["dtype"] for row in found["measurements"]} == {"float64"}
    rows = [(row["network"], row["batch"]) for row in found["measurements"]]
    assert rows == [(name, batch) for batch in (1, 3) for name in ("original", "original again", "small")]
    assert all(row["median_ms"] > 0 and len(row["times_ms"]) >= 5 for row in found["measurements"])
    assert found["environment"]["torch"] == torch.__version__


def test_bench_has_a_table_for_each_setting_with_shares_of_its_own_original(models: str) -> None:
    for folder, share in (("a", "0.5"), ("b", "0.25")):
        call("prune", f"{models}:mlp", "-i", "1x6", "--channels", share, "--out", folder)
    asked = ("bench", f"{models}:mlp", "-i", "1x6", "--folder", "a", "--folder", "b", "--runtime", "torch")
    shown = call(*asked, "--batch", "1", "--batch", "3", "--repeats", "3")
    assert shown.exit_code == 0, shown.output
    lines = shown.stdout.splitlines()
    captions = [line for line in lines if "share of the median of 'original', in the same rounds" in line]
    assert [line.split(":")[0] for line in captions] == [
        "torch, 1 thread, batch 1",
        "torch, 1 thread, batch 3",
    ]
    rows = [line.split()[0] for line in lines if line.split()[:1] in (["original"], ["a"], ["b"])]
    assert rows == ["original", "original", "a", "b"] * 2
    found = document(call(*asked, "--repeats", "3", "--json"))["measurements"]
    assert all("times_ms" not in row and row["rounds"] >= 3 for row in found)
    assert ["to_original" in row for row in found] == [False, True, True, True]
    twice = call(*asked, "--folder", "a")
    assert twice.exit_code == ExitCode.USAGE
    assert "a row of this name" in twice.stderr.replace("\n", " ")


# -- options that would do nothing ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "idle", "needs"),
    [
        (["prune", "--macs", "0.5", "--threads", "2"], "--threads", "--latency"),
        (
            ["prune", "--macs", "0.5", "--runtime", "onnxruntime"],
            "--runtime",
            "--latency",
        ),  # the default, but asked for
        (["prune", "--macs", "0.5", "--layers", "--batch", "2"], "--batch and --layers", "--throughput"),
        (["prune", "--macs", "0.5", "--data", "models.py:mlp"], "--data", "--criterion"),
        (["prune", "--macs", "0.5", "--criterion", "wanda", "--threads", "1"], "--threads", "--latency"),
        (["sweep", "--threads", "2"], "--threads", "--measure"),
        (["sweep", "--provider-option", "a.b=1"], "--provider-option", "--runtime"),
        (["staircase", "--measurements", "9"], "--measurements", "--group"),
        (["staircase", "--plot", "a.svg"], "--plot", "--top 3"),
        (["staircase", "--group", "0", "--top", "3"], "--top", "no --group"),
        (["bench", "--rewrite"], "--rewrite", "--folder"),
        (["bench", "--times"], "--times", "--json"),
        (["sparsify", "--threshold", "0.1", "--scope", "global"], "--scope", "--sparsity"),
        (
            ["plan", *["-o", "p.json", "--macs", "0.5", "--criterion", "random", "--weights", "w"]],
            "--weights",
            "l2",
        ),
        (["prune", *["--macs", "0.5", "--criterion", "wanda", "--loss", "a.py:b"]], "--loss", "taylor"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_option_without_effect_is_refused(
    models: str, arguments: list[str], idle: str, needs: str
) -> None:
    command, *more = arguments
    result = call(command, f"{models}:mlp", "-i", "1x6", *more)
    assert result.exit_code == ExitCode.USAGE, result.output
    said = " ".join(result.stderr.split())
    assert f"{idle} would have no effect" in said
    assert needs in said


def test_no_busiest_group_is_none_to_ask_for(models: str) -> None:
    result = call("staircase", f"{models}:mlp", "-i", "1x6", "--top", "0")
    assert result.exit_code == ExitCode.USAGE
    assert "--top" in result.stderr


def test_without_rows_of_their_own_all_heads_keep_the_same(models: str) -> None:
    def rows(*more: str) -> set[int]:
        asked = ("prune", f"{models}:grouped", "-i", "1x2x4x4", "--channels", "0.5", "--out", "g", "--json")
        assert document(call(*asked, *more))["proof"] is not None
        (plan,) = sp.load_plans("g")
        return {len(set(group.keep)) for group in plan.groups if isinstance(group.keep[0], tuple)}

    assert rows() == {2}
    assert rows("--no-ragged") <= {1}


def test_a_latency_in_json_is_figures_without_the_time_of_every_round(
    models: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("STRUCTPRUNE_CACHE", str(tmp_path / "cache"))
    asked = ("prune", f"{models}:mlp", "-i", "1x6", "--latency", "1.0", "--runtime", "torch", "--no-verify")
    result = call(*asked, "--json")
    latency = document(result)["latency"]
    for name in ("dense", "pruned"):
        assert latency[name]["rounds"] >= 40
        assert (
            latency[name]["interval_ms"][0] <= latency[name]["median_ms"] <= latency[name]["interval_ms"][1]
        )
        assert latency[name]["environment"]["torch"] == torch.__version__
        assert "times_ms" not in latency[name]
    assert len(result.stdout) < 20_000


# -- exit codes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "no_such_module:net", "-i", "1x6"], "no module named 'no_such_module'"),
        (["inspect", "models.py:nothing", "-i", "1x6"], "has no 'nothing'"),
        (["inspect", "models.py:ml", "-i", "1x6"], "did you mean mlp"),
        (["inspect", "models.py", "-i", "1x6"], "package.module:factory"),
        (["inspect", "absent.py:net", "-i", "1x6"], "no file 'absent.py'"),
        (["inspect", "models.py:number", "-i", "1x6"], "got int"),
        (["inspect", "models.py:wrong", "-i", "1x6"], "returned list"),
        (["inspect", "models.py:fails", "-i", "1x6"], "the weights are elsewhere"),
        (["inspect", "models.py:mlp", "-i", "six"], "'six'"),
        (["inspect", "models.py:mlp"], "--input"),
        (["prune", "models.py:mlp", "-i", "1x6"], "at least one"),
        (
            ["prune", "models.py:mlp", "-i", "1x6", "--latency", "0.5", "--throughput", "9"],
            "Budget takes one of",
        ),
        (["prune", "models.py:mlp", "-i", "1x6", "--macs", "1.5"], "1.5"),
        (["prune", "models.py:mlp", "-i", "1x6", "--macs", "0.5", "--criterion", "nonsense"], "nonsense"),
        (["prune", "models.py:mlp", "-i", "1x6", "--macs", "0.5", "--scope", "nonsense"], "nonsense"),
        (["prune", "models.py:mlp", "-i", "1x6", "--macs", "0.5", "--keep", "nonsense"], "nonsense"),
        (["sparsify", "models.py:mlp", "-i", "1x6"], "exactly one"),
        (["sparsify", "models.py:mlp", "-i", "1x6", "--sparsity", "1.0"], "1.0"),
        (["bench", "models.py:mlp", "-i", "1x6", "--runtime", "abacus"], "abacus"),
        (["bench", "models.py:mlp", "-i", "1x6", "--dtype", "int8"], "int8"),
        (["bench", "models.py:mlp", "-i", "1x6", "--provider-option", "a"], "KEY=VALUE"),
        (["prune", "models.py:mlp", "-i", "1x6", "--latency", "0.5", "--threads", "0"], "threads=0"),
        (
            ["prune", "models.py:mlp", "-i", "1x6", "--latency", "0.5", "--provider-option", "a=1"],
            "no options",
        ),
        (["prune", "models.py:mlp", "-i", "1x6", "--macs", "0.5", "--out", "models.py"], "is a file"),
        (["prune", "models.py:mlp", "-i", "1x6", "--macs", "0.5", "--onnx", "models.py/x.onnx"], "is a file"),
        (["sparsify", "models.py:mlp", "-i", "1x6", "--sparsity", "0.5", "--out", "models.py"], "is a file"),
        (["export", "models.py:mlp", "-i", "1x6", "--out", "."], "name the file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
@pytest.mark.usefixtures("models")
def test_what_is_not_as_needed_is_exit_code_2_with_one_message(arguments: list[str], message: str) -> None:
    result = call(*arguments)
    assert result.exit_code == ExitCode.USAGE
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert not result.stdout


def test_a_forward_that_fails_is_exit_code_3(models: str) -> None:
    result = call("inspect", f"{models}:Broken", "-i", "1x6")
    assert result.exit_code == ExitCode.TRACE
    assert "no forward here" in result.stderr


def test_a_budget_out_of_reach_is_exit_code_4_with_the_range(models: str) -> None:
    result = call("prune", f"{models}:mlp", "-i", "1x6", "--macs", "0.001", "--out", "small", "--json")
    assert result.exit_code == ExitCode.BUDGET
    assert json.loads(result.stdout)["error"]["exit_code"] == 4
    assert not Path("small").exists()


def test_a_network_with_nothing_to_cut_is_exit_code_4(models: str) -> None:
    result = call("prune", f"{models}:OneLayer", "-i", "1x4", "--macs", "0.5")
    assert result.exit_code == ExitCode.BUDGET
    assert "model output" in result.stderr


def test_a_failed_proof_is_exit_code_5_and_writes_nothing(
    models: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise sp.VerificationError("layer '2' differs")

    monkeypatch.setattr(sp, "prune", fails)
    result = call(
        "prune", f"{models}:mlp", "-i", "1x6", "--macs", "0.5", "--out", "small", "--onnx", "small.onnx"
    )
    assert result.exit_code == ExitCode.VERIFICATION
    assert "layer '2' differs" in result.stderr
    assert not Path("small").exists()
    assert not Path("small.onnx").exists()


def test_an_export_that_fails_is_exit_code_6_and_leaves_no_file(
    models: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise sp.ExportError("output 0 differs")

    monkeypatch.setattr(sp, "export_onnx", fails)
    result = call("export", f"{models}:mlp", "-i", "1x6", "-o", "x.onnx")
    assert result.exit_code == ExitCode.EXPORT
    assert not Path("x.onnx").exists()


def test_a_damaged_folder_is_exit_code_7(models: str) -> None:
    call("prune", f"{models}:mlp", "-i", "1x6", "--macs", "0.5", "--out", "small")
    weights = Path("small/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-40])
    result = call("inspect", f"{models}:mlp", "-i", "1x6", "--folder", "small")
    assert result.exit_code == ExitCode.STORAGE
    assert "Traceback" not in result.output


def test_a_folder_of_another_model_is_exit_code_7(models: str) -> None:
    call("prune", f"{models}:mlp", "-i", "1x6", "--macs", "0.5", "--out", "small")
    assert (
        call("inspect", f"{models}:instance", "-i", "1x2", "--folder", "small").exit_code == ExitCode.STORAGE
    )


@pytest.mark.parametrize("debug", [False, True])
def test_an_internal_error_is_exit_code_1_with_a_traceback_only_on_request(
    models: str, debug: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a slip")

    monkeypatch.setattr(sp, "trace", fails)
    result = call("inspect", f"{models}:mlp", "-i", "1x6", *(["--debug"] if debug else []))
    assert result.exit_code == ExitCode.INTERNAL
    assert "ZeroDivisionError: a slip" in result.stderr
    assert ("Traceback" in result.stderr) == debug


def test_ctrl_c_is_exit_code_130(models: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sp, "trace", interrupted)
    result = call("inspect", f"{models}:mlp", "-i", "1x6")
    assert result.exit_code == ExitCode.INTERRUPTED
    assert "Traceback" not in result.output


# -- as a process ----------------------------------------------------------------------------------


def test_the_installed_program_speaks_json_on_stdout_and_nothing_else(models: str) -> None:
    command = [
        sys.executable,
        "-m",
        "structprune.cli",
        "inspect",
        "models:Literal",
        "-i",
        "1x1x6x6",
        "--json",
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(sp.__file__).parent.parent)}
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=environment,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model"] == "models:Literal"
    assert "noise of the model's own" in done.stderr


def test_a_line_that_cannot_be_parsed_is_a_document_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["structprune", "prune", "models:mlp", "--macs", "half", "--json"])
    stdout = io.StringIO()
    with contextlib.redirect_stdout(stdout), pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == ExitCode.USAGE
    error = json.loads(stdout.getvalue())["error"]
    assert error["exit_code"] == ExitCode.USAGE
    assert "--macs" in error["message"]


def test_help_names_the_commands_and_the_exit_codes() -> None:
    result = call("--help")
    for word in ("demo", "inspect", "prune", "plan", "apply", "bench", "export", "Exit codes"):
        assert word in result.stdout
