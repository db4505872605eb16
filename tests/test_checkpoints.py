"""Checkpoints of one's own loop: whole or not there, checked, and no network of another shape goes in or out."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import structprune as sp
from structprune.archive import read_archive, write_archive
from structprune.errors import InputError, StorageError
from structprune.train import load_checkpoint, save_checkpoint

X = torch.linspace(-1, 1, 8 * 6).view(8, 6)


def build() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))


def optimizer_of(model: nn.Module, kind: str) -> torch.optim.Optimizer:
    if kind == "adamw":
        return torch.optim.AdamW(model.parameters(), lr=0.01)
    return torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, nesterov=True)


def train(model: nn.Module, optimizer: Any, schedule: Any, steps: int) -> None:
    model.train()
    for _ in range(steps):
        noise = float(np.random.rand()) + random.random() + float(torch.rand(()))
        optimizer.zero_grad()
        model(X + noise).square().sum().backward()
        optimizer.step()
        schedule.step()


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert list(left) == list(right)
    assert all(torch.equal(left[name], right[name]) for name in left)


class TestArchive:
    def test_what_is_read_is_what_was_written(self, tmp_path: Path) -> None:
        shared = torch.arange(3)
        content = {
            "a": [1, 2.5, None, True, "text", float("inf"), -0.0],
            "pair": (1, (2, "x")),
            "keys": {0: {"buffer": torch.ones(2, 3)}, 7: {}, "$tensor": "not one"},
            "tied": [shared, shared, torch.zeros(0), torch.tensor(4.0)],
            "bits": torch.tensor([True, False]),
            "half": torch.tensor([1.5], dtype=torch.bfloat16),
            "turned": torch.arange(6).view(2, 3).t(),
        }
        write_archive(tmp_path / "a.safetensors", content)
        found = read_archive(tmp_path / "a.safetensors")
        assert repr(found) == repr(content)
        assert isinstance(found["pair"][1], tuple)
        assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]

    def test_nan_comes_back(self, tmp_path: Path) -> None:
        write_archive(tmp_path / "a", {"loss": float("nan")})
        assert read_archive(tmp_path / "a")["loss"] != read_archive(tmp_path / "a")["loss"]

    @pytest.mark.parametrize("value", [{1, 2}, object(), lambda: 0, {(1, 2): 3}, np.float32(1)])
    def test_what_would_need_pickling_is_refused_with_its_place(self, tmp_path: Path, value: Any) -> None:
        with pytest.raises(InputError, match=r"^state\.deep\.1"):
            write_archive(tmp_path / "a", {"state": {"deep": [0, value]}})
        assert not list(tmp_path.iterdir())

    def test_any_byte_that_changes_and_any_cut_is_noticed(self, tmp_path: Path) -> None:
        path = tmp_path / "a.safetensors"
        write_archive(path, {"weights": torch.arange(40.0), "epoch": 3})
        whole = path.read_bytes()
        for end in range(0, len(whole), 17):
            path.write_bytes(whole[:end])
            with pytest.raises(StorageError, match=r"a\.safetensors"):
                read_archive(path)
        draw = random.Random(0)
        for _ in range(60):
            place = draw.randrange(len(whole))
            path.write_bytes(
                whole[:place] + bytes([whole[place] ^ (1 << draw.randrange(8))]) + whole[place + 1 :]
            )
            with pytest.raises(StorageError, match=r"a\.safetensors"):
                read_archive(path)
        path.write_bytes(whole)
        assert read_archive(path)["epoch"] == 3

    def test_a_write_that_fails_leaves_the_old_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "a.safetensors"
        write_archive(path, 1)

        def full(*paths: Any) -> None:
            raise OSError("no space left on device")

        monkeypatch.setattr(os, "replace", full)
        with pytest.raises(StorageError, match="no space left"):
            write_archive(path, 2)
        assert read_archive(path) == 1
        assert [each.name for each in tmp_path.iterdir()] == ["a.safetensors"]

    def test_a_file_where_a_folder_has_to_be_is_told(self, tmp_path: Path) -> None:
        (tmp_path / "taken").touch()
        with pytest.raises(StorageError, match=r"a cannot be written: "):
            write_archive(tmp_path / "taken" / "a", 1)


class TestResume:
    @pytest.mark.parametrize("kind", ["sgd", "adamw"])
    def test_training_goes_on_bit_for_bit_after_a_cut(self, tmp_path: Path, kind: str) -> None:
        def begun() -> tuple[nn.Module, Any, Any, sp.PruningPlan]:
            result = sp.prune(build(), X, sp.Budget(channels=0.5))
            model = result.model
            optimizer = optimizer_of(model, kind)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
            torch.manual_seed(1), random.seed(1), np.random.seed(1)
            train(model, optimizer, schedule, 4)
            return model, optimizer, schedule, result.plan

        model, optimizer, schedule, plan = begun()
        save_checkpoint(
            tmp_path / "c", model, plan, optimizer=optimizer, schedule=schedule, state={"epoch": 4}
        )
        train(model, optimizer, schedule, 6)
        wanted = weights(model)

        torch.manual_seed(9), random.seed(9), np.random.seed(9)
        checkpoint = load_checkpoint(tmp_path / "c")
        assert checkpoint.state == {"epoch": 4}
        assert checkpoint.plans == (plan,)
        again = checkpoint.build(build)
        optimizer = optimizer_of(again, kind)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
        checkpoint.restore(again, optimizer, schedule=schedule)
        train(again, optimizer, schedule, 6)
        assert_equal(weights(again), wanted)

    def test_masks_before_and_after_a_cut_are_built_again(self, tmp_path: Path) -> None:
        sparse = sp.sparsify(build(), 0.5)
        result = sp.prune(sparse, X, sp.Budget(channels=0.5))
        for model, plans in ((result.model, result.plan), (sparse, ())):
            save_checkpoint(tmp_path / "c", model, plans)
            again = load_checkpoint(tmp_path / "c").build(build)
            assert_equal(weights(again), weights(model))
            assert torch.equal(again.eval()(X), model.eval()(X))
        plain = sp.prune(build(), X, sp.Budget(channels=0.5))
        late = sp.sparsify(plain.model, 0.5)
        save_checkpoint(tmp_path / "c", late, plain.plan)
        assert_equal(weights(load_checkpoint(tmp_path / "c").build(build)), weights(late))

    def test_a_network_pruned_twice(self, tmp_path: Path) -> None:
        first = sp.prune(build(), X, sp.Budget(channels=0.75))
        second = sp.prune(first.model, X, sp.Budget(channels=0.5))
        save_checkpoint(tmp_path / "c", second.model, [first.plan, second.plan])
        again = load_checkpoint(tmp_path / "c").build(build)
        assert_equal(weights(again), weights(second.model))
        third = [
            sp.prune(each, X, sp.Budget(channels=0.25)).plan.new_shape("0.weight")
            for each in (again, second.model)
        ]
        assert third == [(4, 6), (4, 6)]  # shares stay those of the original


class TestRefused:
    def test_the_full_size_network_is_refused_and_told_what_it_is(self, tmp_path: Path) -> None:
        result = sp.prune(build(), X, sp.Budget(channels=0.5))
        with pytest.raises(StorageError, match=r"before pruning, in full size.*build\(build_model\)"):
            save_checkpoint(tmp_path / "c", build(), result.plan)
        assert not list(tmp_path.iterdir())
        save_checkpoint(tmp_path / "c", result.model, result.plan)
        full = build()
        before = weights(full)
        with pytest.raises(StorageError, match=r"shape \[16, 6\], expected \[8, 6\].*in full size"):
            load_checkpoint(tmp_path / "c").restore(full)
        assert_equal(weights(full), before)

    def test_an_optimizer_of_the_network_before_the_cut_is_refused(self, tmp_path: Path) -> None:
        model = build()
        old = optimizer_of(model, "sgd")
        result = sp.prune(model, X, sp.Budget(channels=0.5))
        with pytest.raises(StorageError, match=r"\[16, 6\] that is none of the model's"):
            save_checkpoint(tmp_path / "c", result.model, result.plan, optimizer=old)
        new = optimizer_of(result.model, "sgd")
        save_checkpoint(tmp_path / "c", result.model, result.plan, optimizer=new)
        checkpoint = load_checkpoint(tmp_path / "c")
        again = checkpoint.build(build)
        with pytest.raises(StorageError, match="none of the model's"):
            checkpoint.restore(again, old)
        other = torch.optim.SGD(list(again.parameters())[::-1], lr=0.1)
        with pytest.raises(StorageError, match=r"4\.bias where 0\.weight was"):
            checkpoint.restore(again, other)
        with pytest.raises(StorageError, match="saved without scaler="):
            checkpoint.restore(again, scaler=new)

    def test_another_original_is_refused(self, tmp_path: Path) -> None:
        result = sp.prune(build(), X, sp.Budget(channels=0.5))
        save_checkpoint(tmp_path / "c", result.model, result.plan)
        with pytest.raises(sp.PlanError, match="made for another model"):
            load_checkpoint(tmp_path / "c").build(lambda: nn.Sequential(nn.Linear(6, 4)))

    def test_what_is_no_function_that_builds_the_original(self, tmp_path: Path) -> None:
        result = sp.prune(build(), X, sp.Budget(channels=0.5))
        save_checkpoint(tmp_path / "c", result.model, result.plan)
        checkpoint, original = load_checkpoint(tmp_path / "c"), build()
        before = weights(original)
        with pytest.raises(InputError, match=r"build_model is a Sequential itself: .*lambda: model"):
            checkpoint.build(original)  # type: ignore[arg-type]
        with pytest.raises(InputError, match="build_model is a str: give a function"):
            checkpoint.build("net")  # type: ignore[arg-type]
        with pytest.raises(InputError, match=r"model is a dict; expected a torch\.nn\.Module"):
            checkpoint.build(dict)  # type: ignore[arg-type]
        assert_equal(weights(checkpoint.build(lambda: original)), weights(result.model))
        assert_equal(weights(original), before)  # as the message says it, nothing of it changes

    def test_a_file_that_is_no_training_checkpoint(self, tmp_path: Path) -> None:
        write_archive(tmp_path / "a", {"epoch": 3})
        with pytest.raises(StorageError, match="no checkpoint of a training"):
            load_checkpoint(tmp_path / "a")
        with pytest.raises(StorageError, match="is missing"):
            load_checkpoint(tmp_path / "b")

    def test_an_optimizer_of_another_class(self, tmp_path: Path) -> None:
        model = build()
        save_checkpoint(tmp_path / "c", model, optimizer=optimizer_of(model, "adamw"))
        with pytest.raises(InputError, match="has the state of AdamW, not of SGD"):
            load_checkpoint(tmp_path / "c").restore(model, optimizer_of(model, "sgd"))
