"""The proof finds planted mistakes, names the layer, and leaves both models alone."""

from __future__ import annotations

import copy
import dataclasses
import importlib
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import structprune as sp
from structprune.rules import lookup
from tests.nets.case import Net, conv, image, row, tokens

Corrupt = Callable[[Any], None]


def stack() -> nn.Module:
    layers = [conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 12), nn.BatchNorm2d(12), nn.Sigmoid()]
    return nn.Sequential(*layers, nn.MaxPool2d(4), nn.Flatten(), nn.Linear(48, 5))


def residual() -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.stem(x)
        return net.head((x + net.two(net.act(net.norm(net.one(x))))).mean((2, 3)))

    parts = {"stem": conv(3, 8), "one": conv(8, 12), "norm": nn.BatchNorm2d(12), "two": conv(12, 8)}
    return Net(forward, **parts, act=nn.GELU(), head=nn.Linear(8, 5))


def attention() -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (f(x).view(b, n, 2, -1).transpose(1, 2) for f in (net.q, net.k, net.v))
        weights = (q @ k.transpose(-2, -1) * 0.5).softmax(-1)
        return net.out(net.norm(net.mix((weights @ v).transpose(1, 2).flatten(2)).tanh()))

    layers = {name: nn.Linear(8, 12) for name in "qkv"}
    return Net(forward, **layers, mix=nn.Linear(12, 10), norm=nn.LayerNorm(10), out=nn.Linear(10, 3))


NETS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "stack": (stack, image()()),
    "residual": (residual, image()()),
    "attention": (attention, tokens(8)()),
}


def trained(build: Callable[[], nn.Module]) -> nn.Module:
    """A network whose norms have statistics and scales of their own for each channel."""
    torch.manual_seed(0)
    model = build()
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if tensor.dtype.is_floating_point and tensor.ndim == 1:
                tensor.copy_(torch.rand(tensor.shape) + 0.5 if "var" in name else torch.randn(tensor.shape))
    return model.eval()


def case(name: str) -> tuple[nn.Module, nn.Module, sp.PruningPlan, Tensor]:
    build, x = NETS[name]
    model = trained(build)
    graph = sp.trace(model, x)
    scores = sp.score(model, graph, "random", seed=0)
    plan = sp.select(graph, scores, sp.Budget(channels=0.5))
    return model, sp.apply_plan(model, plan), plan, x


@pytest.mark.parametrize("name", NETS)
def test_a_correct_cut_is_proven(name: str) -> None:
    model, small, plan, x = case(name)
    report = sp.verify(model, small, plan, x)
    assert max(report.max_error, report.noise_error) <= report.tolerance == 1e-9
    assert str(report).startswith("proven: largest relative error")


@torch.no_grad()
def roll(tensor: Tensor, dim: int) -> None:
    """Channels in another order."""
    tensor.copy_(tensor.roll(1, dim).clone())


@torch.no_grad()
def take(tensor: Tensor, other: Tensor) -> None:
    tensor.copy_(other)


def replace(name: str, module: nn.Module) -> Corrupt:
    return lambda net: net.set_submodule(name, module) if "." in name else setattr(net, name, module)


