"""Plans applied to files: bit for bit what `apply_plan` makes in memory, one tensor at a time, or nothing at all."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hand_plans import hand_plan
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

import structprune as sp
from structprune import checkpoint, streaming
from structprune.checkpoint import open_checkpoint
from structprune.errors import InputError, PlanError, StorageError
from structprune.tensors import named_tensors
from tests.nets.by_row import FREE

INPUTS = {"input_ids": torch.arange(12).view(1, 12), "use_cache": False}


def config(tied: bool = False) -> Any:
    import transformers

    return transformers.LlamaConfig(
        vocab_size=48,
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
    )


def llama(settings: Any) -> nn.Module:
    import transformers

    return transformers.LlamaForCausalLM(settings).eval()


@pytest.fixture(scope="module", params=["untied", "tied"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    """A language model of random weights, and the folder with its shards as its own package writes them."""
    torch.manual_seed(3)
    model = llama(config(request.param == "tied")).bfloat16()
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder, max_shard_size="10KB")
    assert len(list(folder.glob("*.safetensors"))) >= 3
    return model, folder


def planned(folder: Path) -> tuple[nn.Module, sp.PruningPlan]:
    """The model without its weights, and a plan for it whose scores come from the files."""
    import transformers

    with sp.empty_weights():
        model = llama(transformers.LlamaConfig.from_pretrained(folder)).bfloat16()
    graph = sp.trace(model, INPUTS)
    scores = sp.score(model, graph, "l2", weights=folder)
    return model, sp.select(graph, scores, sp.Budget(params=0.5), criterion="l2")


def assert_same_network(one: nn.Module, other: nn.Module) -> None:
    ours, theirs = named_tensors(one), named_tensors(other)
    assert list(ours) == list(theirs)
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype
        assert torch.equal(tensor, theirs[name]), name


def test_files_are_cut_as_the_model_is(saved: tuple[nn.Module, Path], tmp_path: Path) -> None:
    model, source = saved
    _, plan = planned(source)
    small = sp.apply_plan(model, plan)
    report = sp.apply_plan_to_files(source, plan, tmp_path / "small")
    whole, cut = open_checkpoint(source), open_checkpoint(tmp_path / "small")
    assert {n: e.file for n, e in cut.entries.items()} == {n: e.file for n, e in whole.entries.items()}
    expected = {name: small.state_dict()[name] for name in whole.entries}
    for name, tensor in cut.tensors(cut.entries):
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, expected[name]), name
    sizes = [
        sum(t.nbytes for t in tensors.values()) for tensors in (dict(whole.tensors(whole.entries)), expected)
    ]
    assert [report.bytes_before, report.bytes_after] == sizes
    assert report.cut == len(plan.tensors) - 1  # what is not stored: rotary frequencies
    assert report.left_out == ()
    index = json.loads((tmp_path / "small" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sizes[1]
    assert index["metadata"]["total_parameters"] == sum(p.numel() for p in small.parameters())
    assert (tmp_path / "small" / "config.json").read_bytes() == (source / "config.json").read_bytes()
    assert sp.load_plans(tmp_path / "small") == (plan,)


def test_what_was_cut_in_files_loads_without_the_originals_memory(
    saved: tuple[nn.Module, Path], tmp_path: Path
) -> None:
    import transformers

    model, source = saved
    _, plan = planned(source)
    sp.apply_plan_to_files(source, plan, tmp_path / "small")

    def build() -> nn.Module:
        with sp.empty_weights():
            return llama(transformers.LlamaConfig.from_pretrained(tmp_path / "small")).bfloat16()

    with Live() as live:
        loaded = sp.load(tmp_path / "small", build)
    expected = sp.apply_plan(model, plan)
    assert_same_network(loaded, expected)
    assert torch.equal(loaded(**INPUTS).logits, expected(**INPUTS).logits)
    sizes = [sum(p.nbytes for p in each.parameters()) for each in (expected, model)]
    assert sizes[0] <= live.peak < sizes[0] + 0.25 * sizes[1]  # the small one, and what is under construction


def test_scores_from_files_are_the_scores_in_memory(saved: tuple[nn.Module, Path]) -> None:
    model, source = saved
    graph = sp.trace(model, INPUTS)
    with sp.empty_weights():
        empty = llama(config(model.config.tie_word_embeddings))  # type: ignore[union-attr]
    assert all(parameter.is_meta for parameter in empty.parameters())
    for criterion in ("l1", "l2", "linf", "bn_scale"):
        expected = sp.score(model, graph, criterion)
        found = sp.score(empty, sp.trace(empty, INPUTS), criterion, weights=source)
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            np.testing.assert_array_equal(found[name], values)


def test_chance_needs_no_weights() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    graph = sp.trace(model, torch.zeros(1, 4))
    assert sp.score(model, graph, "random", seed=1)["0"].shape == (8,)
    with pytest.raises(InputError, match=r"'0.weight' is on the meta device.*weights=folder"):
        sp.score(model, graph, "l2")


@pytest.mark.parametrize("name", FREE)
def test_choices_by_row_are_cut_in_files_too(name: str, tmp_path: Path) -> None:
    model, x = FREE[name][0]()
    graph = sp.trace(model, x)
    by_row = [group.name for group in graph.groups if group.by and group.frozen is None]
    plan = sp.select(graph, sp.score(model, graph), sp.Budget(channels=0.5), only=by_row)
    assert any(group.by for group in plan.groups)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    sp.apply_plan_to_files(tmp_path, plan, tmp_path / "small")
    small = load_file(tmp_path / "small" / "model.safetensors")
    for tensor_name, tensor in sp.apply_plan(model, plan).state_dict().items():
        assert torch.equal(small[tensor_name], tensor), tensor_name


# Memory


class Live(TorchDispatchMode):
    """Counts the bytes of tensors that operations make and that are still there; `peak` is the most at once."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: Any = WeakIdKeyDictionary()
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor) and not tensor.is_meta:
                self.storages[tensor.untyped_storage()] = tensor.untyped_storage().nbytes()
        self.peak = max(self.peak, sum(self.storages.values()))
        return out


