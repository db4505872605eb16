"""Example inputs: every accepted spelling, every refusal, and random inputs of the example's kind."""

from __future__ import annotations

import dataclasses
from collections import UserDict, namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import structprune as sp
from structprune.errors import InputError
from structprune.inputs import (
    batch_size,
    map_tensors,
    normalize_inputs,
    parse_inputs,
    random_like,
    tensors_in,
)

X = torch.arange(6.0).reshape(2, 3)
Pair = namedtuple("Pair", ["left", "right"])


@dataclasses.dataclass
class Boxed:
    value: torch.Tensor
    label: str = "kept"


@pytest.mark.parametrize(
    ("given", "args", "keywords"),
    [
        (X, 1, []),
        ((X,), 1, []),
        ((X, 3), 2, []),
        ({"x": X, "flag": True}, 0, ["x", "flag"]),
        (UserDict(x=X), 0, ["x"]),
        (((X, 2), {"y": X}), 2, ["y"]),
        ((X, {"y": X}), 2, []),
        (([X, X],), 1, []),
        (Pair(X, X), 1, []),
        (Boxed(X), 1, []),
    ],
    ids=[
        "tensor",
        "tuple",
        "tuple-int",
        "dict",
        "mapping",
        "both",
        "dict-arg",
        "list-arg",
        "namedtuple",
        "dataclass",
    ],
)
def test_every_spelling_becomes_args_and_kwargs(given: object, args: int, keywords: list[str]) -> None:
    got_args, got_kwargs = normalize_inputs(given)
    assert len(got_args) == args
    assert list(got_kwargs) == keywords
    assert all(t is X for t in tensors_in((got_args, got_kwargs)))


@pytest.mark.parametrize("given", [[X], {1: X}, (), {}, 3, "1x3", (1, 2)])
def test_what_cannot_be_inputs_is_refused(given: object) -> None:
    with pytest.raises(InputError):
        normalize_inputs(given)


def test_the_list_error_says_how_to_fix_it() -> None:
    with pytest.raises(InputError, match=r"tuple\(inputs\)"):
        normalize_inputs([X, X])


def test_map_tensors_keeps_the_containers() -> None:
    tree = {"a": (X, [X, 1]), "b": Boxed(X), "c": UserDict(k=X), "d": Pair(X, None)}
    got = map_tensors(tree, lambda t: t + 1)
    assert got["b"].label == "kept"
    assert isinstance(got["c"], UserDict)
    assert isinstance(got["d"], Pair)
    assert len(tensors_in(got)) == 5
    assert all(torch.equal(t, X + 1) for t in tensors_in(got))
    assert torch.equal(X, torch.arange(6.0).reshape(2, 3))


def test_batch_size_is_that_of_the_first_tensor_with_dimensions() -> None:
    assert batch_size((torch.tensor(1.0), torch.zeros(5, 2))) == 5
    assert batch_size(torch.tensor(1.0)) == 1


def test_random_like_keeps_kind_and_range_and_changes_the_batch() -> None:
    ids = torch.tensor([[3, 9, 5], [4, 4, 4]])
    example = {
        "x": X * 100,
        "ids": ids,
        "mask": torch.ones(2, 3, dtype=torch.bool),
        "scale": torch.tensor(2.0),
    }
    example["table"] = torch.zeros(7, 2)
    got = random_like(example, batch=64, seed=1)
    assert got["x"].shape == (64, 3)
    assert got["ids"].shape == (64, 3)
    assert got["mask"].shape == (64, 3)
    assert got["table"].shape == (7, 2)
    assert got["scale"].shape == ()
    assert got["ids"].min() >= 3
    assert got["ids"].max() <= 9
    assert got["ids"].dtype == torch.int64
    assert got["mask"].all()
    assert 150 < got["x"].mean() < 350
    assert got["x"].std() > 50


def test_random_like_is_seeded() -> None:
    assert torch.equal(random_like(X, seed=3), random_like(X, seed=3))
    assert not torch.equal(random_like(X, seed=3), random_like(X, seed=4))


def test_random_like_refuses_an_empty_batch() -> None:
    with pytest.raises(InputError, match="batch=0"):
        random_like(X, batch=0)


def test_parse_positional_named_and_bounded() -> None:
    args, kwargs = parse_inputs(["1x3x8x8", "ids=2x16:int64:100", "half=4:float16", "m=1x5:bool"])
    assert args[0].shape == (1, 3, 8, 8)
    assert args[0].dtype == torch.float32
    assert kwargs["ids"].shape == (2, 16)
    assert kwargs["ids"].max() > 1
    assert kwargs["ids"].max() < 100
    assert kwargs["half"].dtype == torch.float16
    assert kwargs["m"].dtype == torch.bool
    assert set(parse_inputs(["64:int64"])[0][0].tolist()) == {0, 1}


@pytest.mark.parametrize(
    "specs",
    [
        [],
        [""],
        ["3x"],
        ["axb"],
        ["1x3:nothing"],
        ["1x3:Tensor"],
        ["0x3"],
        ["1x3:float32:9"],
        ["a=1", "a=1"],
        ["1:int64:0"],
        ["99999x99999x99999"],
    ],
    ids=str,
)
def test_specifications_that_do_not_read(specs: list[str]) -> None:
    with pytest.raises(InputError):
        parse_inputs(specs)


@pytest.mark.parametrize(
    "call", ["score", "verify", "verify pruned", "save", "export", "sparsify", "finalize"]
)
def test_what_is_no_module_is_said(call: str, tmp_path: Path) -> None:
    net, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.zeros(1, 4)
    graph = sp.trace(net, x)
    plan = graph.plan({})
    calls: dict[str, Any] = {
        "score": lambda: sp.score(None, graph),
        "verify": lambda: sp.verify(None, net, plan, x),
        "verify pruned": lambda: sp.verify(net, None, plan, x),
        "save": lambda: sp.save(tmp_path, None, plan),
        "export": lambda: sp.export_onnx(None, x, tmp_path / "x.onnx"),
        "sparsify": lambda: sp.sparsify(None, 0.5),
        "finalize": lambda: sp.finalize(None),
    }
    with pytest.raises(sp.InputError, match=r"expected Module, got NoneType"):
        calls[call]()


@pytest.mark.parametrize("keep", [8, [1.5, 2.0], [True, False], "ab", [[0], [1, 2]]])
def test_channels_are_a_list_of_integers(keep: Any) -> None:
    graph = sp.trace(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.zeros(1, 4))
    with pytest.raises(sp.PlanError, match="group '0'"):
        graph.plan({"0": keep})
