from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hand_plans import hand_plan
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import parametrizations, weight_norm
from torch.testing._internal.two_tensor import TwoTensor

from structprune import storage
from structprune.errors import PlanError, StorageError
from structprune.plan import AttributeEdit, PruningPlan, plan_digest
from structprune.storage import load, load_plans, save
from structprune.surgery import apply_plan
from structprune.tensors import named_tensors


class Net(nn.Module):
    """Conv, norm, depthwise conv, tied linears, a buffer, a cache and a table in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.depth = nn.Conv2d(4, 4, 1, groups=4)
        self.one = nn.Linear(4, 4, bias=False)
        self.two = nn.Linear(4, 4, bias=False)
        self.two.weight = self.one.weight
        self.register_buffer("scale", torch.randn(4))
        self.register_buffer("mask", torch.ones(4), persistent=False)
        self.tables = [torch.randn(4)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.depth(self.norm(self.conv(x))).mean((2, 3)) * self.scale * self.mask * self.tables[0]
        return self.two(self.one(x))


def cut(model: nn.Module, keep: tuple[int, ...]) -> PruningPlan:
    groups = model.get_submodule("depth").groups
    ones = ["conv.weight", "conv.bias", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"]
    ones += ["depth.weight", "depth.bias", "scale", "mask", "tables.0"]
    tensors: dict[str, dict[int, tuple[int, ...]]] = {name: {0: keep} for name in ones}
    tensors["one.weight"] = {0: keep, 1: keep}
    edit = AttributeEdit("depth", ("groups",), groups, len(keep))  # type: ignore[arg-type]
    return hand_plan(model, tensors, [edit])


def pruned() -> tuple[Net, PruningPlan]:
    torch.manual_seed(1)
    model = Net().eval()
    model.norm.running_mean.uniform_()  # type: ignore[union-attr]
    plan = cut(model, (0, 2, 3))
    return apply_plan(model, plan), plan  # type: ignore[return-value]


INPUT = torch.linspace(0, 1, 2 * 3 * 5 * 5).view(2, 3, 5, 5)


def assert_same(left: nn.Module, right: nn.Module) -> None:
    ours, theirs = named_tensors(left), named_tensors(right)
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert torch.equal(left.eval()(INPUT), right.eval()(INPUT))


def test_what_is_loaded_is_what_was_saved(tmp_path: Path) -> None:
    small, plan = pruned()
    save(tmp_path / "new" / "folder", small, plan)
    folder = tmp_path / "new" / "folder"
    assert sorted(path.name for path in folder.iterdir()) == ["model.safetensors", "plan.json"]
    loaded: Any = load(folder, Net)
    assert loaded.training
    assert_same(loaded, small)
    assert str(loaded.eval()) == str(small)
    assert loaded.two.weight is loaded.one.weight
    assert (loaded.depth.groups, loaded.conv.out_channels) == (3, 3)
    assert loaded.conv.weight.requires_grad
    assert load_plans(folder) == (plan,)


def test_tied_weights_and_caches(tmp_path: Path) -> None:
    small, plan = pruned()
    save(tmp_path, small, plan)
    stored = load_file(tmp_path / "model.safetensors")
    assert stored.keys() == named_tensors(small).keys() - {"mask"}
    assert "two.weight" not in stored


def test_loaded_network_trains(tmp_path: Path) -> None:
    small, plan = pruned()
    save(tmp_path, small, plan)
    loaded = load(tmp_path, Net)
    optimizer = torch.optim.SGD(loaded.parameters(), lr=0.1, momentum=0.9)
    before = loaded.get_parameter("conv.weight").detach().clone()
    loaded(INPUT).square().sum().backward()
    optimizer.step()
    assert not torch.equal(loaded.get_parameter("conv.weight"), before)


def test_network_pruned_twice(tmp_path: Path) -> None:
    small, first = pruned()
    second = cut(small, (0, 2))
    smaller = apply_plan(small, second)
    save(tmp_path, smaller, [first, second])
    assert_same(load(tmp_path, Net), smaller)
    assert load_plans(tmp_path) == (first, second)
    with pytest.raises(StorageError, match="save the pruned model with the plan that made it"):
        save(tmp_path, smaller, first)
    with pytest.raises(StorageError, match="plan 2 takes"):
        save(tmp_path, smaller, [second, first])
    assert_same(load(tmp_path, Net), smaller)


def test_dtype_is_the_saved_one(tmp_path: Path) -> None:
    small, plan = pruned()
    save(tmp_path, small.half(), plan)
    loaded = load(tmp_path, Net)
    assert loaded.get_parameter("conv.weight").dtype == torch.float16
    assert loaded.get_buffer("norm.num_batches_tracked").dtype == torch.int64


@pytest.mark.parametrize(
    "dress",
    [parametrizations.weight_norm, weight_norm, parametrizations.spectral_norm],
    ids=["new", "old", "spectral"],
)
def test_normed_weights(dress: Callable[[nn.Module], nn.Module], tmp_path: Path) -> None:
    def build() -> nn.Module:
        return nn.Sequential(dress(nn.Linear(3, 4)), nn.Linear(4, 2))

    model = build().eval()
    plan = hand_plan(model, {"1.weight": {0: (1,)}, "1.bias": {0: (1,)}})
    small = apply_plan(model, plan)
    save(tmp_path, small, plan)
    loaded = load(tmp_path, build).eval()
    assert torch.equal(loaded(torch.ones(1, 3)), small(torch.ones(1, 3)))
    assert torch.equal(loaded[0].weight, small[0].weight)  # type: ignore[index]


def test_model_on_the_meta_device_is_filled(tmp_path: Path) -> None:
    def build() -> nn.Module:
        with torch.device("meta"):
            return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))

    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    plan = hand_plan(model, {"0.weight": {0: (1,)}, "0.bias": {0: (1,)}, "1.weight": {1: (1,)}})
    small = apply_plan(model, plan)
    save(tmp_path, small, plan)
    assert torch.equal(load(tmp_path, build)(torch.ones(1, 3)), small(torch.ones(1, 3)))
    save(tmp_path / "net", *pruned())
    with pytest.raises(StorageError, match=r"mask.*meta device"):
        load(tmp_path / "net", lambda: on_meta(Net))


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return build()


def test_device(tmp_path: Path) -> None:
    save(tmp_path, *pruned())
    assert {tensor.device.type for tensor in load(tmp_path, Net, device="cpu").parameters()} == {"cpu"}


# What must be refused


def rewrite_plan(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    body = json.loads((folder / "plan.json").read_text())
    change(body["plans"][0])
    (folder / "plan.json").write_text(json.dumps(body))


def rewrite_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any], **metadata: str) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"plan": plan_digest(load_plans(folder)), "attributes": "tables.0"} | metadata)


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])


DAMAGE: dict[str, tuple[Callable[[Path], Any], type[Exception], str]] = {
    "no plan": (lambda f: (f / "plan.json").unlink(), StorageError, "no plan.json"),
    "no weights": (
        lambda f: (f / "model.safetensors").unlink(),
        StorageError,
        "model.safetensors is missing",
    ),
    "truncated weights": (truncate, StorageError, "damaged"),
    "empty weights": (lambda f: (f / "model.safetensors").write_bytes(b""), StorageError, "damaged"),
    "pickled weights": (lambda f: torch.save({}, f / "model.safetensors"), StorageError, "damaged"),
    "truncated plan": (lambda f: os.truncate(f / "plan.json", 100), PlanError, "not a pruning plan"),
    "hostile plan": (
        lambda f: rewrite_plan(
            f, lambda p: p["groups"].append({"name": "g", "size": 4, "keep": [[0, 10**12]]})
        ),
        PlanError,
        "group 'g': range",
    ),
    "plan of another save": (
        lambda f: rewrite_plan(f, lambda p: p.update(scope="layer")),
        StorageError,
        "not the plan that model.safetensors was saved with",
    ),
    "weights of another save": (
        lambda f: rewrite_weights(f, lambda t: None, plan="0" * 64),
        StorageError,
        "not the plan that",
    ),
    "a weight of another shape": (
        lambda f: rewrite_weights(f, lambda t: t.update({"conv.bias": torch.ones(2)})),
        StorageError,
        r"'conv.bias' has shape \[2\], the model needs \[3\]",
    ),
    "a weight of another kind": (
        lambda f: rewrite_weights(f, lambda t: t.update({"conv.bias": torch.ones(3, dtype=torch.int64)})),
        StorageError,
        "'conv.bias' is torch.int64",
    ),
    "a weight too few": (
        lambda f: rewrite_weights(f, lambda t: t.pop("conv.bias")),
        StorageError,
        r"lacks \['conv.bias'\]",
    ),
    "a weight too many": (
        lambda f: rewrite_weights(f, lambda t: t.update(more=torch.ones(1))),
        StorageError,
        r"the model lacks \['more'\]",
    ),
}


@pytest.mark.parametrize(("damage", "error", "message"), DAMAGE.values(), ids=DAMAGE.keys())
def test_damaged_folder(
    damage: Callable[[Path], Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    save(tmp_path, *pruned())
    damage(tmp_path)
    with pytest.raises(error, match=message):
        load(tmp_path, Net)


def test_damaged_folder_is_noticed_before_the_model_is_built(tmp_path: Path) -> None:
    save(tmp_path, *pruned())
    truncate(tmp_path)
    with pytest.raises(StorageError):
        load(tmp_path, lambda: pytest.fail("built"))


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="missing"):
        load(tmp_path / "nowhere", Net)


def test_wrong_model(tmp_path: Path) -> None:
    save(tmp_path, *pruned())
    with pytest.raises(PlanError, match="another model"):
        load(tmp_path, lambda: nn.Sequential(nn.Linear(2, 3)))


def test_model_that_is_not_what_the_plan_makes(tmp_path: Path) -> None:
    _, plan = pruned()
    with pytest.raises(StorageError, match=r"'conv.bias'|'conv.weight'"):
        save(tmp_path, Net(), plan)
    assert list(tmp_path.iterdir()) == []


def test_extra_state_is_refused(tmp_path: Path) -> None:
    class Extra(nn.Linear):
        def get_extra_state(self) -> object:
            return {"any": "thing"}

    model = nn.Sequential(Extra(2, 3))
    plan = hand_plan(model, {"0.weight": {1: (0,)}})
    with pytest.raises(StorageError, match="'0' keeps extra state"):
        save(tmp_path, apply_plan(model, plan), plan)


def test_tensors_that_compute_in_their_own_way_are_refused(tmp_path: Path) -> None:
    """As shards are (DTensor); here a pair of tensors that stands for one."""
    model, plan = pruned()
    weight = model.conv.weight.detach()
    model.conv.weight = nn.Parameter(TwoTensor(weight, weight.clone()))
    with pytest.raises(StorageError, match=r"'conv.weight' is a TwoTensor"):
        save(tmp_path / "out", model, plan)
    assert not (tmp_path / "out").exists()


def test_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot save"):
        save(tmp_path / "file", *pruned())


# Interrupted saves


class Interrupted(BaseException):
    pass


def other_net() -> tuple[nn.Module, PruningPlan]:
    torch.manual_seed(2)
    model = Net().eval()
    plan = cut(model, (1, 2))
    return apply_plan(model, plan), plan


@pytest.mark.parametrize("call", ["plans_to_json", "save_file", "sync", "replace 1", "replace 2"])
def test_interrupted_save_leaves_a_whole_network(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, old_plan = pruned()
    save(tmp_path, old, old_plan)
    new, new_plan = other_net()
    interrupt(monkeypatch, call)
    with pytest.raises(Interrupted):
        save(tmp_path, new, new_plan)
    monkeypatch.undo()
    assert_same(load(tmp_path, Net), new if call == "replace 2" else old)
    save(tmp_path, old, old_plan)
    assert_same(load(tmp_path, Net), old)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors", "plan.json"]


def test_two_interrupted_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first is cut off between its renames, so its plan lies aside; the second must not write over it."""
    save(tmp_path, *pruned())
    new, new_plan = other_net()
    for call in ("replace 2", "save_file"):
        interrupt(monkeypatch, call)
        with pytest.raises(Interrupted):
            save(tmp_path, new, new_plan)
        monkeypatch.undo()
    assert_same(load(tmp_path, Net), new)


def test_first_save_interrupted_between_its_renames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small, plan = pruned()
    interrupt(monkeypatch, "replace 2")
    with pytest.raises(Interrupted):
        save(tmp_path, small, plan)
    monkeypatch.undo()
    assert_same(load(tmp_path, Net), small)


def interrupt(monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """Makes a step of the next save raise; "replace 2" is the second rename."""
    name, _, number = call.partition(" ")
    real, left = os.replace, [int(number or 1)]

    def raises(*arguments: Any, **keywords: Any) -> Any:
        left[0] -= 1
        if left[0] <= 0:
            raise Interrupted(call)
        return real(*arguments, **keywords)

    monkeypatch.setattr(storage.os if name == "replace" else storage, name, raises)


def test_nothing_is_pickled(tmp_path: Path) -> None:
    save(tmp_path, *pruned())
    json.loads((tmp_path / "plan.json").read_text())
    header = (tmp_path / "model.safetensors").read_bytes()[8:9]
    assert header == b"{"