ROWS = COLUMNS = 512  # a tensor is large beside what Python itself needs
NBYTES = 4 * ROWS * COLUMNS


def stack(depth: int = 12) -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(ROWS, COLUMNS, bias=False) for _ in range(depth)))


def test_memory_is_that_of_one_tensor(tmp_path: Path) -> None:
    model = stack()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    kept = tuple(range(ROWS // 2))
    plan = hand_plan(model, {f"{i}.weight": {0: kept, 1: kept} for i in range(1, 11)})
    del model
    sp.apply_plan_to_files(tmp_path, plan, tmp_path / "first")  # what is imported then stays in memory
    tracemalloc.start()
    with Live() as live:
        sp.apply_plan_to_files(tmp_path, plan, tmp_path / "small")
    beside_tensors = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert live.peak <= 1.76 * NBYTES  # a tensor as it lies in the file, half of it, and half of that
    assert beside_tensors < NBYTES


def test_scoring_memory_does_not_grow_with_the_network(tmp_path: Path) -> None:
    peaks = []
    for depth in (2, 12):
        model = stack(depth)
        graph = sp.trace(model, torch.zeros(1, ROWS))
        folder = tmp_path / str(depth)
        folder.mkdir()
        save_file(model.state_dict(), folder / "model.safetensors")
        with Live() as live:
            sp.score(model.to("meta"), graph, "l2", weights=folder)
        peaks.append(live.peak)
    assert peaks[1] < 1.2 * peaks[0]


# What is kept of a file


_CONTENT = torch.arange(4 * 6 * 8, dtype=torch.uint8).view(4, 6, 8)
# fmt: off
_TYPES = [
    "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float8_e4m3fn", "float8_e5m2",
    "bfloat16", "float16", "float32", "float64", "complex64",
]
# fmt: on
MIXED = {
    **{f"of {name}": _CONTENT.clone().view(getattr(torch, name)) for name in _TYPES},
    "of bool": _CONTENT[..., 0] > 90,
    "scalar": torch.tensor(3.5),
    "empty": torch.zeros(4, 0),
}


class Mixed(nn.Module):
    """Tensors of all types, a scalar and an empty one among them."""

    def __init__(self) -> None:
        super().__init__()
        for name, tensor in MIXED.items():
            self.register_buffer(name, tensor.clone())


def raw(tensor: torch.Tensor) -> np.ndarray:
    """The bytes of each element, uint8 [*shape, bytes]."""
    flat = tensor.contiguous().flatten().view(torch.uint8).numpy()
    return flat.reshape(*tensor.shape, tensor.element_size())


def test_every_type_keeps_its_bits(tmp_path: Path) -> None:
    save_file(MIXED, tmp_path / "net.safetensors", {"format": "pt", "made by": "müller"})
    cut = {name: {0: (0, 2, 3), 1: (1, 5)} for name in MIXED if name.startswith("of ")}
    plan = hand_plan(Mixed(), {**cut, "empty": {0: (1,)}})
    sp.apply_plan_to_files(tmp_path / "net.safetensors", plan, tmp_path / "small")
    found = load_file(tmp_path / "small" / "model.safetensors")
    assert {name: tensor.dtype for name, tensor in found.items()} == {n: t.dtype for n, t in MIXED.items()}
    for name in cut:
        np.testing.assert_array_equal(raw(found[name]), raw(MIXED[name])[[0, 2, 3]][:, [1, 5]])
    assert found["empty"].shape == (1, 0)
    assert found["scalar"] == 3.5
    with safe_open(tmp_path / "small" / "model.safetensors", "pt") as file:
        assert file.metadata()["made by"] == "müller"
        assert set(file.metadata()) == {"format", "made by", "plan"}


def net() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))


