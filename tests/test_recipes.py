"""Recipes: what is refused and where, what each step does, and that a run goes on wherever it was stopped."""

from __future__ import annotations

import contextlib
import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import structprune as sp
from structprune.archive import read_archive, write_archive
from structprune.cli import app
from structprune.cli.exit_codes import ExitCode
from structprune.recipes.cuts import Prune, PruneGradually
from structprune.recipes.folder import RunFolder
from structprune.recipes.lines import MetricLines
from structprune.recipes.steps import Train
from structprune.train import GradualRun
from structprune.train.options import TrainOptions
from tests.toy_runtime import WASTE, kernels, mlp

MODULE = """
import os
import torch
from torch import nn
from torch.utils.data import TensorDataset

def small():
    return nn.Sequential(
        nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)
    )

def wide():
    return nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 3))

class Stops(TensorDataset):
    "Is interrupted, as by Ctrl-C, at the first batch that is asked for while a file named stop is there."
    def __getitem__(self, index):
        if index and os.path.exists("stop"):
            os.remove("stop")
            raise KeyboardInterrupt
        return super().__getitem__(index)

def points():
    inputs = torch.randn(96, 6, generator=torch.Generator().manual_seed(1))
    labels = inputs[:, :3].argmax(1)
    return Stops(inputs[:64], labels[:64]), TensorDataset(inputs[64:], labels[64:])

def nothing():
    return 3

def fails():
    raise OSError("gone")

def others():
    return [TensorDataset(torch.zeros(9, 7), torch.zeros(9).long())] * 2

def floats():
    return [TensorDataset(torch.zeros(9, 6), torch.zeros(9))] * 2

def singles():
    return [TensorDataset(torch.zeros(9, 6))] * 2
"""

FAILING = """
class Late(TensorDataset):
    def __getitem__(self, index):
        if index == 50:
            raise KeyError("no fifty")
        return super().__getitem__(index)

def late():
    return [Late(torch.zeros(64, 6), torch.zeros(64).long())] * 2

def same(model):
    return model
"""

RULE = """
import structprune

@torch.library.custom_op("recipes::nothing", mutates_args=())
def nothing_at_all(x: torch.Tensor) -> torch.Tensor:
    return x.clone()

@structprune.rule("recipes::nothing")
def nothing_rule(call):
    call.freeze_all("nothing")
"""

OWN = """
def rms(model):
    return torch.optim.RMSprop(model.parameters(), lr=0.01)

def halves(optimizer, steps):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 ** (3 * step // steps))

def squared(output, target):
    return (output.softmax(1) - nn.functional.one_hot(target, 3)).square().mean()

def error(model, data):
    with torch.no_grad():
        model.eval()
        return float(torch.stack([squared(model(x[None]), y[None]) for x, y in data]).mean())

def last(group):
    return torch.arange(group.size)
"""

RECIPE = """\
version: 1
model: nets.py:small
input: 2x6
data: nets.py:points
steps:
  - {step: train, epochs: 2, lr: 0.05, batch_size: 16}
  - step: prune
    budget: {macs: 0.6}
    criterion: taylor
    data: {batches: 2, batch_size: 16}
    calibration: {share: 0.5}
  - {step: finetune, epochs: 2, lr: 1e-2, optimizer: adamw}
  - {step: sparsify, sparsity: 0.5}
  - {step: finetune, epochs: 1, lr: 0.01}
  - {step: prune, budget: {macs: 0.35}, calibration: {share: 1.0}}
  - {step: finetune, epochs: 1, lr: 0.01}
  - {step: evaluate}
"""

TAUGHT = (
    RECIPE[: RECIPE.index("steps:")]
    + """\
validation: 0.4
steps:
  - {step: train, epochs: 3, lr: 0.05, batch_size: 16}
  - {step: prune, budget: {macs: 0.6}}
  - {step: sparsify, sparsity: 0.3}
  - step: finetune
    epochs: 12
    lr: 0.3
    distillation: {temperature: 2, weight: 0.3, features: ["0", "4"]}
    early_stopping: {patience: 2}
    penalty: {kind: l1, strength: 0.001}
  - {step: evaluate, data: validation}
"""
)
TAUGHT_STEP = 3

GRADUAL = "{step: prune_gradually, budget: {macs: 0.2}, schedule: {kind: cubic, steps: 2}, train: {epochs: 1, lr: 0.1}}"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a module of networks and data, and a recipe."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(MODULE)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path


def changed(old: str, new: str) -> sp.Recipe:
    assert old in RECIPE
    return sp.Recipe.parse(RECIPE.replace(old, new, 1), "recipe.yaml", Path.cwd())


