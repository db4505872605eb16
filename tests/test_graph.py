"""The dependency graph: what people read, prices against counting on pruned networks, and the way to a plan."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import structprune as sp
from structprune.graph import DependencyGraph
from tests.nets.case import Case, Net, conv, image, row, tokens
from tests.nets.patterns import PATTERNS

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
UNTRACED = {"data parallel", "traced by jit", "compiled", "quantised"}  # refused before they are traced
UNTRACED |= {"mixture of experts by index"}  # which expert works how much depends on the weights' values
TRACED = [case for case in PATTERNS if case.id not in UNTRACED]


def plain() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Flatten(), nn.Linear(96, 5))


def residual() -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.stem(x)
        return net.head((x + net.two(torch.relu(net.norm(net.one(x))))).mean((2, 3)))

    parts = {"stem": conv(3, 8), "one": conv(8, 12), "norm": nn.BatchNorm2d(12), "two": conv(12, 8)}
    return Net(forward, **parts, head=nn.Linear(8, 5))


def attention() -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (y.view(b, n, net.heads, -1).transpose(1, 2) for y in net.qkv(x).chunk(3, dim=-1))
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=0.5)
        return net.out(net.mix(x + net.proj(y.transpose(1, 2).flatten(2))).relu())

    layers = {"qkv": nn.Linear(16, 48), "proj": nn.Linear(16, 16), "mix": nn.Linear(16, 20)}
    return Net(forward, heads=4, out=nn.Linear(20, 5), **layers)


def grouped() -> nn.Module:
    layers = [conv(3, 8), conv(8, 16, groups=4), nn.GroupNorm(4, 16), conv(16, 16, groups=16)]
    return nn.Sequential(*layers, nn.ChannelShuffle(4), nn.ConvTranspose2d(16, 8, 2, 2, groups=4), conv(8, 3))


NETS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "plain": (plain, image()),
    "residual": (residual, image()),
    "attention": (attention, tokens(16)),
    "grouped": (grouped, image()),
}
EVERY = pytest.mark.parametrize("name", NETS)


def traced(name: str) -> tuple[nn.Module, Tensor, DependencyGraph]:
    build, inputs = NETS[name]
    model, x = build().eval(), inputs()
    return model, x, sp.trace(model, x)


def random_counts(graph: DependencyGraph, chance: random.Random) -> np.ndarray:
    """Counts that respect ties and the decisions of the code; whole where that is not to be had by chance."""
    for _ in range(20):
        kept: dict[int, int] = {}
        counts = graph.sizes()
        for i, group in enumerate(graph.groups):
            if group.frozen is None:
                counts[i] = kept.setdefault(group.tie, chance.randint(1, group.size))
        if not graph.violations(counts):
            return counts
    return graph.sizes()


def plan_of(graph: DependencyGraph, counts: np.ndarray, chance: random.Random) -> sp.PruningPlan:
    pairs = zip(graph.groups, counts, strict=True)
    return graph.plan(
        {g.name: sorted(chance.sample(range(g.size), int(n))) for g, n in pairs if g.frozen is None}
    )


# -- what people read ------------------------------------------------------------------------------------------


def test_a_printed_graph_says_what_is_free_and_what_is_not() -> None:
    model = plain()
    lines = str(sp.trace(model, image()())).splitlines()
    header, rule, *rows, coverage = lines
    columns = ["group", "kind", "channels", "members", "params", "MACs", "free,", "or", "why", "not"]
    assert header.split() == columns
    assert set(rule) == {"-"}
    cells = {row.split()[0]: row.split() for row in rows}
    # 0: its kernel, its bias, the consumer's kernel; 2: its kernel, its bias, the head's kernel behind the flatten.
    assert cells["0"][1:] == ["conv", "8", "3", "656", "29,376", "free"]
    assert cells["2"][1:] == ["conv", "6", "3", "918", "14,784", "free"]
    assert cells["0.in"][1:4] == ["input", "3", "1"]
    assert cells["0.in"][6:] == ["model", "input"]
    assert cells["4"][6:] == ["model", "output"]
    assert coverage.startswith("coverage: 99.6% of the params and 100.0% of the MACs")
    assert "1 MAC = 2 FLOPs" in coverage


def test_a_frozen_group_names_the_line_of_the_user() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        return net.two(net.one(x).view(-1, 8))

    graph = sp.trace(Net(forward, one=nn.Linear(4, 8), two=nn.Linear(8, 3)), row(4)())
    line = forward.__code__.co_firstlineno + 1
    (group,) = (group for group in graph.groups if group.name == "one")
    assert str(group.frozen) == f"a view is written with the number 8 (test_graph.py:{line})"
    assert f"test_graph.py:{line}" in str(graph)


def test_groups_list_their_members_with_roles() -> None:
    _, _, graph = traced("residual")
    inner = next(group for group in graph.groups if group.name == "one")
    found = {(member.tensor, member.dim): member.role for member in inner.members}
    assert found == {
        ("one.weight", 0): "out",
        ("one.bias", 0): "affine",
        ("norm.weight", 0): "scale",
        ("norm.bias", 0): "affine",
        ("norm.running_mean", 0): "affine",
        ("norm.running_var", 0): "affine",
        ("two.weight", 1): "in",
    }
    assert inner.layers == tuple(dict.fromkeys(member.tensor for member in inner.members))


def test_the_channels_of_a_sum_are_one_group() -> None:
    _, _, graph = traced("residual")
    stream = next(g for g in graph.groups if ("stem.weight", 0) in {(m.tensor, m.dim) for m in g.members})
    reached = {(member.tensor, member.dim) for member in stream.members}
    assert reached == {
        ("stem.weight", 0),
        ("stem.bias", 0),
        ("one.weight", 1),
        ("two.weight", 0),
        ("two.bias", 0),
        ("head.weight", 1),
    }


def test_types_are_einops_like() -> None:
    _, _, graph = traced("attention")
    types = {(layer.name, layer.operation): layer.types for layer in graph.types()}
    # Queries, keys and values: heads by the width of a head; only the values' width is another.
    weight = "([qkv[0] qkv[1]] + [qkv[0] qkv[1]] + [qkv[0] qkv[2]]), qkv.in"
    assert types["qkv.weight", "tensor"] == (weight,)
    assert types["out.weight", "tensor"] == ("out, mix",)
    assert [layer.types for layer in graph.types() if layer.operation == "relu"] == [("2, 6, mix",)]


@EVERY
def test_coverage_is_the_share_of_what_a_free_group_touches(name: str) -> None:
    model, _, graph = traced(name)
    free = {m.tensor for g in graph.groups if g.frozen is None for m in g.members}
    touched = sum(p.numel() for n, p in model.named_parameters() if n in free)
    assert graph.coverage("params") == pytest.approx(touched / sp.count_params(model))
    assert 0 < graph.coverage("macs") <= 1


# -- prices ----------------------------------------------------------------------------------------------------


def check_prices(model: nn.Module, inputs: Any, seed: int) -> None:
    graph, chance = sp.trace(model, inputs), random.Random(seed)
    counts = random_counts(graph, chance)
    small = sp.apply_plan(model, plan_of(graph, counts, chance))
    assert graph.price("params", counts) == sp.count_params(small)
    assert graph.price("macs", counts) == sp.count_macs(small, inputs)
    assert graph.price("params", graph.sizes()) == sp.count_params(model)
    assert graph.price("macs", graph.sizes()) == sp.count_macs(model, inputs)


@EVERY
@pytest.mark.parametrize("seed", range(5))
def test_prices_are_what_counting_on_the_pruned_network_gives(name: str, seed: int) -> None:
    model, x, _ = traced(name)
    check_prices(model, x, seed)


@pytest.mark.parametrize("case", TRACED, ids=lambda case: case.id)
def test_prices_of_every_pattern(case: Case) -> None:
    check_prices(case.build().eval(), case.inputs(), 0)


def test_the_price_in_channels_counts_primary_groups() -> None:
    _, _, graph = traced("grouped")
    wanted = sum(group.size for group in graph.groups if group.frozen is None and group.primary)
    assert graph.price("channels", graph.sizes()) == wanted


def test_an_unknown_quantity_is_an_error_that_lists_the_known() -> None:
    _, _, graph = traced("plain")
    with pytest.raises(KeyError, match=r"macs.*params.*channels"):
        graph.price("flops", graph.sizes())


def counted_flops(model: nn.Module, inputs: Any) -> int:
    """What torch counts; fused attention on the CPU would count as nothing, so it is taken apart."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(**inputs) if isinstance(inputs, dict) else model(
            *inputs if isinstance(inputs, tuple) else (inputs,)
        )
    return counter.get_total_flops()


