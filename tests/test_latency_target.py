"""Budgets of latency, on a runtime of the tests' own whose clock is a formula: 8 channels cost as much as one."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import structprune as sp
from structprune.forecast import LatencyForecast, learn
from structprune.forecast.cache import Cache
from structprune.forecast.sampling import draw
from structprune.forecast.stairs import level
from structprune.forecast.template import OnnxTemplate
from structprune.runtimes.ort_kernels import profile_onnx
from structprune.selection.knapsack import most_valuable
from structprune.selection.units import Unit
from tests.toy_runtime import BLOCK, EXAMPLE, WASTE, kernels, mlp, toy_profile


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STRUCTPRUNE_CACHE", str(tmp_path))
    return tmp_path


def asked(share: float) -> sp.Budget:
    return sp.Budget(latency=share, runtime="toy")


@pytest.mark.parametrize("share", [0.75, 0.5, 0.4])
def test_the_measured_latency_is_what_was_asked_and_little_less(share: float) -> None:
    result = sp.prune(mlp(), EXAMPLE, asked(share))
    report = result.report.latency
    assert report is not None
    assert share * 0.97 <= report.ratio.value <= share
    assert result.report.verify is not None
    dense, small = (sum(k.ms for k in kernels(m)) + WASTE for m in (mlp(), result.model))
    assert small / dense == pytest.approx(report.ratio.value, abs=1e-3)
    for kernel, layer in zip(kernels(result.model), report.layers.values(), strict=True):
        assert layer.measured_ms == pytest.approx(kernel.ms)
        assert layer.forecast_ms == pytest.approx(kernel.ms, rel=0.05)
    assert list(report.layers) == ["0", "2", "4", "6"]
    assert sum(layer.dense_ms for layer in report.layers.values()) == pytest.approx(dense - WASTE)


def test_widths_are_those_at_which_the_runtime_is_fast() -> None:
    result = sp.prune(mlp(), EXAMPLE, asked(0.5))
    assert {group.count % BLOCK for group in result.plan.groups} == {0}
    free = sp.prune(mlp(), EXAMPLE, asked(0.5), multiple_of=5)
    assert all(g.count % 5 == 0 or g.count == g.size for g in free.plan.groups)


def test_the_forecast_knows_the_kernels_and_their_stairs() -> None:
    model = mlp()
    forecast = sp.forecast_latency(model, EXAMPLE, runtime="toy")
    assert set(forecast.alignment.values()) <= {BLOCK, 2 * BLOCK}
    whole = forecast(forecast.graph.sizes())
    assert whole == pytest.approx(sum(k.ms for k in kernels(model)), rel=0.02)
    assert forecast.error < 0.02
    assert list(forecast.layers(forecast.graph.sizes())) == ["0", "2", "4", "6"]


def test_milliseconds_are_milliseconds() -> None:
    dense = sum(k.ms for k in kernels(mlp())) + WASTE
    result = sp.prune(mlp(), EXAMPLE, sp.Budget(latency_ms=0.6 * dense, runtime="toy"))
    small = sum(k.ms for k in kernels(result.model)) + WASTE
    assert 0.97 * 0.6 * dense <= small <= 0.6 * dense


def test_what_cannot_be_reached_is_an_error_with_the_range() -> None:
    model = mlp()
    before = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(sp.BudgetError, match=r"latency=0\.1 .*(can be reached|was not reached)"):
        sp.prune(model, EXAMPLE, asked(0.1))
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())


def test_a_network_that_meets_the_budget_is_left_alone() -> None:
    for budget in (sp.Budget(latency=1.0, runtime="toy"), sp.Budget(latency_ms=1e6, runtime="toy")):
        result = sp.prune(mlp(), EXAMPLE, budget)
        assert result.report.groups_cut == 0
        assert result.report.latency is not None
        assert result.report.latency.ratio.value == pytest.approx(1.0)


def test_a_forecast_that_is_too_slow_is_measured_before_it_is_believed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The forecast has every cut at the price of the whole network: what is measured decides."""
    model = mlp()
    plain = LatencyForecast._many

    def pessimistic(self: LatencyForecast, counts: np.ndarray) -> np.ndarray:
        return 0.7 * self.dense_ms + 0.3 * plain(self, counts)

    monkeypatch.setattr(LatencyForecast, "_many", pessimistic)
    report = sp.prune(model, EXAMPLE, asked(0.6)).report.latency
    assert report is not None
    assert report.ratio.value <= 0.6
    assert report.turns[0].forecast > 0.6