def net_plan(model: nn.Module) -> sp.PruningPlan:
    return hand_plan(model, {"0.weight": {0: (1, 3)}, "0.bias": {0: (1, 3)}, "2.weight": {1: (1, 3)}})


def tied_net() -> nn.Module:
    model = net()
    model[4] = nn.Linear(6, 6, bias=False)  # type: ignore[operator]
    model[4].weight = model[2].weight  # type: ignore[index]
    return model.append(nn.Linear(6, 2))  # type: ignore[operator, no-any-return]


def empty_tied_net() -> nn.Module:
    with sp.empty_weights():
        return tied_net()


def tied_plan(model: nn.Module) -> sp.PruningPlan:
    out = {name: {0: (1, 3)} for name in ("0.weight", "0.bias", "2.bias")}
    return hand_plan(model, {**out, "2.weight": {0: (1, 3), 1: (1, 3)}, "5.weight": {1: (1, 3)}})


def write(folder: Path, tensors: dict[str, torch.Tensor], **metadata: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: tensor.clone() for name, tensor in tensors.items()}, folder / "model.safetensors", metadata
    )
    return folder


def test_a_network_pruned_before_keeps_all_its_plans(tmp_path: Path) -> None:
    model = net()
    first = net_plan(model)
    small = sp.apply_plan(model, first)
    sp.save(tmp_path / "once", small, first)
    second = hand_plan(
        small, {"2.weight": {0: (0, 1, 4)}, "2.bias": {0: (0, 1, 4)}, "4.weight": {1: (0, 1, 4)}}
    )
    sp.apply_plan_to_files(tmp_path / "once", second, tmp_path / "twice")
    assert sp.load_plans(tmp_path / "twice") == (first, second)
    assert_same_network(sp.load(tmp_path / "twice", net), sp.apply_plan(small, second))


