"""What goes into a model and comes out of it, in whatever it is wrapped, from prune to proof."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils import _pytree as pytree

import structprune as sp
from structprune.outputs import output_integers, output_tensors, output_values
from tests.harness import flags
from tests.nets.case import Net, conv, image, row

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
Half = sp.Budget(channels=0.5)
Forward = Callable[..., Any]


class Pair(NamedTuple):
    x: Tensor
    times: int


@dataclasses.dataclass
class Boxed:
    x: Tensor
    times: int = 2
    inner: Any = None


@dataclasses.dataclass(frozen=True)
class Derived:
    x: Tensor
    twice: Tensor = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "twice", self.x * 2)


class Encoding(collections.UserDict):  # type: ignore[type-arg]
    """As tokenizers return it: a mapping whose items are attributes as well."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self.data[name]
        except KeyError:
            raise AttributeError(name) from None


class Plain:
    def __init__(self, x: Tensor) -> None:
        self.x = x
        self.itself = self
        self.nested = {"mask": [torch.ones(8)]}


class Slotted:
    __slots__ = ("x",)

    def __init__(self, x: Tensor) -> None:
        self.x = x


class Registered:
    def __init__(self, x: Tensor, times: int) -> None:
        self.x, self.times = x, times


pytree.register_pytree_node(
    Registered,
    lambda one: ([one.x], one.times),
    lambda children, times: Registered(*children, times),
    serialized_type_name="tests.Registered",
)


def net(forward: Forward) -> nn.Module:
    return Net(forward, one=nn.Linear(8, 12), two=nn.Linear(12, 3))


def core(model: Any, x: Tensor) -> Any:
    return model.two(torch.relu(model.one(x)))


def only_keywords(model: Any, *, x: Tensor, flag: str, unset: None = None) -> Any:
    return core(model, x) if flag == "go" and unset is None else x


X = row(8)
INPUTS: dict[str, tuple[Forward, Callable[[], Any]]] = {
    "nested": (lambda m, d: core(m, d["a"][0]["b"]) * d["n"], lambda: ({"a": [{"b": X()}], "n": 2},)),
    "keyword-only": (only_keywords, lambda: {"x": X(), "flag": "go"}),
    "both": (lambda m, x, y=0, *, z: core(m, x) * y + z.sum(), lambda: ((X(), 2), {"z": X()})),
    "namedtuple": (lambda m, p: core(m, p.x) * p.times, lambda: Pair(X(), 2)),
    "dataclass": (lambda m, d: core(m, d.x + d.inner.x) * d.times, lambda: (Boxed(X(), 3, Boxed(X())),)),
    "derived fields": (lambda m, d: core(m, d.x + d.twice), lambda: (Derived(X()),)),
    "mapping": (lambda m, e: core(m, e.x) * e["times"], lambda: (Encoding(x=X(), times=2),)),
    "mapping of keywords": (lambda m, x, y: core(m, x), lambda: Encoding(x=X(), y=None)),
    "object": (lambda m, o: core(m, o.itself.x * o.nested["mask"][0]), lambda: (Plain(X()),)),
    "slots": (lambda m, o: core(m, o.x), lambda: (Slotted(X()),)),
    "registered": (lambda m, r: core(m, r.x) * r.times, lambda: (Registered(X(), 2),)),
    "list": (lambda m, xs: core(m, torch.stack(xs).sum(0)), lambda: ([X(), X()],)),
    "packed": (
        lambda m, p: core(m, p.data),
        lambda: (pack_sequence([torch.randn(3, 8), torch.randn(2, 8)]),),
    ),
    "array": (lambda m, x, a: core(m, x) * torch.from_numpy(a), lambda: (X(), np.arange(3.0))),
    "sparse": (lambda m, x: core(m, x.to_dense()), lambda: X().to_sparse()),
    "no tensors beside": (
        lambda m, x, *rest: core(m, x.to(rest[0])) * rest[1] if rest[2] and rest[3] is None else x,
        lambda: (X(), torch.device("cpu"), 2.0, True, None, {1, 2}, "text", torch.float32, nn.Identity()),
    ),
}