def call(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def interrupt(patch: pytest.MonkeyPatch, kind: type, method: str, every: int = 1) -> list[Any]:
    """What the method writes from now on; once every so many are written, the run is interrupted, as by Ctrl-C."""
    write: Callable[..., None] = getattr(kind, method)
    written = []

    def then_stop(self: Any, given: Any) -> None:
        write(self, given)
        written.append(given)
        if len(written) % every == 0:
            raise KeyboardInterrupt

    patch.setattr(kind, method, then_stop)
    return written


def finished(recipe: str | sp.Recipe) -> sp.RecipeResult:
    """The result of a run into "out" that is begun again after each interrupt."""
    for _ in range(40):
        with contextlib.suppress(KeyboardInterrupt):
            return sp.run_recipe(recipe, "out")
    raise AssertionError("interrupted 40 times")


class TestReading:
    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ("macs: 0.6", "maks: 0.6", r":8: steps\[1\]\.budget\.maks: unknown key; did you mean 'macs'\?"),
            ("macs: 0.6", "macs: 1.6", r":8: steps\[1\]\.budget: .*macs=1\.6.*in \(0, 1\]"),
            ("macs: 0.6", "latency: 0.5, throughput: 3", r":8: steps\[1\]\.budget: .*say the same thing"),
            ("step: prune", "step: prone", r":7: steps\[1\]\.step: unknown step 'prone'; did you mean 'prune'\?"),
            ("step: train, ", "", r":6: steps\[0\]: the key 'step' is missing"),
            ("epochs: 2, lr: 0.05", "epochs: 0, lr: 0.05", r":6: steps\[0\]: epochs=0: must be at least 1"),
            ("epochs: 2, lr: 0.05", "epochs: 2", r":6: steps\[0\]\.lr: this key is missing"),
            ("lr: 0.05", "lr: fast", r":6: steps\[0\]\.lr: .*valid number.*\(got 'fast'\)"),
            ("adamw", "adamv", r":12: steps\[2\]: optimizer='adamv' is unknown"),
            ("taylor", "tailor", r":9: steps\[1\]\.criterion: unknown criterion 'tailor'; did you mean 'taylor'\?"),
            ("    data: {batches: 2, batch_size: 16}\n    calibration: {share: 0.5}\n", "",
             r":7: steps\[1\]: criterion 'taylor' is worked out on data"),
            ("share: 0.5", "share: 0.5, batches: 1", r":11: steps\[1\]\.calibration: give one of batches and share"),
            ("version: 1", "version: 2", r":1: version: Input should be 1 \(got 2\)"),
            ("model: nets.py:small\n", "", r"recipe\.yaml: model: this key is missing"),
            ("model:", "seed: 1\nmodel: a\nmodel:", r":4: the key 'model' is there twice, first in line 3"),
            ("data: nets.py:points\n", "", r":5: steps\[0\]: train needs data"),
            ("data: nets.py:points", "data: digit", r":4: data\.name: unknown name 'digit'; did you mean 'digits'\?"),
            ("2x6", "2xsix", r":3: input: .*2xsix"),
            ("sparsity: 0.5", "sparsity: 1.5", r":13: steps\[3\]\.sparsity: .*less than 1"),
            ("step: evaluate", "step: evaluate, data: validation", r":17: steps\[7\]: .*validation: is 0"),
            ("step: evaluate", "step: export, file: ../x.onnx", r":17: steps\[7\]\.file: .*plain name"),
            ("version: 1", "version: [1", "is no YAML"),
            ("epochs: 1, lr: 0.01}", "epochs: 1, lr: 0.01, distillation: {temperatur: 2}}",
             r":14: steps\[4\]\.distillation\.temperatur: unknown key; did you mean 'temperature'\?"),
            ("epochs: 1, lr: 0.01}", "epochs: 1, lr: 0.01, distillation: {weight: 2}}",
             r":14: steps\[4\]\.distillation: weight=2\.0: must be in \[0, 1\]"),
            ("lr: 0.05, ", "lr: 0.05, distillation: {}, ", r":6: steps\[0\]: train .*nothing is cut before it"),
            ("lr: 0.05, ", "lr: 0.05, early_stopping: {patience: 0}, ",
             r":6: steps\[0\]\.early_stopping: patience=0: must be at least 1"),
            ("lr: 0.05, ", "lr: 0.05, early_stopping: {patience: 2}, ",
             r":6: steps\[0\]: train stops by .* validation: is 0"),
            ("{step: evaluate}", "{step: prune_gradually, budget: {macs: 0.2}, schedule: {kind: cubic, steps: 2}, "
             "train: {epochs: 1, lr: 0.1}}", r":17: steps\[7\]: prune_gradually comes after sparsify"),
            ("{step: sparsify, sparsity: 0.5}", f"{GRADUAL[:-1]}, floor: 0.5}}", "a floor for what is measured"),
            ("{step: evaluate}", f"{GRADUAL[:-1]}, floor: 50}}", r":17: steps\[7\]: floor=50\.0: must be .* share"),
            ("{step: evaluate}", f"{GRADUAL[:-1]}, rewind: 3}}", r":17: steps\[7\]: rewind repeats"),
            ("{step: evaluate}", f"{GRADUAL[:-1]}, sensitivity: a.json}}", r"steps\[7\]\.sensitivity: .*valid boolean"),
            ("{step: evaluate}", GRADUAL.replace("steps: 2", "steps: 0"), r":17: steps\[7\]: Cubic\(steps=0\)"),
            ("lr: 0.05, ", "lr: 0.05, loss: mse, ", r":6: steps\[0\]\.loss: 'mse': expected package\.module:function"),
            ("lr: 0.05, ", "lr: 0.05, loss: nets.py:los, label_smoothing: 0.1, ", r"label_smoothing belongs to"),
            ("lr: 0.05, ", "lr: 0.05, metric: nets.py:m, ", r":6: steps\[0\]: train has a metric on validation"),
            ("lr: 0.05, ", "lr: 0.05, metric: nets.py:m, early_stopping: {patience: 1}, ", "say metric: metric there"),
            ("macs: 0.35}", "macs: 0.35}, scope: layer, sensitivity: true", "leave out scope: layer"),
            ("calibration: {share: 1.0}", "sensitivity: true", r":15: steps\[5\]: sensitivity is measured on data"),
            ("calibration: {share: 1.0}", "refit: all", r":15: steps\[5\]: refit is done on data"),
            ("calibration: {share: 1.0}", "refit: wieghts", r":15: steps\[5\]: refit step 'wieghts': expected"),
            ("batch_size: 16}", "batch_size: true}", r":6: steps\[0\]\.batch_size: neither true nor false"),
            ("version: 1", "version: 1\nseed: 4294967296", r":2: seed: .*less than 4294967296"),
            ("2x6", "[2, 6]", r":3: input: expected sizes such as 1x3x224x224"),
            ("macs: 0.6", "latency: 0.6, runtime: {thread: 1}",
             r"^recipe.yaml:8: steps\[1\]\.budget\.runtime\.thread: unknown key; did you mean 'threads'\?$"),
            ("{macs: 0.6}", "0.6", r":8: steps\[1\]\.budget: expected keys with values, .* got 0\.6"),
            ("version: 1", "[a, b]: 1", r"recipe\.yaml:1: a key must be a word"),
            ("nets.py:points", "&points {name: own, function: *points}", "refers to what it is in"),
        ],
    )  # fmt: skip
    def test_what_is_wrong_is_said_with_its_place(self, old: str, new: str, message: str) -> None:
        with pytest.raises(sp.InputError, match=message):
            changed(old, new)

    def test_options_are_those_that_training_and_budgets_have(self) -> None:
        train, prune = sp.Recipe.parse(RECIPE).steps[:2]
        options = TrainOptions(epochs=2, lr=0.05, batch_size=16, seed=7)
        assert train.options(7, Path()) == options  # type: ignore[union-attr]
        assert prune.budget.make() == sp.Budget(macs=0.6)  # type: ignore[union-attr]
        timed = changed("{macs: 0.6}", "{latency: 0.5, runtime: {name: torch, threads: 2}}").steps[1]
        assert timed.budget.make() == sp.Budget(latency=0.5, runtime=sp.Runtime("torch", 2))  # type: ignore[union-attr]

    def test_all_that_is_data_of_pruning_and_training_can_be_said(self) -> None:
        training = {"model", "train_data", "validation", "hooks", "progress", "accelerator"}
        cutting = {"model", "example_inputs", "inplace", "rewrite", "engine_options", "progress"}
        within = {"options", "metric", "pruning", "training"}  # what `train` and the other keys come to
        for function, kind, other in (
            (sp.train.finetune, Train, training),
            (sp.prune, Prune, cutting),
            (sp.train.prune_gradually, PruneGradually, {*training, *cutting, *within, "checkpoint"}),
        ):
            assert inspect.signature(function).parameters.keys() - kind.model_fields.keys() <= other

    def test_json_reads_as_yaml_does(self, folder: Path) -> None:
        recipe = sp.Recipe.load("recipe.yaml")
        (folder / "recipe.json").write_text(recipe.to_json())
        assert sp.Recipe.load("recipe.json") == recipe
        (folder / "recipe.json").write_text('{"version": 1, "version": 1}')
        with pytest.raises(sp.InputError, match="'version' is there twice"):
            sp.Recipe.load("recipe.json")

    def test_the_schema_names_every_step_and_every_option(self) -> None:
        result = call("schema")
        assert result.exit_code == 0
        schema = json.loads(result.stdout)
        defined = schema["$defs"]
        assert {"macs", "latency", "file_size", "runtime"} <= defined["Limits"]["properties"].keys()
        assert {"epochs", "lr", "label_smoothing", "step"} <= defined["Train"]["properties"].keys()
        assert defined["Train"]["additionalProperties"] is False
        assert defined["Distill"]["properties"].keys() == {
            "temperature", "weight", "outputs", "features", "feature_weight", "compare",
        }  # fmt: skip
        assert defined["StopEarly"]["properties"].keys() == {
            "patience", "metric", "lower", "min_delta", "restore",
        }  # fmt: skip
        mapping = schema["properties"]["steps"]["items"]["discriminator"]["mapping"]
        assert {"train", "finetune", "prune", "sparsify", "evaluate", "export", "measure"} <= mapping.keys()