def test_tied_tensors_under_other_names_and_leftovers_need_the_model(tmp_path: Path) -> None:
    model = tied_net()
    plan, both = tied_plan(model), model.state_dict()
    other = {name: tensor for name, tensor in both.items() if name != "2.weight"}
    small = sp.apply_plan(model, plan)
    for case, tensors in (("other", other), ("both", both), ("old", {**both, "0.inv_freq": torch.ones(2)})):
        source, target = write(tmp_path / case, tensors), tmp_path / f"{case}-small"
        with pytest.raises(PlanError, match="give that model="):
            sp.apply_plan_to_files(source, plan, target)
        report = sp.apply_plan_to_files(source, plan, target, model=empty_tied_net())
        assert report.left_out == (("0.inv_freq",) if case == "old" else ())
        assert_same_network(sp.load(target, tied_net), small)
    untied = write(tmp_path / "untied", {**both, "4.weight": torch.zeros(6, 6)})
    with pytest.raises(
        StorageError, match=r"'2.weight' and '4.weight' are one tensor in the model, and differ"
    ):
        sp.apply_plan_to_files(untied, plan, tmp_path / "small", model=model)
    graph = sp.trace(model, torch.ones(1, 4))
    scores = sp.score(empty_tied_net(), graph, weights=tmp_path / "other")
    np.testing.assert_array_equal(scores["0"], sp.score(model, graph)["0"])


# What does not fit


def state(**change: torch.Tensor | None) -> dict[str, torch.Tensor]:
    found = {**net().state_dict(), **{name.replace("_", "."): tensor for name, tensor in change.items()}}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


UNFIT: dict[str, tuple[dict[str, torch.Tensor], str]] = {
    "another shape": (state(**{"0_bias": torch.ones(7)}), r"'0.bias' has shape \[7\], the plan is for \[6\]"),
    "a shape that the plan leaves whole": (
        state(**{"4_bias": torch.ones(7)}),
        "does not hold exactly the state",
    ),
    "a tensor too few": (state(**{"0_bias": None}), "it lacks '0.bias'. Trace the model"),
    "a tensor too many": (state(more=torch.ones(1)), "does not hold exactly the state"),
    "names with a prefix": (
        {f"model.{name}": tensor for name, tensor in state().items()},
        r"it lacks '0.weight' \(and has 'model.0.weight'\)",
    ),
}


@pytest.mark.parametrize(("tensors", "message"), UNFIT.values(), ids=UNFIT.keys())
def test_weights_of_another_model_are_refused_before_anything_is_written(
    tensors: dict[str, torch.Tensor], message: str, tmp_path: Path
) -> None:
    source = write(tmp_path / "source", tensors)
    with pytest.raises(PlanError, match=message):
        sp.apply_plan_to_files(source, net_plan(net()), tmp_path / "small")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_with_the_model_what_lacks_is_named(tmp_path: Path) -> None:
    source = write(tmp_path / "source", state(**{"4_bias": None}))
    with pytest.raises(StorageError, match=r"lacks \['4.bias'\]"):
        sp.apply_plan_to_files(source, net_plan(net()), tmp_path / "small", model=net())
    with pytest.raises(InputError, match=r"lacks 1 parameters of the model, such as '4.bias'"):
        sp.score(net(), sp.trace(net(), torch.ones(1, 4)), weights=source)
    write(source, state(**{"4_bias": torch.ones(7)}))
    with pytest.raises(InputError, match=r"'4.bias' has shape \[7\], the model's is \[3\]"):
        sp.score(net(), sp.trace(net(), torch.ones(1, 4)), weights=source)