@EVERY
def test_macs_are_half_the_flops_that_torch_counts(name: str) -> None:
    model, x, _ = traced(name)
    assert 2 * sp.count_macs(model, x) == counted_flops(model, x)


# fvcore counts norms and pooling too; these are its names for what is a contraction.
CONTRACTIONS = {"conv", "linear", "matmul", "einsum", "addmm", "bmm", "upsample"}


@pytest.mark.parametrize("name", ["plain", "residual", "grouped"])
def test_macs_are_those_of_fvcore(name: str) -> None:
    model, x, _ = traced(name)
    counted = FlopCountAnalysis(model, x).unsupported_ops_warnings(False).by_operator()
    assert sp.count_macs(model, x) == sum(n for operator, n in counted.items() if operator in CONTRACTIONS)


def test_fvcore_leaves_out_fused_attention() -> None:
    model, x, _ = traced("attention")
    counted = FlopCountAnalysis(model, x).unsupported_ops_warnings(False)
    inside = (
        2 * 2 * 4 * 6 * 6 * 4
    )  # query . key and weights . value: batch, heads, tokens, tokens, head width
    assert sp.count_macs(model, x) - inside == counted.by_operator()["linear"]
    assert counted.unsupported_ops()["aten::scaled_dot_product_attention"] == 1