@pytest.mark.parametrize("name", INPUTS)
def test_inputs_of_every_kind(name: str) -> None:
    forward, inputs = INPUTS[name]
    model, given = net(forward), inputs()
    result = sp.prune(model, given, Half)
    assert result.model.one.weight.shape == (6, 8)
    assert result.report.verify is not None
    assert result.report.verify.tolerance == 1e-9, "the inputs were not taken to float64"


def test_objects_given_stay_as_they_are() -> None:
    given, model = Plain(X()), net(INPUTS["object"][0])
    x, mask = given.x, given.nested["mask"][0]
    sp.prune(model, (given,), Half)
    assert given.x is x
    assert given.itself is given
    assert given.nested["mask"][0] is mask
    assert x.dtype == torch.float32


class Output(collections.OrderedDict):  # type: ignore[type-arg]
    """As transformers return it."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


OUTPUTS: dict[str, Forward] = {
    "nested": lambda y, x: {"y": y, "more": (x.sum(), [x.shape[0], None, "text", 2.5, True, b"raw"])},
    "dataclass": lambda y, x: Boxed(y, inner=[x]),
    "namedtuple": lambda y, x: Pair(y, 2),
    "mapping": lambda y, x: Output(y=y, none=None),
    "encoding": lambda y, x: Encoding(y=y, n=1),
    "object": lambda y, x: Plain(y),
    "slots": lambda y, x: Slotted(y),
    "registered": lambda y, x: Registered(y, 3),
    "packed": lambda y, x: PackedSequence(y, torch.tensor([2, 2])),
    "booleans": lambda y, x: y > 0,
    "positions": lambda y, x: y.argmax(-1),
    "complex numbers": lambda y, x: torch.fft.fft(y),
    "an integer": lambda y, x: int(y.argmax()),
    "a float": lambda y, x: y.sum().item(),
    "a text": lambda y, x: f"{y.sum().item():.4f}",
    "an array": lambda y, x: y.numpy(),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_of_every_kind(name: str) -> None:
    result = sp.prune(net(lambda m, x: OUTPUTS[name](core(m, x), x)), X(), Half)
    assert result.model.one.weight.shape == (6, 8)


@pytest.mark.parametrize(
    "name", [name for name in OUTPUTS if name not in ("booleans", "positions", "packed")]
)
def test_a_wrong_network_shows_in_every_kind_of_output(name: str) -> None:
    model, x = net(lambda m, x: OUTPUTS[name](core(m, x) * 10, x)), X()
    result = sp.prune(model, x, Half, only="one")
    with torch.no_grad():
        result.model.two.bias += torch.tensor([-30.0, 40.0, 1.0])
    with pytest.raises(sp.VerificationError, match="differs from the masked original"):
        sp.verify(model, result.model, result.plan, x)


@pytest.mark.parametrize("other", [lambda y: (y, "b"), lambda y: (y, 2), lambda y: (y, None), lambda y: (y,)])
def test_what_is_no_tensor_is_compared(other: Forward) -> None:
    model, x = net(lambda m, x: (core(m, x), "a")), X()
    result = sp.prune(model, x, Half)
    result.model.run = lambda m, x: other(core(m, x))
    with pytest.raises(sp.VerificationError, match="differs from the masked original by inf"):
        sp.verify(model, result.model, result.plan, x)


@pytest.mark.parametrize(
    "stated", [lambda h: h.shape[1], lambda h: {"size": h.shape}, lambda h: Boxed(h.sum(), h.size(1))]
)
def test_a_width_that_the_caller_sees_must_stay(stated: Forward) -> None:
    def forward(model: Any, x: Tensor) -> Any:
        hidden = torch.relu(model.one(x))
        return model.two(hidden), stated(hidden)

    (group,) = [group for group in sp.trace(net(forward), X()).groups if group.size == 12]
    assert group.frozen is not None
    assert "uses this size, 12, as a number" in str(group.frozen)


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: core(m, x)[:0],
        lambda m, x: (core(m, x).sum(), None)[1:],
        lambda m, x: (y for y in [core(m, x)]),
    ],
    ids=["empty", "none", "generator"],
)
def test_nothing_is_proven_by_nothing(forward: Forward) -> None:
    model, x = net(forward), X()
    plan = sp.trace(net(core), X()).plan({"one": range(6)})
    with pytest.raises(
        sp.VerificationError, match="returns nothing on the example inputs that could be compared"
    ):
        sp.verify(model, sp.apply_plan(model, plan), plan, x)


def test_values_of_plain_objects_are_their_own_matter() -> None:
    one = {"a": torch.ones(2), "b": Plain(torch.zeros(1)), "c": [3, "x", None, 1.5]}
    assert len(output_tensors(one)) == 3
    assert [tuple(tensor.shape) for tensor in output_values(one)] == [(2,), (1,), (8,), (1,), (1,), (0,), ()]
    assert output_integers(Boxed(torch.ones(1), 5, Slotted(torch.ones(1)))) == [5]


# -- models that read values, in every type of number -----------------------------------------------------------------


def by_item(model: Any, x: Tensor) -> Any:
    return core(model, x) if x.sum().item() > -1e9 else x


def by_hidden(model: Any, x: Tensor) -> Any:
    return core(model, x) if bool(model.two(torch.relu(model.one(x))).isfinite().all()) else x


def by_loop(model: Any, x: Tensor) -> Any:
    return sum(core(model, x) * value for value in (x[:2, 0] > -9).tolist())


def by_mask(model: Any, x: Tensor) -> Any:
    return core(model, x[x[:, 0] > -9])


def by_numpy(model: Any, x: Tensor) -> Any:
    return core(model, x) * torch.from_numpy(x.numpy()[:, :3].copy())


@pytest.mark.parametrize(
    "forward", [by_item, by_hidden, by_loop, by_mask, by_numpy], ids=lambda one: one.__name__
)
def test_models_that_read_values(forward: Forward) -> None:
    assert sp.prune(net(forward), X(), Half).model.one.weight.shape == (6, 8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.complex64])
def test_every_type_of_number(dtype: torch.dtype) -> None:
    model = Net(
        lambda m, x: m.two(m.one(x)), one=nn.Linear(8, 12, dtype=dtype), two=nn.Linear(12, 3, dtype=dtype)
    )
    x = X().to(dtype)
    result = sp.prune(model, x, Half)
    assert {parameter.dtype for parameter in result.model.parameters()} == {dtype}
    assert result.model(x).dtype == dtype


def test_mixed_types_and_autocast() -> None:
    def mixed(model: Any, x: Tensor) -> Any:
        return model.two(torch.relu(model.one(x.bfloat16())).float())

    model = Net(mixed, one=nn.Linear(8, 12).bfloat16(), two=nn.Linear(12, 3))
    small = sp.prune(model, X(), Half).model
    assert [parameter.dtype for parameter in small.parameters()] == [torch.bfloat16] * 2 + [torch.float32] * 2

    def autocast(model: Any, x: Tensor) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return core(model, x)

    assert sp.prune(net(autocast), X(), Half).model.one.weight.dtype == torch.float32


@pytest.mark.parametrize("training", [True, False])
def test_flags_stay_module_by_module(training: bool) -> None:
    model = nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.Dropout(), conv(8, 4)).train(training)
    model[1].train(not training)
    model[0].requires_grad_(False)
    before, state = flags(model), {name: value.clone() for name, value in model.state_dict().items()}
    for engine in ("structprune", "torch-pruning"):
        result = sp.prune(model, image()(), Half, engine=engine)
        assert flags(model) == flags(result.model) == before
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_inputs_that_ask_for_gradients_or_forbid_them() -> None:
    asking = X().requires_grad_()
    with torch.inference_mode():
        forbidding = X() + 0
    for x in (asking, forbidding, X()[:1].expand(4, 8)):
        assert sp.prune(net(core), x, Half).model.one.weight.shape == (6, 8)
    assert asking.grad is None


def test_mappings_are_kept(tmp_path: Mapping[str, Any]) -> None:
    given = Encoding(x=X(), y=None)
    sp.prune(net(lambda m, x, y: core(m, x)), given, Half)
    assert list(given) == ["x", "y"]
