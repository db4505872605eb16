"""Budgets of several quantities: each one holds, and little more is given up than they ask for."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from typer.testing import CliRunner

import structprune as sp
from structprune.cli import app
from structprune.select import kept_importance
from tests.toy_runtime import EXAMPLE, WASTE, kernels, mlp


def share(graph: sp.DependencyGraph, quantity: str, counts: np.ndarray) -> float:
    return graph.price(quantity, counts) / graph.price(quantity, graph.sizes())


class Net(nn.Module):
    """Early layers hold the activations, middle ones the MACs, late ones the parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.early, self.middle = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 24, 3, padding=1)
        self.late, self.wide = nn.Conv2d(24, 32, 3, padding=1), nn.Conv2d(32, 64, 3, padding=1)
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(self.early(x).relu(), 2)
        x = F.max_pool2d(self.middle(x).relu(), 2)
        return self.head(self.wide(self.late(x).relu()).relu().mean((2, 3)))


X = torch.zeros(1, 3, 16, 16)
ASKED: list[dict[str, float]] = [
    {"macs": 0.5, "params": 0.5},
    {"macs": 0.4, "peak_memory": 0.6},
    {"params": 0.3, "peak_memory": 0.8},
    {"file_size": 0.5, "channels": 0.6},
    {"macs": 0.5, "params": 0.4, "peak_memory": 0.5},
    {"peak_memory": 0.5},
    {"macs": 0.9, "params": 0.2},
]


def seeded(seed: int) -> tuple[sp.DependencyGraph, dict[str, np.ndarray]]:
    torch.manual_seed(seed)
    graph = sp.trace(Net(), X)
    generator = np.random.default_rng(seed)
    return graph, {g.name: generator.gamma(2.0, size=g.size) for g in graph.groups if g.frozen is None}


