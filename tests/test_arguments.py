"""Wrong types are refused by name where they are given, by every public function, and right ones are not."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import structprune as sp
from structprune.arguments import typed

FUNCTIONS = {
    name: getattr(package, name)
    for package in (sp, sp.train)
    for name in package.__all__
    if inspect.isfunction(getattr(package, name))
    and name
    not in ("rule", "empty_weights", "transformers_callback", "lightning_callback")  # take no such argument
}
ANYTHING = ("Any", "Accelerator | None")  # an accelerator's own type is not there without its package
CASES = [
    (name, argument.name)
    for name, function in FUNCTIONS.items()
    for argument in inspect.signature(function).parameters.values()
    if argument.annotation not in ANYTHING and argument.kind is not inspect.Parameter.VAR_KEYWORD
]


@pytest.mark.parametrize(("name", "argument"), CASES, ids=[f"{name}-{argument}" for name, argument in CASES])
def test_every_public_function_refuses_a_wrong_type_by_name(name: str, argument: str) -> None:
    function = FUNCTIONS[name]
    needed = [p.name for p in inspect.signature(function).parameters.values() if p.default is p.empty]
    before = dict.fromkeys(needed[: needed.index(argument)]) if argument in needed else {}
    others = {other: None for other in needed if other not in before}
    with pytest.raises(sp.InputError, match=rf"{name}\((\w+)=.*\): expected .*, got \w+"):
        function(**{**before, **others, argument: object()})


class Named(Protocol):
    title: str

    @property
    def size(self) -> int: ...


class Book:
    title, size = "a", 1


class Rows:
    def __getitem__(self, row: int) -> int:
        return [1, 2][row]


@typed
def sample(
    number: float = 1.0,
    count: int = 1,
    flag: bool = False,
    path: str | Path | None = None,
    choice: Literal["a", "b"] = "a",
    items: Iterable[int] = (),
    table: Mapping[str, float | Sequence[float]] | None = None,
    pair: tuple[int, str] = (1, "a"),
    many: tuple[int, ...] = (),
    call: Callable[[int], int] | None = None,
    thing: Named | None = None,
    examples: Dataset[Any] | None = None,
    anything: Any = None,
    kind: type[nn.Module] = nn.Linear,
) -> dict[str, Any]:
    return dict(locals())


RIGHT: list[tuple[str, Any]] = [
    ("number", 3),
    ("number", np.float32(0.5)),
    ("number", np.int64(2)),
    ("count", np.int64(2)),
    ("flag", np.bool_(True)),
    ("path", Path("a")),
    ("items", [1, 2]),
    ("items", (one for one in "ab")),  # not read, so not known
    ("items", Rows()),
    ("table", {"a": 1, "b": [0.5]}),
    ("many", (1, 2, 3)),
    ("call", len),
    ("thing", Book()),
    ("examples", TensorDataset(torch.zeros(1))),
    ("examples", Rows()),  # torch's loaders go through whatever can be indexed
    ("anything", object()),
    ("kind", nn.Conv2d),
]
WRONG: list[tuple[str, Any]] = [
    ("number", "0.5"),
    ("number", True),
    ("number", None),
    ("number", torch.tensor(0.5)),
    ("count", 1.0),
    ("count", True),
    ("count", np.float64(1)),
    ("flag", 1),
    ("path", 3),
    ("choice", "c"),
    ("items", 5),
    ("items", [1, "b"]),
    ("table", {"a": "b"}),
    ("table", {1: 1.0}),
    ("table", [("a", 1.0)]),
    ("pair", (1, 2)),
    ("pair", (1, "a", 2)),
    ("many", (1, "a")),
    ("call", 3),
    ("thing", "a"),
    ("examples", DataLoader(TensorDataset(torch.zeros(1)))),
    ("kind", nn.Linear(1, 1)),
]


@pytest.mark.parametrize(("name", "value"), RIGHT, ids=[name for name, _ in RIGHT])
def test_what_the_annotation_allows_passes_as_it_is(name: str, value: Any) -> None:
    given = sample(**{name: value})[name]
    if isinstance(value, np.generic):
        assert given == value
        assert type(given) in (bool, int, float)
    else:
        assert given is value


@pytest.mark.parametrize(("name", "value"), WRONG, ids=[name for name, _ in WRONG])
def test_what_the_annotation_excludes_is_refused(name: str, value: Any) -> None:
    with pytest.raises(sp.InputError, match=rf"^sample\({name}=.*\): expected "):
        sample(**{name: value})


def test_the_message_says_what_is_wrong_in_a_list() -> None:
    with pytest.raises(sp.InputError, match=r"expected Iterable\[int\], got list of int and str$"):
        sample(items=[1, "b"])


def test_an_iterator_is_not_read() -> None:
    def items() -> Iterator[int]:
        yield 1

    given = items()
    assert list(sample(items=given)["items"]) == [1]


def test_what_python_itself_refuses_keeps_its_message_and_the_function_its_own_face() -> None:
    with pytest.raises(TypeError, match=r"sample\(\) got an unexpected keyword argument 'numbr'"):
        sample(numbr=1)  # type: ignore[call-arg]
    assert list(inspect.signature(sp.prune).parameters)[:3] == ["model", "example_inputs", "budget"]
    assert "smaller network" in (sp.prune.__doc__ or "")


def test_the_model_in_place_of_its_builder_is_explained(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    result = sp.prune(net, torch.zeros(1, 4), sp.Budget(channels=0.5))
    sp.save(tmp_path, result.model, result.plan)
    with pytest.raises(sp.InputError, match="give a function that builds"):
        sp.load(tmp_path, net)
    with pytest.raises(sp.InputError, match=r"expected a torch\.nn\.Module"):
        sp.load(tmp_path, lambda: None)  # type: ignore[arg-type, return-value]
    with pytest.raises(sp.InputError, match="device='nowhere'"):
        sp.load(tmp_path, lambda: net, device="nowhere")


def test_numbers_of_numpy_are_numbers() -> None:
    assert sp.Runtime("torch", threads=np.int64(2), batch=np.int32(4)).settings() == {
        "runtime": "torch",
        "threads": 2,
        "batch": 4,
    }
    assert type(sp.Runtime(threads=np.int64(2)).threads) is int
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    cut = sp.prune(net, torch.zeros(1, 4), sp.Budget(channels=np.float32(0.5)), multiple_of=np.int64(4))
    assert cut.model.get_submodule("0").weight.shape == (4, 4)
    sp.measure_latency(
        net, torch.zeros(1, 4), runtime="torch", threads=np.int64(1), repeats=np.int64(1), min_time=0
    )


def test_a_warning_still_points_at_the_line_of_the_caller(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import torch\nfrom torch import nn\nimport structprune as sp\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n"
        "        self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 2), nn.Linear(3, 3)\n"
        "    def forward(self, x):\n        return self.b(self.a(x))\n"
        "sp.prune(Net(), torch.zeros(1, 4), sp.Budget(macs=0.5))\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=True, timeout=120
    )
    assert "script.py:10: UserWarning" in done.stderr