# (network, the layer that must be named, what is done to the pruned network)
PLANTED: dict[str, tuple[str, str, Corrupt]] = {
    "channels of a consumer permuted": ("stack", "'3'", lambda n: roll(n[3].weight, 1)),
    "channels of the last consumer permuted": ("stack", "'8'", lambda n: roll(n[8].weight, 1)),
    "rows of a producer permuted": ("stack", "'0'", lambda n: roll(n[0].weight, 0)),
    "bias of a producer permuted": ("stack", "'0'", lambda n: roll(n[0].bias, 0)),
    "statistics of a norm permuted": ("stack", "'1'", lambda n: roll(n[1].running_mean, 0)),
    "variances of a norm permuted": ("stack", "'4'", lambda n: roll(n[4].running_var, 0)),
    "scales of a norm permuted": ("stack", "'4'", lambda n: roll(n[4].weight, 0)),
    "one number changed": ("stack", "'8'", lambda n: take(n[8].bias[:1], n[8].bias[:1] + 1e-4)),
    "another activation": ("stack", "'5'", lambda n: n.__setitem__(5, nn.Hardsigmoid())),
    "another padding": ("stack", "'3'", lambda n: setattr(n[3], "padding_mode", "reflect")),
    "inside of a block permuted": ("residual", "'two'", lambda n: roll(n.two.weight, 1)),
    "head of a residual stream permuted": ("residual", "'head'", lambda n: roll(n.head.weight, 1)),
    "block's activation replaced": ("residual", "'act'", lambda n: setattr(n, "act", nn.GELU("tanh"))),
    "norm's epsilon changed": ("residual", "'norm'", lambda n: setattr(n.norm, "eps", 1e-3)),
    "queries permuted": ("attention", "'q'", lambda n: roll(n.q.weight, 0)),
    "values permuted": ("attention", "'v'", lambda n: roll(n.v.weight, 0)),
    "values' consumer permuted": ("attention", "'mix'", lambda n: roll(n.mix.weight, 1)),
    "layer norm's bias permuted": ("attention", "'norm'", lambda n: roll(n.norm.bias, 0)),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_a_planted_mistake_is_found_and_its_layer_named(planted: str) -> None:
    name, layer, corrupt = PLANTED[planted]
    model, small, plan, x = case(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    corrupt(small)
    with pytest.raises(sp.VerificationError) as caught:
        sp.verify(model, small, plan, x)
    assert f"first in layer {layer}" in str(caught.value)
    assert "untouched" in str(caught.value)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def changed(plan: sp.PruningPlan, tensor: str, dim: int, keep: tuple[int, ...]) -> sp.PruningPlan:
    dims: Mapping[int, tuple[int, ...]] = {**plan.tensors[tensor], dim: keep}
    return dataclasses.replace(plan, tensors={**plan.tensors, tensor: dims})


def moved(keep: tuple[int, ...], size: int) -> tuple[int, ...]:
    """As many other positions."""
    gone = [i for i in range(size) if i not in keep]
    return tuple(sorted((gone + list(keep))[: len(keep)]))


@pytest.mark.parametrize(
    ("name", "tensor", "dim"),
    [
        ("stack", "3.weight", 1),
        ("stack", "1.running_mean", 0),
        ("stack", "0.bias", 0),
        ("stack", "8.weight", 1),
        ("residual", "two.weight", 0),
        ("attention", "mix.weight", 1),
        ("attention", "k.weight", 0),
    ],
)
def test_a_plan_whose_tensors_disagree_is_refused(name: str, tensor: str, dim: int) -> None:
    model, _, plan, x = case(name)
    wrong = changed(plan, tensor, dim, moved(plan.tensors[tensor][dim], plan.shapes[tensor][dim]))
    with pytest.raises(sp.VerificationError, match="otherwise than the tensors it belongs with"):
        sp.verify(model, sp.apply_plan(model, wrong), wrong, x)


def test_an_index_map_of_the_wrong_order_is_refused() -> None:
    """Channels last before the flatten, cut as if channels came first: no shape is wrong, only the meaning."""

    def forward(net: Any, x: Tensor) -> Tensor:
        return net.head(torch.flatten(net.stem(x).permute(0, 2, 3, 1), 1))

    model = trained(lambda: Net(forward, stem=conv(3, 4), head=nn.Linear(4 * 16, 5)))
    x = image(size=4)()
    plan = sp.trace(model, x).plan({"stem": [0, 2]})
    assert plan.tensors["head.weight"][1][:4] == (0, 2, 4, 6)
    sp.verify(model, sp.apply_plan(model, plan), plan, x)
    channels_first = tuple(16 * channel + place for channel in (0, 2) for place in range(16))
    wrong = changed(plan, "head.weight", 1, channels_first)
    with pytest.raises(sp.VerificationError, match=r"dimension 1 of 'head\.weight'"):
        sp.verify(model, sp.apply_plan(model, wrong), wrong, x)


def test_a_plan_that_cuts_what_must_stay_is_refused() -> None:
    """A wrong plan made by hand: sorting listens to all channels, and the plan cuts them all the same."""

    def forward(net: Any, x: Tensor) -> Tensor:
        y = net.one(x)
        return net.two(y) + torch.sort(y, dim=-1).values[:, :3]

    model = trained(lambda: Net(forward, one=nn.Linear(4, 8), two=nn.Linear(8, 3)))
    x = row(4)()
    free = sp.trace(nn.Sequential(model.one, model.two), x).plan({"0": [1, 2, 3, 5]})  # type: ignore[arg-type]
    renamed = {"0.weight": "one.weight", "0.bias": "one.bias", "1.weight": "two.weight"}
    wrong = dataclasses.replace(
        free,
        fingerprint=sp.trace(model, x).fingerprint,
        tensors={renamed[name]: dims for name, dims in free.tensors.items()},
        shapes={renamed[name]: shape for name, shape in free.shapes.items()},
        attributes=(),
    )
    with pytest.raises(sp.VerificationError, match="listens to removed channels"):
        sp.verify(model, sp.apply_plan(model, wrong), wrong, x)


def test_a_rule_that_is_wrong_is_caught_by_the_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """If flip were said to be element-wise, the plan would agree with itself, and only the proof could tell."""

    def forward(net: Any, x: Tensor) -> Tensor:
        return net.two(torch.flip(net.one(x), dims=[-1]))

    model = trained(lambda: Net(forward, one=nn.Linear(4, 8), two=nn.Linear(8, 3)))
    x = row(4)()
    assert all(group.frozen for group in sp.trace(model, x).groups), "flip freezes what it moves"
    flip, clone = torch.ops.aten.flip.default, torch.ops.aten.clone.default
    tracer = importlib.import_module("structprune.tracer")
    monkeypatch.setattr(tracer, "lookup", lambda operation: lookup(clone if operation is flip else operation))
    plan = sp.trace(model, x).plan({"one": [0, 1, 2, 5]})
    with pytest.raises(sp.VerificationError, match=r"listens to removed channels.*operation flip"):
        sp.verify(model, sp.apply_plan(model, plan), plan, x)


def test_a_network_of_another_shape_fails_with_its_layer_named() -> None:
    model, small, plan, x = case("stack")
    small[3] = conv(9, 6)  # type: ignore[operator]
    with pytest.raises(sp.VerificationError, match="fails in layer '3' with RuntimeError"):
        sp.verify(model, small, plan, x)


def test_a_plan_of_another_model_is_refused() -> None:
    model, small, _, x = case("stack")
    _, _, other, _ = case("residual")
    with pytest.raises(sp.PlanError):
        sp.verify(model, small, other, x)


def state_of(model: nn.Module) -> tuple[Any, ...]:
    tensors = {key: (id(value), value.clone()) for key, value in model.state_dict(keep_vars=True).items()}
    flags = [(module.training, len(module._forward_hooks)) for module in model.modules()]
    return tensors, flags, [p.requires_grad for p in model.parameters()], torch.get_rng_state()


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("training", [True, False])
def test_both_models_stay_bit_for_bit_as_they_were(name: str, training: bool) -> None:
    model, small, plan, x = case(name)
    before_x = x.clone()
    for one in (model, small):
        one.train(training)
        next(one.parameters()).requires_grad_(False)
    before = [copy.copy(state_of(one)) for one in (model, small)]
    sp.verify(model, small, plan, x)
    for one, (tensors, flags, gradients, random_state) in zip((model, small), before, strict=True):
        now = state_of(one)
        assert now[0].keys() == tensors.keys()
        assert all(
            a[0] == b[0] and torch.equal(a[1], b[1])
            for a, b in zip(now[0].values(), tensors.values(), strict=True)
        )
        assert (now[1], now[2]) == (flags, gradients)
        assert torch.equal(now[3], random_state)
    assert torch.equal(x, before_x)


def test_norms_over_fewer_channels_are_listed() -> None:
    model, small, plan, x = case("attention")
    changes = sp.verify(model, small, plan, x).changes
    assert {change.layer for change in changes} == {"norm"}
    (change,) = changes
    assert change.what == "its statistics are taken over the kept channels"
    assert change.operation == "native_layer_norm"
    assert sp.verify(*case("stack")).changes == ()


def test_a_group_norm_that_keeps_its_groups_whole_changes_nothing() -> None:
    model = trained(lambda: nn.Sequential(conv(3, 8), nn.GroupNorm(8, 8), nn.ReLU(), conv(8, 3)))
    x = image()()
    result = sp.prune(model, x, sp.Budget(channels=0.5))
    assert result.report.verify is not None
    assert result.report.verify.changes == ()


def test_models_that_compute_in_float32_are_proven_less_exactly() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        y = net.one(x)
        y = (y.float() * torch.rsqrt(y.float().pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)
        return net.two(y)

    model = trained(lambda: Net(forward, one=nn.Linear(6, 8), two=nn.Linear(8, 3)))
    report = sp.prune(model, row(6)(), sp.Budget(channels=0.5)).report.verify
    assert report is not None
    assert 1e-9 < report.tolerance <= 1e-5
    assert report.max_error <= report.tolerance


def test_half_precision_models_are_proven_in_float64() -> None:
    model = trained(stack).to(torch.bfloat16)
    report = sp.prune(model, image()().to(torch.bfloat16), sp.Budget(channels=0.5)).report.verify
    assert report is not None
    assert report.tolerance == 1e-9


@pytest.mark.parametrize("constant", [0.0, 1.0])
def test_an_input_of_constants_is_replaced_by_a_random_one(constant: float) -> None:
    """At an input of zeros a permuted first consumer shows nothing."""

    def forward(net: Any, x: Tensor) -> Tensor:
        return net.two(net.one(x) * x.sum(-1, keepdim=True)) if constant == 0 else net.two(net.one(x - 1))

    model = trained(lambda: Net(forward, one=nn.Linear(4, 8, bias=False), two=nn.Linear(8, 3)))
    x = torch.full((2, 4), constant)
    plan = sp.trace(model, x).plan({"one": [0, 1, 2, 5]})
    small = sp.apply_plan(model, plan)
    sp.verify(model, small, plan, x)
    roll(small.two.weight, 1)  # type: ignore[union-attr, arg-type]
    with torch.no_grad():
        assert torch.equal(model(x), small(x)), "on the constant input itself nothing shows"
    with pytest.raises(sp.VerificationError):
        sp.verify(model, small, plan, x)


def test_a_model_without_weights_cannot_be_verified() -> None:
    model, small, plan, x = case("stack")
    with pytest.raises(sp.InputError, match="meta device"):
        sp.verify(model.to("meta"), small, plan, x)


def test_a_failed_proof_in_prune_leaves_the_model_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _, _, x = case("stack")
    before = state_of(model)

    def spoiled(net: nn.Module, plan: sp.PruningPlan, inplace: bool = False) -> nn.Module:
        small = sp.apply_plan(net, plan)
        roll(small[3].weight, 1)  # type: ignore[index, arg-type]
        return small

    monkeypatch.setattr("structprune.pipeline.apply_plan", spoiled)
    with pytest.raises(sp.VerificationError, match="first in layer '3'"):
        sp.prune(model, x, sp.Budget(channels=0.5), inplace=True)
    assert all(
        torch.equal(a[1], b[1]) for a, b in zip(before[0].values(), state_of(model)[0].values(), strict=True)
    )