@pytest.mark.parametrize("asked", ASKED, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_the_choice_is_within_one_percent_of_the_best_there_is(seed: int, asked: dict[str, float]) -> None:
    graph, scores = seeded(seed)
    plan = sp.select(graph, scores, sp.Budget(**asked), multiple_of=4)
    assert plan.scope == "value"
    counts = graph.counts(plan)
    for quantity, limit in asked.items():
        assert share(graph, quantity, counts) <= limit
    free = [n for n, g in enumerate(graph.groups) if g.frozen is None]
    widths = [range(4, graph.groups[n].size + 1, 4) for n in free]
    grid = np.tile(graph.sizes(), (int(np.prod([len(w) for w in widths])), 1))
    grid[:, free] = list(itertools.product(*widths))
    holds = np.ones(len(grid), dtype=bool)
    for quantity, limit in asked.items():
        whole = graph.price(quantity, graph.sizes())
        holds &= graph.levels(quantity, grid).max(axis=1) <= limit * whole
    governed = graph.governed("macs")
    lost = np.zeros(len(grid))
    for n in free:
        best = np.sort(scores[graph.groups[n].name])[::-1]
        lost += governed[n] / (np.cumsum(best) / best.sum())[grid[:, n] - 1]
    kept = governed[free].sum() / lost
    own = float(kept[(grid == counts).all(axis=1)][0])
    assert own >= 0.99 * kept[holds].max()
    assert own == pytest.approx(kept_importance(graph, scores, counts))


@pytest.mark.parametrize("scope", ["layer", "global", "isomorphic"])
def test_another_scope_that_is_asked_for_holds_every_limit_too(scope: str) -> None:
    graph, scores = seeded(0)
    plan = sp.select(graph, scores, sp.Budget(macs=0.5, params=0.6, peak_memory=0.7), scope)
    counts = graph.counts(plan)
    shares = [
        share(graph, "macs", counts),
        share(graph, "params", counts),
        share(graph, "peak_memory", counts),
    ]
    assert all(one <= limit for one, limit in zip(shares, (0.5, 0.6, 0.7), strict=True))
    assert max(one / limit for one, limit in zip(shares, (0.5, 0.6, 0.7), strict=True)) > 0.9


def test_one_quantity_is_chosen_as_before_there_were_several() -> None:
    graph, scores = seeded(0)
    for quantity in ("macs", "params", "file_size"):
        plan = sp.select(graph, scores, sp.Budget(**{quantity: 0.5}))
        assert plan.scope == "global"
        assert 0.45 < share(graph, quantity, graph.counts(plan)) <= 0.5
    assert sp.select(graph, scores, sp.Budget(channels=0.5)).scope == "layer"


def test_constraints_hold_under_several_limits() -> None:
    graph, scores = seeded(1)
    budget = sp.Budget(macs=0.7, params=0.7)
    plan = sp.select(graph, scores, budget, multiple_of=8, keep="late", min_channels={"early": 12})
    counts = {group.name: group.count for group in plan.groups}
    assert counts["late"] == 32
    assert counts["early"] == 12
    assert all(group.count % 8 == 0 or group.count == group.size for group in plan.groups)


def test_a_limit_out_of_reach_is_named_with_the_range_of_each() -> None:
    graph, scores = seeded(0)
    with pytest.raises(
        sp.BudgetError,
        match=r"macs=0\.5, peak_memory=0\.01 cannot be met: peak_memory cannot, between .* of the original's macs, "
        r"between 0\.\d+ and 1 of the original's peak_memory can be reached",
    ):
        sp.select(graph, scores, sp.Budget(macs=0.5, peak_memory=0.01))


def test_a_network_pruned_before_is_held_to_what_it_began_as() -> None:
    torch.manual_seed(0)
    budget = sp.Budget(params=0.6, peak_memory=0.8, file_size=0.7)
    once = sp.prune(Net(), X, budget).model
    again = sp.prune(once, X, budget)
    assert again.report.groups_cut == 0
    further = sp.prune(once, X, sp.Budget(peak_memory=0.5))
    original = sp.peak_activation_bytes(Net(), X)
    assert 0.45 * original < sp.peak_activation_bytes(further.model, X) <= 0.5 * original


def test_the_report_shows_what_was_asked_for_before_and_after() -> None:
    result = sp.prune(Net(), X, sp.Budget(macs=0.7, peak_memory=0.7, file_size=0.8, channels=0.9))
    cuts = {cut.quantity: cut for cut in result.report.quantities}
    assert list(cuts) == ["channels", "macs", "peak_memory", "file_size"]
    assert cuts["peak_memory"].before == sp.peak_activation_bytes(Net(), X)
    assert cuts["peak_memory"].after == sp.peak_activation_bytes(result.model, X)
    assert cuts["file_size"].after == sp.weight_bytes(result.model)
    assert cuts["channels"].before == 12 + 24 + 32 + 64
    assert "peak memory" in str(result.report)
    assert "file size" in str(result.report)


def test_a_plan_remembers_all_limits_and_an_old_one_still_loads() -> None:
    plan = sp.prune(Net(), X, sp.Budget(macs=0.7, peak_memory=0.7)).plan
    assert sp.PruningPlan.from_json(plan.to_json()) == plan
    assert plan.budget == sp.Budget(macs=0.7, peak_memory=0.7)
    body = json.loads(sp.prune(Net(), X, sp.Budget(macs=0.7)).plan.to_json())
    body["schema_version"] = 2
    del body["plans"][0]["remaining"]["peak_memory"], body["plans"][0]["remaining"]["file_size"]
    old = sp.PruningPlan.from_json(json.dumps(body))
    assert old.budget == sp.Budget(macs=0.7)
    assert set(old.remaining) == {"channels", "macs", "params"}


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"latency": 0.5, "throughput": 10.0},
        {"latency_ms": 5.0, "throughput": 10.0, "macs": 0.5},
        {"throughput": 0.0},
        {"throughput": float("inf")},
        {"macs": 0.5, "peak_memory": 1.1},
        {"macs": 0.5, "file_size": float("nan")},
        {"macs": 0.5, "params": True},
        {"macs": 0.5, "channels": "0.5"},
    ],
    ids=str,
)
def test_a_budget_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(sp.InputError, match="Budget"):
        sp.Budget(**wrong)


def test_numbers_of_any_kind_are_numbers() -> None:
    assert sp.Budget(macs=np.float32(0.5), params=1) == sp.Budget(macs=0.5, params=1.0)
    assert all(type(limit.value) is float for limit in sp.Budget(macs=np.float64(0.5), params=1).limits)


def test_what_speaks_of_one_quantity_says_so_where_there_are_several() -> None:
    budget = sp.Budget(macs=0.5, params=0.25)
    assert budget.limits == (sp.Limit("params", 0.25), sp.Limit("macs", 0.5))
    with pytest.raises(sp.InputError, match="limits"):
        _ = budget.quantity
    assert not budget.timed
    assert str(budget) == "params=0.25, macs=0.5"