def test_counts_that_no_group_can_have_are_refused() -> None:
    forecast = sp.forecast_latency(mlp(), EXAMPLE, runtime="toy")
    sizes = forecast.graph.sizes()
    named = {group.name: group.size for group in forecast.graph.groups}
    assert forecast(named) == forecast(sizes) == forecast.dense_ms
    assert forecast({"0": 96}) == forecast([96 if name == "0" else size for name, size in named.items()])
    for wrong in ([1], sizes + 1, 0 * sizes, sizes.astype(float), {"nowhere": 3}):
        with pytest.raises(sp.InputError, match="counts"):
            forecast(wrong)
    for limit in (0, -1, float("nan")):
        with pytest.raises(sp.InputError, match="limit"):
            forecast.prices(limit)


@pytest.mark.parametrize(
    "damage", [b"\xff\xfe\n", b"[" * 100_000 + b"\n", b'{"counts": [], "profile": {"kernels": []}}\n']
)
def test_a_damaged_cache_is_measured_anew(cache: Path, damage: bytes) -> None:
    first = sp.forecast_latency(mlp(), EXAMPLE, runtime="toy")
    (file,) = (cache / "latency").iterdir()
    lines = file.read_bytes().splitlines(keepends=True)
    zero = lines[1].replace(b'"reference_ms": ', b'"reference_ms": -')
    file.write_bytes(b"".join([lines[0], damage, zero, *lines[2:]]))
    again = sp.forecast_latency(mlp(), EXAMPLE, runtime="toy")
    assert again(again.graph.sizes() // 2 + 1) == pytest.approx(first(first.graph.sizes() // 2 + 1))


class Guarded(nn.Module):
    """Takes the shortcut only where the widths differ from each other as they do now."""

    def __init__(self) -> None:
        super().__init__()
        widths = (32, 96, 192, 192, 256, 10)
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in itertools.pairwise(widths))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            y = layer(x).relu()
            x = x + y if x.shape == y.shape else y
        return x


def test_widths_that_the_code_forbids_are_neither_profiled_nor_chosen() -> None:
    torch.manual_seed(0)
    result = sp.prune(Guarded(), EXAMPLE, asked(0.6))
    assert result.report.latency is not None
    assert result.report.latency.ratio.value <= 0.6


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(self.up(x).relu())