class TestRunning:
    def test_every_step_does_what_it_says(self, folder: Path) -> None:
        state = torch.get_rng_state()
        result = sp.run_recipe("recipe.yaml", "out")
        assert torch.equal(torch.get_rng_state(), state)
        assert [record["step"] for record in result.records] == [
            "train", "prune", "finetune", "sparsify", "finetune", "prune", "finetune", "evaluate",
        ]  # fmt: skip
        whole = 6 * 16 + 16 * 8 + 8 * 3
        first, second = result.records[1], result.records[5]
        assert first["macs"][0] == 2 * whole
        assert first["macs"][1] <= 0.6 * 2 * whole
        assert second["macs"][1] <= 0.35 * 2 * whole  # of the original, not of what the first cut left
        assert second["macs"][1] == sp.count_macs(result.model, torch.zeros(2, 6))
        masked = [module.weight for module in result.model if isinstance(module, torch.nn.Linear)]
        assert all(int((weight == 0).sum()) >= 1 for weight in masked)
        assert 0.3 < sum(int((w == 0).sum()) for w in masked) / sum(w.numel() for w in masked) < 0.7
        namespace: dict[str, Any] = {}
        exec(MODULE, namespace)
        loaded = sp.load("out/model", namespace["small"]).eval()
        _, test = namespace["points"]()
        accuracy = float((loaded(test.tensors[0]).argmax(1) == test.tensors[1]).float().mean())
        assert result.records[-1]["accuracy"] == pytest.approx(accuracy)
        written = json.loads((folder / "out" / "results.json").read_text())
        assert written == {"done": True, "weights_sha256": result.weights, "steps": list(result.records)}

    def test_a_finished_run_is_not_done_again(self, folder: Path) -> None:
        first = sp.run_recipe("recipe.yaml", "out")
        (folder / "stop").touch()  # training would be interrupted
        again = sp.run_recipe("recipe.yaml", "out")
        assert (again.weights, again.resumed, again.records) == (first.weights, 8, first.records)

    def test_stopped_after_any_state_it_ends_the_same(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        wanted = sp.run_recipe("recipe.yaml", "alone")
        kept = interrupt(monkeypatch, RunFolder, "keep")
        result = finished("recipe.yaml")
        assert len(kept) == 8 + 2 + 2 + 1 + 1  # a state after each step, and after each epoch
        assert result.weights == wanted.weights
        assert result.records == wanted.records

    def test_masks_hold_when_what_is_cut_is_refitted(self, folder: Path) -> None:
        recipe = changed("  - {step: prune, budget: {macs: 0.35}, calibration: {share: 1.0}}\n", "")
        before = sp.run_recipe(recipe, "before").model
        after = sp.run_recipe("recipe.yaml", "after").model
        zeros = [int((m.weight == 0).sum()) for m in before if isinstance(m, torch.nn.Linear)]
        assert zeros == [m.weight.numel() // 2 for m in before if isinstance(m, torch.nn.Linear)]
        assert all(bool((m.weight == 0).any()) for m in after if isinstance(m, torch.nn.Linear))

    def test_a_penalty_and_a_schedule_go_on_where_they_were_stopped(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        recipe = sp.Recipe.parse(
            RECIPE[: RECIPE.index("steps:")]
            + """\
validation: 0.2
steps:
  - {step: train, epochs: 2, lr: 0.05, penalty: {kind: group_lasso, strength: 0.02}}
  - step: prune_gradually
    budget: {macs: 0.4}
    schedule: {kind: iterative, steps: 3}
    train:
      epochs: 4
      lr: 0.2
      distillation: {weight: 0.3, features: ["0", "4"]}
      early_stopping: {patience: 1}
      penalty: {kind: l1, strength: 0.001}
    max_drop: 1.0
  - {step: sparsify, sparsity: 0.5}
""",
            "recipe.yaml",
            folder,
        )
        wanted = sp.run_recipe(recipe, "alone")
        penalised, gradual, _ = wanted.records
        assert penalised["epochs"][-1]["penalty"] > 0
        epochs = [len(cut["history"]) for cut in gradual["cuts"]]
        assert min(epochs) < 4
        assert all(epoch["penalty"] > 0 for cut in gradual["cuts"] for epoch in cut["history"])
        lines = [json.loads(line) for line in (folder / "alone" / "metrics.jsonl").read_text().splitlines()]
        assert [(line["step"], line["name"], line.get("gradual_step"), line["epoch"]) for line in lines] == [
            *((1, "train", None, epoch) for epoch in (1, 2)),
            *((2, "prune_gradually", n + 1, e + 1) for n, count in enumerate(epochs) for e in range(count)),
        ]
        told = [epoch for cut in gradual["cuts"] for epoch in cut["history"]]
        assert [{name: line[name] for name in told[0]} for line in lines[2:]] == told
        assert [round(cut["asked"]["macs"], 3) for cut in gradual["cuts"]] == [0.737, 0.543, 0.4]
        assert gradual["reached"]
        assert len(wanted.plans) == 3
        assert "3 cuts, macs" in str(wanted)
        (folder / "stop").touch()
        with pytest.raises(KeyboardInterrupt):
            sp.run_recipe(recipe, "out")
        saved = interrupt(monkeypatch, GradualRun, "save")
        add, within, trained = MetricLines.add, list[int](), list[tuple[int, float]]()

        def then_stop(self: MetricLines, number: int, name: str, cut: int | None, metrics: Any) -> None:
            add(self, number, name, cut, metrics)
            if cut == 2 and metrics["epoch"] == 2 and not within:
                within.append(cut)
                raise KeyboardInterrupt
            trained.append((cut or 0, metrics["epoch"]))

        monkeypatch.setattr(MetricLines, "add", then_stop)
        for _ in range(4):
            with pytest.raises(KeyboardInterrupt):
                sp.run_recipe(recipe, "out")
        again = sp.run_recipe(recipe, "out")
        assert (len(saved), within) == (3, [2])
        assert trained == sorted(
            set(trained)
        )  # no epoch is done twice, but the one whose state was not yet written
        assert (again.weights, again.records) == (wanted.weights, wanted.records)
        for name in ("metrics.jsonl", "results.json"):
            assert (folder / "out" / name).read_text() == (folder / "alone" / name).read_text()
        assert {path.name for path in (folder / "out").iterdir()} == {
            path.name for path in (folder / "alone").iterdir()
        }

    def test_a_teacher_and_the_best_weights_are_there_again_after_every_stop(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        recipe = sp.Recipe.parse(TAUGHT, "recipe.yaml", folder)
        wanted = sp.run_recipe(recipe, "alone")
        record = wanted.records[TAUGHT_STEP]
        accuracies = [epoch["accuracy"] for epoch in record["epochs"]]
        best = record["best_epoch"]
        assert accuracies.index(max(accuracies)) + 1 == best
        assert len(accuracies) == best + 2 < 12  # patience
        assert wanted.records[-1]["accuracy"] == accuracies[best - 1] > accuracies[-1]
        assert f"epoch {best} the best" in str(wanted)
        kept = interrupt(monkeypatch, RunFolder, "keep")
        result = finished(recipe)
        trained = sum(len(record.get("epochs", ())) for record in wanted.records)
        assert len(kept) == len(recipe.steps) + trained
        assert (result.weights, result.records) == (wanted.weights, wanted.records)

    def test_functions_of_ones_own(self, folder: Path) -> None:
        text = """\
validation: 0.4
steps:
  - step: train
    epochs: 3
    lr: 0.1
    optimizer: nets.py:rms
    schedule: nets.py:halves
    loss: nets.py:squared
    metric: nets.py:error
    early_stopping: {patience: 2, metric: metric, lower: true}
  - {step: prune, budget: {macs: 0.6}, criterion: nets.py:last, loss: nets.py:squared, calibration: {share: 1}}
  - {step: evaluate, metric: nets.py:error, data: validation}
"""
        (folder / "nets.py").write_text(MODULE + OWN)
        recipe = sp.Recipe.parse(RECIPE[: RECIPE.index("steps:")] + text, "recipe.yaml", folder)
        result = sp.run_recipe(recipe, "out")
        epochs = result.records[0]["epochs"]
        assert [epoch["lr"] for epoch in epochs] == pytest.approx([0.01 / 2**n for n in range(len(epochs))])
        assert "accuracy" not in epochs[0]
        errors = [epoch["metric"] for epoch in epochs]
        assert errors.index(min(errors)) + 1 == result.records[0]["best_epoch"]
        assert all(
            group.keep[-1] == group.size - 1 for group in result.plans[0].groups[:1]
        )  # the last channels
        assert result.plans[0].criterion == "last"
        assert result.records[2].keys() == {"step", "data", "metric"}
        assert f"metric {result.records[2]['metric']:.4g} (validation)" in str(result)

    @pytest.mark.usefixtures("table")
    def test_a_file_that_is_named_twice_registers_its_rules_once(self, folder: Path) -> None:
        (folder / "nets.py").write_text(MODULE + RULE)
        assert sp.run_recipe(changed("macs: 0.6", "macs: 0.7"), "out").records

    def test_a_latency_on_a_runtime(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("STRUCTPRUNE_CACHE", str(folder / "cache"))
        recipe = sp.Recipe.of(
            {
                "version": 1,
                "model": "tests.toy_runtime:mlp",
                "input": "1x32",
                "steps": [
                    {"step": "prune", "budget": {"latency": 0.6, "runtime": {"name": "toy", "threads": 1}}}
                ],
            }
        )
        result = sp.run_recipe(recipe, "out")
        dense, small = (WASTE + sum(each.ms for each in kernels(net)) for net in (mlp(), result.model))
        assert 0.57 < small / dense <= 0.6
        assert result.records[0]["latency"]["value"] == pytest.approx(small / dense)

    def test_widths_by_sensitivity_measured_and_taken_up_again(self, folder: Path) -> None:
        head = RECIPE[: RECIPE.index("steps:")] + "steps:\n"
        step = "  - {step: prune, budget: {macs: 0.5}, calibration: {share: 1}, sensitivity: %s}\n"
        first = sp.run_recipe(sp.Recipe.parse(head + step % "true", "recipe.yaml", folder), "first")
        measured = sp.Sensitivity.load("first/sensitivity-1.json")
        assert first.records[0]["forecast"]["cut"] == measured.forecast(first.plans[0])
        again = sp.Recipe.parse(head + step % "first/sensitivity-1.json", "recipe.yaml", folder)
        assert sp.run_recipe(again, "again").weights == first.weights
        absent = sp.Recipe.parse(head + step % "first/sensitivity-2.json", "recipe.yaml", folder)
        with pytest.raises(
            sp.StorageError, match=r"recipe\.yaml:6: steps\[0\]\.sensitivity: .*sensitivity-2"
        ):
            sp.run_recipe(absent, "absent")
        trained = head + "  - {step: train, epochs: 1, lr: 0.1}\n" + step % "first/sensitivity-1.json"
        with pytest.raises(
            sp.InputError, match=r"recipe\.yaml:7: steps\[1\] \(prune\): the sensitivity is stale"
        ):
            sp.run_recipe(sp.Recipe.parse(trained, "recipe.yaml", folder), "stale")

    def test_the_teacher_is_the_network_before_its_first_cut(self, folder: Path) -> None:
        head, _ = RECIPE.split("steps:\n")
        cuts = """\
  - {step: train, epochs: 2, lr: 0.05}
  - {step: prune, budget: {macs: 0.7}}
  - {step: prune, budget: {macs: 0.5}}
"""
        options = {"epochs": 1, "lr": 0.05}
        before = sp.run_recipe(sp.Recipe.parse(f"{head}steps:\n{cuts}", "r", folder), "before")
        dense = sp.run_recipe(
            sp.Recipe.parse(f"{head}steps:\n{cuts.splitlines()[0]}", "r", folder), "dense"
        ).model
        taught = (
            cuts + "  - {step: finetune, epochs: 1, lr: 0.05, distillation: {weight: 0.7, features: ['0']}}\n"
        )
        result = sp.run_recipe(sp.Recipe.parse(f"{head}steps:\n{taught}", "r", folder), "taught")
        namespace: dict[str, Any] = {}
        exec(MODULE, namespace)
        teacher = sp.train.Distillation(dense, weight=0.7, features=["0"], plan=before.plans)
        log = sp.train.finetune(before.model, namespace["points"]()[0], distillation=teacher, **options)
        assert result.records[-1]["epochs"] == log
        ours, theirs = result.model.state_dict(), before.model.state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


class TestRefused:
    def test_another_recipe_in_the_folder_is_told_field_by_field(self, folder: Path) -> None:
        sp.run_recipe(changed("epochs: 2, lr: 0.05", "epochs: 1, lr: 0.05"), "out")
        with pytest.raises(sp.InputError, match=r"another recipe: steps\[0\]\.epochs is 2, the folder's 1\."):
            sp.run_recipe("recipe.yaml", "out")
        with pytest.raises(sp.InputError, match=r"steps has 7 entries, the folder's 8"):
            sp.run_recipe(changed("  - {step: evaluate}\n", ""), "out")

    def test_steps_that_have_not_begun_may_be_corrected(self, folder: Path) -> None:
        self.interrupted(folder)
        right = changed("macs: 0.35", "macs: 0.4")
        begun = changed("epochs: 1, lr: 0.01}\n  - {step: prune", "epochs: 1, lr: 0.02}\n  - {step: prune")
        with pytest.raises(sp.InputError, match=r"steps\[4\]\.lr is 0\.02, .* the 5 steps that have begun"):
            sp.run_recipe(begun, "out")
        result = sp.run_recipe(right, "out")
        assert result.resumed == 4
        assert result.weights == sp.run_recipe(right, "alone").weights
        assert json.loads((folder / "out" / "recipe.json").read_text()) == right.model_dump(mode="json")

    def test_a_folder_of_something_else_is_left_alone(self, folder: Path) -> None:
        (folder / "out").mkdir()
        (folder / "out" / "thesis.tex").touch()
        with pytest.raises(sp.InputError, match=r"holds thesis\.tex and no run"):
            sp.run_recipe("recipe.yaml", "out")

    def test_a_folder_in_use(self, folder: Path) -> None:
        with (
            RunFolder("out").opened(sp.Recipe.load("recipe.yaml")),
            pytest.raises(sp.InputError, match="another process runs a recipe there"),
        ):
            sp.run_recipe("recipe.yaml", "out")

    def test_a_file_of_metrics_that_somebody_wrote_in(self, folder: Path) -> None:
        self.interrupted(folder)
        with (folder / "out" / "metrics.jsonl").open("a") as file:
            file.write("half a li")
        with pytest.raises(sp.StorageError, match=r"metrics\.jsonl has lines that no run has written"):
            sp.run_recipe("recipe.yaml", "out")

    def test_a_damaged_epoch_of_a_gradual_step_is_done_again(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        step = GRADUAL.replace("cubic, steps: 2", "one_shot").replace("epochs: 1", "epochs: 3")
        text = f"{RECIPE[: RECIPE.index('steps:')]}steps:\n  - {step}\n"
        recipe = sp.Recipe.parse(text, "recipe.yaml", folder)
        wanted = sp.run_recipe(recipe, "alone")
        add = MetricLines.add

        def stop(self: MetricLines, number: int, name: str, cut: int | None, metrics: Any) -> None:
            add(self, number, name, cut, metrics)
            if metrics["epoch"] == 3:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(MetricLines, "add", stop)
            with pytest.raises(KeyboardInterrupt):
                sp.run_recipe(recipe, "out")
        epoch = folder / "out" / "gradual-1-epoch.safetensors"
        epoch.write_bytes(epoch.read_bytes()[:-10])
        result = sp.run_recipe(recipe, "out")
        assert (result.weights, result.records) == (wanted.weights, wanted.records)
        assert len(result.notes) == 1
        assert "training anew after the last cut" in result.notes[0]

    def test_a_damaged_state_gives_way_to_the_one_before(self, folder: Path) -> None:
        wanted = sp.run_recipe("recipe.yaml", "alone")
        states = self.interrupted(folder)
        states[-1].write_bytes(states[-1].read_bytes()[:-100])
        result = sp.run_recipe("recipe.yaml", "out")
        assert result.weights == wanted.weights
        assert len(result.notes) == 1
        assert states[-1].name in result.notes[0]

    def test_where_no_state_is_whole_it_is_said(self, folder: Path) -> None:
        for state in self.interrupted(folder):
            state.write_bytes(state.read_bytes()[:-1])
        result = call("run", "recipe.yaml", "--out", "out")
        assert result.exit_code == ExitCode.STORAGE
        assert "no state of the run is whole" in result.stderr

    def test_a_factory_that_builds_another_network_now(self, folder: Path) -> None:
        self.interrupted(folder)
        (folder / "nets.py").write_text(
            MODULE.replace("nn.Linear(6, 16), nn.BatchNorm1d(16)", "nn.Linear(6, 16), nn.LayerNorm(16)")
        )
        with pytest.raises(sp.PlanError, match="made for another model"):
            sp.run_recipe("recipe.yaml", "out")

    def test_a_state_of_the_network_in_full_size_is_refused(self, folder: Path) -> None:
        state = self.interrupted(folder)[-1]
        content = read_archive(state)
        plan = sp.PruningPlan.from_json(content["history"][0]["plan"])
        full = {name: torch.zeros(shape) for name, shape in plan.shapes.items()}
        write_archive(
            state, {**content, "model": {"state": content["model"]["state"] | full, "optional": {}}}
        )
        with pytest.raises(sp.StorageError, match=r"the model has shape \[.*\], expected \["):
            sp.run_recipe("recipe.yaml", "out")

    def test_what_the_recipe_names_is_looked_up_before_any_work(self, folder: Path) -> None:
        for old, new, message in (
            ("nets.py:small", "nets.py:smal", "did you mean small"),
            ("nets.py:small", "net.py:small", "no file"),
            (
                "epochs: 1, lr: 0.01}",
                "epochs: 1, lr: 0.01, distillation: {features: ['44']}}",
                r"steps\[4\]\.distillation\.features: the network has no layer '44'; did you mean '4'\?",
            ),
            ("2x6", "2x7", r"recipe\.yaml:3: input: the network's forward failed .*2x7 and 6x16"),
            (
                "step: evaluate",
                "step: measure, runtime: onnxrt",
                r"recipe\.yaml:17: steps\[7\]\.runtime: runtime='onnxrt' is not known; the names are .*torch",
            ),
            (
                "macs: 0.35",
                "latency: 0.35, runtime: onnxrt",
                r"recipe\.yaml:15: steps\[5\]\.budget\.runtime: runtime='onnxrt' is not known",
            ),
            ("nets.py:points", "nets.py:nothing", "expected .training set, test set."),
            ("data: {batches", "loss: nets.py:los\n    data: {batches", r"steps\[1\]\.loss: .*has no 'los'"),
            (
                "lr: 0.05, ",
                "lr: 0.05, optimizer: nets.py:os, ",
                r"steps\[0\]\.optimizer: .*expected a function",
            ),
            ("macs: 0.35}", "macs: 0.35}, keep: stem", r":15: steps\[5\]: keep=.*stem"),
            ("sparsity: 0.5}", "sparsity: 0.5, only: stem}", r":13: steps\[3\]: only='stem' names no weight"),
            (
                "lr: 0.05, ",
                "lr: 0.05, penalty: {kind: l1, strength: 1, only: stem}, ",
                r":6: steps\[0\]: only=.*stem",
            ),
            (
                "lr: 0.05, ",
                "lr: 0.05, penalty: {kind: slimming, strength: 1, only: '4'}, ",
                "Slimming acts on",
            ),
            (
                "nets.py:points",
                "nets.py:others",
                r":4: data: the network's forward failed on a batch .*\[1, 7\].*1x7",
            ),
            (
                "nets.py:points",
                "nets.py:floats",
                r":6: steps\[0\]: cross-entropy, .* targets are a tensor \[1\] of torch.float32",
            ),
            ("nets.py:points", "nets.py:singles", r":4: data: a batch .*; expected \(input, target\) pairs"),
            (
                "nets.py:points",
                "nets.py:fails",
                r":4: data: nets\.py:fails\(\) failed at nets\.py:\d+: OSError: gone",
            ),
        ):
            with pytest.raises(sp.InputError, match=message):
                sp.run_recipe(changed(old, new), "out")
        assert not (folder / "out").exists()

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            (
                "lr: 0.05, ",
                "lr: 0.05, schedule: nets.py:small, ",
                r"nets\.py:small\(\) failed.*: TypeError: small",
            ),
            ("lr: 0.05, ", "lr: 0.05, optimizer: nets.py:same, ", "returned Sequential, expected Optimizer"),
            ("nets.py:points", "nets.py:late", r"nets\.py:\d+ failed: KeyError: 'no fifty'"),
        ],
    )
    def test_what_ones_own_code_raises(self, folder: Path, old: str, new: str, message: str) -> None:
        (folder / "nets.py").write_text(MODULE + FAILING)
        with pytest.raises(sp.InputError, match=r"recipe\.yaml:6: steps\[0\] \(train\): .*" + message):
            sp.run_recipe(changed(old, new), "out")

    def test_a_budget_out_of_reach(self, folder: Path) -> None:
        (folder / "recipe.yaml").write_text(RECIPE.replace("macs: 0.6", "macs: 0.001"))
        result = call("run", "recipe.yaml", "--out", "out", "--json")
        assert result.exit_code == ExitCode.BUDGET
        assert json.loads(result.stdout)["error"]["kind"] == "BudgetError"
        assert "recipe.yaml:7: steps[1]: " in result.stderr
        assert not (folder / "out").exists()  # seen before the training

    @staticmethod
    def interrupted(folder: Path) -> list[Path]:
        """The states of a run that stopped in its second fine-tuning."""
        with pytest.MonkeyPatch.context() as patch:
            interrupt(patch, RunFolder, "keep", every=9)
            with pytest.raises(KeyboardInterrupt):
                sp.run_recipe("recipe.yaml", "out")
        states = sorted((folder / "out").glob("state-*"))
        assert len(states) == 2
        return states


class TestCommand:
    def test_interrupted_it_says_so_and_goes_on(self, folder: Path) -> None:
        wanted = sp.run_recipe("recipe.yaml", "alone").weights
        (folder / "stop").touch()
        result = call("run", "recipe.yaml")
        assert result.exit_code == ExitCode.INTERRUPTED
        assert "kept in runs/recipe; the same command goes on from there" in result.stdout
        result = call("run", "recipe.yaml", "--json")
        assert result.exit_code == 0, result.stderr
        document = json.loads(result.stdout)
        assert document["weights_sha256"] == wanted
        assert [step["step"] for step in document["steps"]][:2] == ["train", "prune"]
        result = call("run", "recipe.yaml")
        assert "8 of 8 steps were done before" in result.stdout
        assert re.search(r"8\. evaluate: accuracy [0-9.]+ % \(test\)", result.stdout)

    def test_a_recipe_that_is_wrong_or_absent(self, folder: Path) -> None:
        (folder / "recipe.yaml").write_text(RECIPE.replace("epochs", "epoch", 1))
        result = call("run", "recipe.yaml")
        assert result.exit_code == ExitCode.USAGE
        assert "recipe.yaml:6: steps[0].epoch: unknown key; did you mean 'epochs'?" in result.stderr
        assert not (folder / "runs").exists()
        assert call("run", "recipe.yml").exit_code == ExitCode.USAGE


def test_the_recipe_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    readme = (Path(__file__).resolve().parent.parent / "README.md").read_text()
    (recipe,) = re.findall(r"```yaml\n(# recipe\.yaml.*?)```", readme, flags=re.DOTALL)
    (module,) = re.findall(r"```py\n(# nets\.py.*?)```", readme, flags=re.DOTALL)
    Path("recipe.yaml").write_text(recipe)
    Path("nets.py").write_text(module)
    result = call("run", "recipe.yaml", "--json")
    assert result.exit_code == 0, result.stderr
    steps = {step["step"]: step for step in json.loads(result.stdout)["steps"]}
    assert steps["prune"]["remaining"]["macs"] <= 0.5
    assert steps["evaluate"]["accuracy"] > 0.85
    assert (tmp_path / "runs" / "recipe" / "small.onnx").stat().st_size == steps["export"]["bytes"]
    assert steps["measure"].keys() == {"step", "dense", "now", "ratio"}
    assert "of the dense network's" in call("run", "recipe.yaml").stdout
