"""A run that is killed, at any moment and as often as one likes, ends as the one that was left alone."""

from __future__ import annotations

import json
import multiprocessing
import random
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import structprune as sp

NETS = """
from torch import nn

def small():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(16, 10),
    )
"""

RECIPE = """
version: 1
model: nets.py:small
input: 1x1x8x8
data: {name: digits, size: 8}
validation: 0.1
steps:
  - {step: train, epochs: 3, lr: 0.05}
  - {step: prune, budget: {macs: 0.6}, criterion: taylor, calibration: {batches: 2}}
  - step: finetune
    epochs: 4
    lr: 0.01
    optimizer: adamw
    schedule: onecycle
    distillation: {weight: 0.3, features: ["4"]}
    early_stopping: {patience: 1, min_delta: 0.05}
  - step: prune_gradually
    budget: {macs: 0.45}
    schedule: {kind: iterative, steps: 2}
    calibration: {batches: 2}
    train:
      epochs: 2
      lr: 0.02
      distillation: {weight: 0.3, features: ["4"]}
      early_stopping: {patience: 1}
      penalty: {kind: group_lasso, strength: 0.0001}
  - {step: sparsify, sparsity: 0.5, scope: global}
  - {step: prune, budget: {macs: 0.4}, criterion: random}
  - {step: finetune, epochs: 2, lr: 0.02}
  - {step: evaluate}
"""

CONTEXT = multiprocessing.get_context("forkserver")  # a fresh process each time, which has torch already
CONTEXT.set_forkserver_preload(["structprune", "accelerate", "sklearn.datasets", "sklearn.model_selection"])


def work(recipe: Path, out: Path) -> None:
    torch.set_num_threads(1)
    sp.run_recipe(recipe, out)


def process(recipe: Path, out: Path) -> Any:
    started = CONTEXT.Process(target=work, args=(recipe, out))
    started.start()
    return started


def finished(recipe: Path, out: Path) -> dict[str, Any]:
    run = process(recipe, out)
    run.join(120)
    assert run.exitcode == 0
    results: dict[str, Any] = json.loads((out / "results.json").read_text())
    assert results["done"]
    return results


def files(out: Path) -> set[str]:
    """What a run's folder holds: all that is there but the numbers of its two states."""
    names = [str(path.relative_to(out)) for path in out.rglob("*")]
    return {re.sub(r"^state-\d+\.", "state.", name) for name in names}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    (folder / "nets.py").write_text(NETS)
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder / "recipe.yaml"


@pytest.fixture(scope="module")
def alone(recipe: Path) -> tuple[dict[str, Any], float]:
    """The results of a run that nothing interrupts, and the seconds it takes."""
    idle = CONTEXT.Process(target=time.monotonic)
    idle.start()
    idle.join()  # the server of processes is up, and has imported what it is to hand on
    began = time.monotonic()
    return finished(recipe, recipe.parent / "alone"), time.monotonic() - began


@pytest.mark.parametrize(
    "seed", [pytest.param(seed, marks=() if seed == 0 else pytest.mark.nightly) for seed in range(20)]
)
def test_killed_at_random_times_it_ends_the_same(
    recipe: Path, alone: tuple[dict[str, Any], float], tmp_path: Path, seed: int
) -> None:
    wanted, seconds = alone
    draw, killed, out = random.Random(seed), 0, tmp_path / "out"
    while not killed:
        for _ in range(2):
            run = process(recipe, out)
            run.join(draw.uniform(0.05, 1.0) * seconds)
            run.kill()
            run.join()
            assert run.exitcode in (0, -signal.SIGKILL)
            killed += run.exitcode != 0
        if not killed:  # the machine has become faster since
            out, seconds = out.with_name(f"{out.name}-again"), seconds / 2
    assert finished(recipe, out) == wanted
    alone_out = recipe.parent / "alone"
    assert (out / "metrics.jsonl").read_text() == (alone_out / "metrics.jsonl").read_text()
    made = [path.relative_to(alone_out) for path in alone_out.rglob("*") if not path.match("state-*")]
    assert sorted(path.relative_to(out) for path in out.rglob("*") if not path.match("state-*")) == sorted(
        made
    )
    ours, theirs = (load_file(each / "model" / "model.safetensors") for each in (out, alone_out))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