def test_the_price_of_the_original_is_given_by_quantity() -> None:
    graph, scores = seeded(0)
    budget = sp.Budget(macs=0.5, params=0.5)
    whole = {"macs": 0.8 * graph.price("macs", graph.sizes())}
    counts = graph.counts(sp.select(graph, scores, budget, original=whole))
    assert share(graph, "macs", counts) <= 0.4
    with pytest.raises(sp.InputError, match="mapping"):
        sp.select(graph, scores, budget, original=5.0)
    with pytest.raises(sp.InputError, match="file_size"):
        sp.select(graph, scores, budget, original={"file_size": 5.0})


def test_the_command_takes_several_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nets.py").write_text(
        "from torch import nn\n"
        "def mlp():\n    return nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 16), nn.Linear(16, 3))\n"
    )
    monkeypatch.chdir(tmp_path)
    limits = ["--macs", "0.7", "--peak-memory", "0.8", "--file-size", "0.9"]
    done = CliRunner().invoke(app, ["prune", "nets.py:mlp", "-i", "1x6", *limits, "--json"])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["budget"] == {"macs": 0.7, "peak_memory": 0.8, "file_size": 0.9}
    assert document["scope"] == "value"
    for cut in document["quantities"]:
        assert cut["after"] <= document["budget"][cut["quantity"]] * cut["before"]
    asked = ["plan", "nets.py:mlp", "-i", "1x6", "--params", "0.7", "--peak-memory", "0.8", "-o", "plan.json"]
    assert CliRunner().invoke(app, [*asked, "--criterion", "random"]).exit_code == 0
    plan = sp.PruningPlan.from_json((tmp_path / "plan.json").read_text())
    assert plan.budget == sp.Budget(params=0.7, peak_memory=0.8)


# -- with a latency among them ---------------------------------------------------------------------


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRUCTPRUNE_CACHE", str(tmp_path))


def milliseconds(model: nn.Module) -> float:
    return sum(kernel.ms for kernel in kernels(model)) + WASTE


def test_a_latency_and_another_limit_that_asks_for_less_both_hold() -> None:
    result = sp.prune(mlp(), EXAMPLE, sp.Budget(latency=0.6, params=0.9, runtime="toy"))
    assert 0.97 * 0.6 <= milliseconds(result.model) / milliseconds(mlp()) <= 0.6
    assert sp.count_params(result.model) <= 0.9 * sp.count_params(mlp())


def test_where_another_limit_asks_for_more_the_latency_is_not_brought_up_to_its_own() -> None:
    result = sp.prune(mlp(), EXAMPLE, sp.Budget(latency=0.8, params=0.2, runtime="toy"))
    assert milliseconds(result.model) / milliseconds(mlp()) <= 0.8
    assert 0.18 * sp.count_params(mlp()) <= sp.count_params(result.model) <= 0.2 * sp.count_params(mlp())
    assert result.report.latency is not None
    assert len(result.report.latency.turns) == 1


def test_of_two_limits_the_one_that_cannot_be_met_is_named() -> None:
    with pytest.raises(
        sp.BudgetError,
        match=r"latency=0\.1 .* cannot be met: .* the fastest took .*'s latency can be reached",
    ):
        sp.prune(mlp(), EXAMPLE, sp.Budget(latency=0.1, params=0.5, runtime="toy"))
    with pytest.raises(sp.BudgetError, match="params cannot"):
        sp.prune(mlp(), EXAMPLE, sp.Budget(latency=0.9, params=1e-5, runtime="toy"))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"throughput": 1e9}, r"between [5-7]\d\d\.?\d* and \S+ samples per second"),
        ({"latency_ms": 1e-3}, r"and [12]\.\d+ ms"),
    ],
    ids=str,
)
def test_a_figure_out_of_reach_is_told_in_its_own_unit(asked: dict[str, float], message: str) -> None:
    with pytest.raises(sp.BudgetError, match=message):
        sp.prune(mlp(), EXAMPLE, sp.Budget(**asked, runtime="toy"))


@pytest.mark.parametrize("batch", [1, 4])
def test_a_throughput_is_reached(batch: int) -> None:
    example = torch.zeros(batch, 32)
    asked = 1e3 * batch / (0.6 * milliseconds(mlp()))
    result = sp.prune(mlp(), example, sp.Budget(throughput=asked, runtime="toy"))
    reached = 1e3 * batch / milliseconds(result.model)
    assert asked <= reached <= asked / 0.97


def test_an_unknown_runtime_is_refused_before_any_work() -> None:
    def never(*_: object) -> None:
        raise AssertionError("the network was run")

    net = torch.nn.Linear(2, 2)
    net.register_forward_pre_hook(never)
    with pytest.raises(sp.InputError, match="runtime='nope' is not known; the names are"):
        sp.prune(net, torch.zeros(1, 2), sp.Budget(latency=0.5, runtime="nope"))