# -- from a choice to a plan -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keep", "words"),
    [
        ({"nobody": [0]}, "no group is named 'nobody'"),
        ({"0": []}, "at least one"),
        ({"0": [0, 0]}, "distinct"),
        ({"0": [8]}, r"\[0, 8\)"),
        ({"0": [-1]}, r"\[0, 8\)"),
        ({"4": [0, 1]}, "must stay whole: model output"),
        ({"0.in": [0]}, "must stay whole: model input"),
    ],
)
def test_a_choice_that_cannot_be_is_an_error_that_says_so(keep: dict[str, list[int]], words: str) -> None:
    _, _, graph = traced("plain")
    with pytest.raises(sp.PlanError, match=words):
        graph.plan(keep)


def test_a_plan_keeps_what_was_chosen_everywhere() -> None:
    model, _, graph = traced("plain")
    plan = graph.plan({"0": [1, 4, 6], "2": [0, 5]})
    behind = tuple(16 * channel + place for channel in (0, 5) for place in range(16))
    assert plan.tensors["0.weight"] == {0: (1, 4, 6)}
    assert plan.tensors["2.weight"] == {0: (0, 5), 1: (1, 4, 6)}
    assert plan.tensors["4.weight"] == {1: behind}
    assert {g.name: g.keep for g in plan.groups} == {"0": (1, 4, 6), "2": (0, 5)}
    assert sp.apply_plan(model, plan)(image()()).shape == (2, 5)


def test_keeping_everything_is_an_empty_plan() -> None:
    _, _, graph = traced("residual")
    plan = graph.plan({})
    assert (plan.tensors, plan.attributes) == ({}, ())


def chunked() -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        left, right = net.stem(x).chunk(2, dim=1)
        return net.left(left) + net.right(right)

    return Net(forward, stem=conv(3, 16), left=conv(8, 4), right=conv(8, 4))


def test_groups_of_one_tie_must_keep_equal_numbers() -> None:
    graph = sp.trace(chunked(), image()())
    first, second = (group for group in graph.groups if group.name.startswith("stem["))
    assert first.tie == second.tie
    graph.plan({first.name: [0, 1], second.name: [6, 7]})
    with pytest.raises(sp.PlanError, match="must keep equal numbers, got 2 and 3"):
        graph.plan({first.name: [0, 1], second.name: [5, 6, 7]})
    with pytest.raises(sp.PlanError, match="must keep equal numbers"):
        graph.plan({first.name: [0, 1]})


def deciding() -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        y = net.one(x)
        return net.two(y * 2 if y.shape[1] > 4 else y)

    return Net(forward, one=conv(3, 8), two=conv(8, 4))


def test_decisions_of_the_code_that_would_change_are_violations() -> None:
    graph = sp.trace(deciding(), image()())
    at = next(i for i, group in enumerate(graph.groups) if group.name == "one")
    counts = graph.sizes()
    counts[at] = 5
    assert graph.violations(counts) == ()
    graph.plan({"one": range(5)})
    counts[at] = 4
    (violation,) = graph.violations(counts)
    assert violation.groups == (at,)
    assert "test_graph.py:" in violation.reason
    with pytest.raises(sp.PlanError, match="would change a decision of the model's code"):
        graph.plan({"one": range(4)})


def test_attributes_that_follow_a_size_are_edited() -> None:
    graph = sp.trace(nn.Sequential(conv(3, 8), conv(8, 8, groups=8), conv(8, 3)), image()())
    plan = graph.plan({"0": [0, 3, 5]})
    assert [(e.module, e.path, e.old, e.new) for e in plan.attributes] == [("1", ("groups",), 8, 3)]


def test_heads_are_cut_only_on_request() -> None:
    _, _, graph = traced("attention")
    free = {(group.size, group.primary) for group in graph.groups if group.frozen is None}
    assert (4, False) in free or (4, True) in free
    for group in graph.groups:
        assert group.frozen is None or group.frozen.reason


@EVERY
def test_tracing_leaves_the_model_as_it_was(name: str) -> None:
    build, inputs = NETS[name]
    model = build().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = torch.get_rng_state()
    sp.trace(model, inputs())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_the_number_of_groups_is_no_other_integer_of_the_call(stride: int) -> None:
    model = nn.Sequential(
        conv(3, 4), nn.Conv2d(4, 8, 3, stride=stride, padding=2, groups=2), conv(8, 3)
    ).eval()
    graph = sp.trace(model, image()())
    lead = next(group for group in graph.groups if group.name == "0[0]")
    plan = graph.plan({lead.name: [0]})
    assert [(e.module, e.path, e.new) for e in plan.attributes] == [("1", ("groups",), 1)]