def sharded(folder: Path) -> Path:
    folder.mkdir()
    parts = {
        "a.safetensors": ("0.weight", "0.bias"),
        "b.safetensors": ("2.weight", "2.bias", "4.weight", "4.bias"),
    }
    for file, names in parts.items():
        save_file({name: state()[name] for name in names}, folder / file)
    places = {name: file for file, names in parts.items() for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


def change_index(folder: Path, change: Callable[[dict[str, str]], Any]) -> None:
    path = folder / "model.safetensors.index.json"
    content = json.loads(path.read_text())
    change(content["weight_map"])
    path.write_text(json.dumps(content))


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a shard is missing": (lambda f: (f / "b.safetensors").unlink(), "b.safetensors is missing"),
    "a shard is cut off": (
        lambda f: (f / "b.safetensors").write_bytes(b"12345678"),
        "b.safetensors.*damaged",
    ),
    "no JSON": (
        lambda f: (f / "model.safetensors.index.json").write_text("{"),
        "cannot be read as the index",
    ),
    "no map": (
        lambda f: (f / "model.safetensors.index.json").write_text("[]"),
        "cannot be read as the index",
    ),
    "an empty map": (lambda f: change_index(f, lambda m: m.clear()), "names no tensors"),
    "a path": (
        lambda f: change_index(f, lambda m: m.update({"4.bias": "../b.safetensors"})),
        "beside the index",
    ),
    "no file name": (lambda f: change_index(f, lambda m: m.update({"4.bias": 3})), "beside the index"),
    "a name too few": (
        lambda f: change_index(f, lambda m: m.pop("4.bias")),
        "does not say that b.safetensors holds",
    ),
    "a name too many": (
        lambda f: change_index(f, lambda m: m.update(x="b.safetensors")),
        "holds 'x'; it does not",
    ),
    "nothing": (lambda f: [path.unlink() for path in f.iterdir()], "model.safetensors is missing"),
    "no folder": (lambda f: f.rename(f.parent / "gone"), "source is missing"),
    "two indexes": (
        lambda f: (f / "other.safetensors.index.json").write_text("{}"),
        "holds model.safetensors.index.json, other.safetensors.index.json: name the file",
    ),
}


@pytest.mark.parametrize(("damage", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_broken_sources_are_named(damage: Callable[[Path], Any], message: str, tmp_path: Path) -> None:
    source = sharded(tmp_path / "source")
    damage(source)
    with pytest.raises(StorageError, match=message):
        sp.apply_plan_to_files(source, net_plan(net()), tmp_path / "small")
    assert not (tmp_path / "small").exists()


def test_shards_of_two_targets_do_not_load_together(tmp_path: Path) -> None:
    source, plan = sharded(tmp_path / "source"), net_plan(net())
    sp.apply_plan_to_files(source, plan, tmp_path / "one")
    cut = {"0.weight": {0: (0, 5)}, "0.bias": {0: (0, 5)}, "2.weight": {1: (0, 5)}}
    sp.apply_plan_to_files(source, hand_plan(net(), cut), tmp_path / "two")
    (tmp_path / "two" / "b.safetensors").rename(tmp_path / "one" / "b.safetensors")
    with pytest.raises(StorageError, match=r"not the plan that model.safetensors.index.json was saved with"):
        sp.load(tmp_path / "one", net)


def test_a_target_that_exists_is_left_as_it_is(tmp_path: Path) -> None:
    source, plan = sharded(tmp_path / "source"), net_plan(net())
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "mine.txt").write_text("mine")
    for target in (tmp_path / "small", source, source / "a.safetensors"):
        with pytest.raises(StorageError, match="exists"):
            sp.apply_plan_to_files(source, plan, target)
    assert [path.name for path in (tmp_path / "small").iterdir()] == ["mine.txt"]
    (tmp_path / "small" / "mine.txt").unlink()
    sp.apply_plan_to_files(source, plan, tmp_path / "small")  # an empty folder may have been made for it
    assert_same_network(sp.load(tmp_path / "small", net), sp.apply_plan(net(), plan))


def test_types_without_whole_bytes_are_refused(tmp_path: Path) -> None:
    header = json.dumps({"x": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}}).encode()
    header += b" " * (-len(header) % 8)
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"ab")
    model = nn.Module()
    model.register_buffer("x", torch.zeros(4))
    with pytest.raises(StorageError, match="holds F4: only types of whole bytes"):
        sp.apply_plan_to_files(tmp_path, hand_plan(model, {"x": {0: (1,)}}), tmp_path / "small")