def test_where_one_width_is_coarse_the_others_fill_the_budget() -> None:
    """The residual width can only go in large steps of latency: the hidden ones are cut as well, not left whole."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(32, 48), *(Block(48) for _ in range(4)), nn.Linear(48, 10))
    result = sp.prune(net, EXAMPLE, asked(0.7))
    assert result.report.latency is not None
    assert 0.97 * 0.7 <= result.report.latency.ratio.value <= 0.7


def test_constraints_hold() -> None:
    result = sp.prune(mlp(), EXAMPLE, asked(0.85), keep="2", min_channels={"4": 128})
    counts = {group.name: group.count for group in result.plan.groups}
    assert counts["2"] == 136
    assert counts["4"] >= 128


def test_profiles_are_kept_and_an_interrupted_run_goes_on(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []

    def stop_after_five(done: int, total: int) -> None:
        taken.append(done)
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sp.forecast_latency(mlp(), EXAMPLE, runtime="toy", progress=stop_after_five)
    (file,) = (cache / "latency").iterdir()
    with file.open("a", encoding="utf-8") as lines:
        lines.write('{"counts": [1, 2')  # killed while it was writing
    calls = []
    monkeypatch.setattr(
        "structprune.runtimes.profiles._PROFILERS",
        {"toy": lambda *args: calls.append(1) or toy_profile(*args)},
    )
    forecast = sp.forecast_latency(mlp(), EXAMPLE, runtime="toy")
    points = [tuple(sample.counts.tolist()) for sample in forecast.samples]
    assert len(calls) == len(set(points)) - len(set(points[:5]))
    calls.clear()
    sp.forecast_latency(mlp(), EXAMPLE, runtime="toy")
    assert calls == []
    sp.forecast_latency(mlp(), EXAMPLE, runtime="toy", threads=2)
    assert calls


def test_a_budget_of_latency_needs_prices_and_a_profiler() -> None:
    model = mlp()
    graph = sp.trace(model, EXAMPLE)
    scores = sp.score(model, graph)
    with pytest.raises(sp.InputError, match="prices="):
        sp.select(graph, scores, asked(0.5))
    forecast = learn(graph, model, EXAMPLE, sp.Runtime("toy"))
    plan = sp.select(graph, scores, asked(0.5), prices=forecast.prices(0.5))
    counts = np.array([group.count for group in plan.groups])
    free = np.array([group.frozen is None for group in graph.groups])
    full = graph.sizes()
    full[free] = counts
    assert forecast(full) <= 0.5 * forecast.dense_ms
    with pytest.raises(sp.InputError, match="not known; the names are"):
        sp.prune(model, EXAMPLE, sp.Budget(latency=0.5, runtime="abacus"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"latency": 1.5},
        {"latency_ms": 0.0},
        {"latency": 0.5, "latency_ms": 5.0},
        {"latency": 0.5, "threads": 0},
    ],
)
def test_a_budget_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(sp.InputError, match=r"Budget|threads=0"):
        sp.Budget(**wrong)


def test_a_plan_remembers_its_budget_of_latency() -> None:
    plan = sp.prune(mlp(), EXAMPLE, asked(0.5)).plan
    assert sp.PruningPlan.from_json(plan.to_json()) == plan
    assert plan.budget == asked(0.5)


# -- the model of the network on onnxruntime -------------------------------------------------------


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 48, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(32), nn.Linear(48 * 4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.second(self.norm(self.first(x)).relu()).relu()
        x = nn.functional.adaptive_avg_pool2d(x, 2)
        return self.head(x.reshape(x.shape[0], x.shape[1] * 4))


def test_a_template_gives_the_onnx_model_at_any_widths() -> None:
    model, x = Convolutions().eval(), torch.randn(2, 3, 8, 8)
    graph = sp.trace(model, x)
    free = frozenset(i for i, g in enumerate(graph.groups) if g.frozen is None)
    points = [graph.sizes(), draw(graph, free, 1, 1), draw(graph, free, 1, 2)]
    template = OnnxTemplate(model, graph, (x,), {}, points)
    import onnx_ir as ir

    for seed in (3, 4):
        counts = draw(graph, free, 1, seed)
        model_bytes = ir.to_proto(template.at(counts)).SerializeToString()
        profile = profile_onnx(model_bytes, {"x": x.numpy()}, sp.Runtime())
        sizes = dict(zip((g.name for g in graph.groups), counts.tolist(), strict=True))
        shapes = {shape for kernel in profile.kernels for shape in kernel.shapes}
        assert any(shape[:1] == (5,) or shape[-1:] == (5,) for shape in shapes)
        weights = template.converted.model.graph.initializers
        assert tuple(weights["second.weight"].const_value.shape) == (sizes["second"], sizes["first"], 3, 3)
        assert all(kernel.ms >= 0 for kernel in profile.kernels)


def test_onnxruntime_says_what_each_kernel_takes() -> None:
    torch.manual_seed(0)
    model, x = Convolutions().eval(), torch.randn(1, 3, 32, 32)
    forecast = sp.forecast_latency(model, x)
    whole = forecast.graph.sizes()
    half = np.array([g.size if g.frozen else g.size // 2 for g in forecast.graph.groups])
    assert 0 < forecast(half) <= forecast(whole) < 1e3
    assert sum(forecast.layers(half).values()) == pytest.approx(forecast(half) - forecast.rest_ms)
    assert forecast(whole) == forecast.dense_ms
    assert all(size >= 1 for size in forecast.alignment.values())


# -- the knapsack ----------------------------------------------------------------------------------


def chain(seed: int, count: int, choices: int) -> tuple[list[Unit], Any]:
    generator = np.random.default_rng(seed)
    units = []
    for number in range(count):
        size = int(generator.integers(choices, 4 * choices))
        step = max(1, size // choices)
        allowed = np.unique(np.append(np.arange(step, size, step), size)).astype(np.int64)
        curve = np.sort(generator.gamma(2.0, size=size))[::-1]
        units.append(Unit((number,), size, allowed, curve / curve.mean()))
    weights = generator.uniform(0.2, 3.0, count + 1)

    def cost(counts: np.ndarray) -> np.ndarray:
        ends = np.full((len(counts), 1), 3.0)
        wide = np.hstack([ends, counts, ends])
        total: np.ndarray = (weights * wide[:, :-1] * wide[:, 1:]).sum(axis=1)
        return total

    return units, cost


def kept(units: list[Unit], counts: Any) -> float:
    return float(sum(unit.curve[:count].sum() for unit, count in zip(units, counts, strict=True)))


@pytest.mark.parametrize("seed", range(12))
def test_the_choice_is_within_one_percent_of_the_best_there_is(seed: int) -> None:
    units, cost = chain(seed, 4, 6)
    whole = cost(np.array([[unit.size for unit in units]]))[0]
    limit = whole * np.random.default_rng(seed).uniform(0.3, 0.8)
    found = most_valuable(units, lambda counts: cost(counts) / limit)
    assert cost(found[None])[0] <= limit
    grid = np.array(list(itertools.product(*(unit.allowed for unit in units))))
    best = max(kept(units, counts) for counts in grid[cost(grid) <= limit])
    assert kept(units, found) >= 0.99 * best


def test_levels() -> None:
    assert [level((size,)) for size in (1, 6, 24, 48, 128)] == [1, 2, 8, 16, 64]


def test_the_cache_is_of_one_network_and_machine(cache: Path) -> None:
    graph = sp.trace(mlp(), EXAMPLE)
    one, other = (Cache.of(graph, (EXAMPLE,), sp.Runtime("toy", threads)) for threads in (1, 2))
    assert one.path != other.path
    assert one.get(graph.sizes()) is None