# Interrupted work


def calls(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, number: int) -> None:
    """Makes the given call of a function raise what Ctrl-C raises."""
    real, left = getattr(module, name), [number]

    def raises(*arguments: Any, **keywords: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return real(*arguments, **keywords)

    monkeypatch.setattr(module, name, raises)


@pytest.mark.parametrize(
    ("name", "number"),
    [("plans_to_json", 1), ("write_safetensors", 2), ("_kept", 5), ("_index", 1), ("sync", 1)],
)
def test_interrupted_work_leaves_nothing(
    name: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = sharded(tmp_path / "source")
    calls(monkeypatch, streaming, name, number)
    with pytest.raises(KeyboardInterrupt):
        sp.apply_plan_to_files(source, net_plan(net()), tmp_path / "small")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


KILLED = """
import os, signal, sys
import structprune as sp
from structprune import streaming
real, left = streaming._kept, [4]
def kept(*arguments):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments)
streaming._kept = kept
sp.apply_plan_to_files(sys.argv[1], sp.PruningPlan.from_json(open(sys.argv[2]).read()), sys.argv[3])
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no such signal here")
def test_killed_work_leaves_no_target_and_can_be_done_again(tmp_path: Path) -> None:
    source, plan = sharded(tmp_path / "source"), net_plan(net())
    (tmp_path / "plan.json").write_text(plan.to_json())
    arguments = [str(source), str(tmp_path / "plan.json"), str(tmp_path / "small")]
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments], check=False, env=_environment())
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "small").exists()
    assert len(list(tmp_path.glob(".small.*.partial"))) == 1
    sp.apply_plan_to_files(source, plan, tmp_path / "small")
    assert_same_network(sp.load(tmp_path / "small", net), sp.apply_plan(net(), plan))


def _environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


# Models without weights


class Odd(nn.Module):
    """One parameter in two places, before either is registered, and buffers that no file holds."""

    def __init__(self) -> None:
        super().__init__()
        shared = nn.Parameter(torch.randn(3, 3), requires_grad=False)
        self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)
        self.one.weight = self.two.weight = shared
        self.register_buffer("steps", torch.arange(3), persistent=False)


@pytest.fixture
def odd() -> Iterator[Odd]:
    with sp.empty_weights():
        yield Odd()


def test_empty_weights_keep_ties_flags_and_buffers(odd: Odd) -> None:
    assert odd.one.weight is odd.two.weight
    assert odd.one.weight.is_meta
    assert not odd.one.weight.requires_grad
    assert odd.one.bias.is_meta
    assert odd.one.bias.requires_grad
    assert torch.equal(odd.get_buffer("steps"), torch.arange(3))


def test_empty_weights_end_with_their_block() -> None:
    with pytest.raises(KeyError), sp.empty_weights():
        raise KeyError
    assert not nn.Linear(2, 2).weight.is_meta


def test_a_model_built_wholly_on_meta_is_told_how_to_build_it(tmp_path: Path) -> None:
    model = Odd()
    plan = hand_plan(model, {"one.bias": {0: (0, 1, 2)}})
    sp.save(tmp_path, sp.apply_plan(model, plan), plan)

    def build() -> nn.Module:
        with torch.device("meta"):
            return Odd()

    with pytest.raises(StorageError, match=r"\['steps'\] without values.*structprune.empty_weights\(\)"):
        sp.load(tmp_path, build)


def test_the_table_of_types_has_every_whole_byte_type_that_torch_can_save(tmp_path: Path) -> None:
    save_file(MIXED, tmp_path / "model.safetensors")
    assert {entry.dtype for entry in open_checkpoint(tmp_path).entries.values()} <= checkpoint._BYTES.keys()
