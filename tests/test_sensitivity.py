"""Sensitivity: losses that are known by hand, one knob for what is coupled, and widths chosen by the forecast."""

from __future__ import annotations

import copy
import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from typer.testing import CliRunner

import structprune as sp
from structprune.cli import app
from structprune.sensitivity import Curve
from structprune.sensitivity.combining import Combination, fitted

BASIS = torch.eye(4)


def diagonal() -> nn.Sequential:
    """y = 4 a + 3 b + 2 c + d, by way of four hidden channels that hold a, b, c, d."""
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 1, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(4))
        net[1].weight.copy_(torch.tensor([[4.0, 3.0, 2.0, 1.0]]))
    return net


class Residual(nn.Module):
    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(2, 6, 3, padding=1), nn.Linear(6, 3)
        self.up, self.down = nn.Conv2d(6, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(8) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        out: Tensor = self.head((x + self.down(self.norm(self.up(x)).relu())).mean((2, 3)))
        return out


class Tied(nn.Module):
    """The code halves what the stem makes, so both halves keep the same number."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = nn.Linear(4, 12), nn.Linear(6, 2), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.stem(x).relu().chunk(2, dim=1)
        out: Tensor = self.left(left) - self.right(right)
        return out


def mlp(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(6, 12),
        nn.ReLU(),
        nn.Linear(12, 10),
        nn.ReLU(),
        nn.Linear(10, 8),
        nn.ReLU(),
        nn.Linear(8, 4),
    )


def samples(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def measured(net: nn.Module, data: Any, criterion: str = "l2", **options: Any) -> sp.Sensitivity:
    example = data[0] if isinstance(data, list) else data
    example = example[0] if isinstance(example, tuple) else example
    graph = sp.trace(net, example[:2])
    return sp.sensitivity(net, graph, sp.score(net, graph, criterion), data, **options)


def test_the_loss_of_a_linear_network_is_what_the_hand_works_out() -> None:
    found = measured(diagonal(), BASIS, widths=(0.75, 0.5, 0.25), joint=0)
    (curve,) = found.curves
    assert (curve.groups, curve.widths) == (("0",), (1, 2, 3, 4))
    # the outputs' squares are 16, 9, 4 and 1; the smallest go first
    assert curve.losses == pytest.approx([14 / 30, 5 / 30, 1 / 30, 0], abs=1e-7)
    assert curve.rises.tolist() == pytest.approx([14 / 30, 5 / 30, 1 / 30, 0], abs=1e-7)
    assert found.forecast({"0": 2}) == pytest.approx(5 / 30)
    assert found.forecast({}) == found.whole == 0


def test_batches_have_no_say_and_an_iterator_is_read_once() -> None:
    whole = measured(diagonal(), BASIS, joint=3)
    graph = sp.trace(diagonal(), BASIS)
    scores = sp.score(diagonal(), graph)
    parts: Iterator[Tensor] = iter((BASIS[:1], BASIS[1:]))
    assert sp.sensitivity(diagonal(), graph, scores, parts, joint=3) == whole


def test_divergence_and_task_losses_are_torch_s_own() -> None:
    net, x, y = mlp(), samples(40, 6), torch.arange(40) % 4
    y[:25] = -100  # most of the first batch does not count
    batches = [(x[:30], y[:30]), (x[30:], y[30:])]
    graph = sp.trace(net, x[:2])
    scores = sp.score(net, graph)
    kept = sorted(np.argsort(-scores["0"])[:6].tolist())
    with torch.no_grad():
        wanted, given = net(x).double(), sp.apply_plan(net, graph.plan({"0": kept}))(x).double()

    def of(loss: Any) -> float:
        found = sp.sensitivity(net, graph, scores, batches, loss=loss, widths=[0.5], joint=0)
        return found.curves[0].losses[found.curves[0].widths.index(6)]

    divergence = (wanted.softmax(1) * (wanted.log_softmax(1) - given.log_softmax(1))).sum(1).mean()
    assert of("kl") == pytest.approx(divergence.item(), rel=1e-5)
    assert of("cross_entropy") == pytest.approx(nn.functional.cross_entropy(given, y).item(), rel=1e-5)
    assert of(lambda output, target: output.square().mean()) == pytest.approx(
        given.square().mean().item(), rel=1e-5
    )
    error = (given - wanted).square().sum() / wanted.square().sum()
    assert of("outputs") == pytest.approx(error.item(), rel=1e-5)


def test_what_is_coupled_is_one_knob() -> None:
    residual = measured(Residual(), samples(8, 2, 5, 5), joint=0)
    assert sorted(curve.size for curve in residual.curves) == [6, 8]
    tied = measured(Tied(), samples(16, 4), joint=3)
    (curve,) = tied.curves
    assert (len(curve.groups), curve.size) == (2, 6)
    for joint in tied.joint:
        assert joint.counts[curve.groups[0]] == joint.counts[curve.groups[1]]


def test_norms_are_estimated_as_training_does() -> None:
    torch.manual_seed(0)
    net, x = Residual(norm=True).eval(), samples(32, 2, 5, 5)
    graph = sp.trace(net, x[:1])
    scores = sp.score(net, graph)
    group = next(group.name for group in graph.groups if group.size == 8 and group.frozen is None)
    small = sp.apply_plan(net, graph.plan({group: sorted(np.argsort(-scores[group])[:4].tolist())}))
    small.norm.momentum = None
    small.norm.reset_running_stats()
    with torch.no_grad():
        small.train()(x)
        wanted, given = net(x), small.eval()(x)
    truth = (given - wanted).square().sum() / wanted.square().sum()
    found = sp.sensitivity(net, graph, scores, [x], widths=[0.5], joint=0)
    curve = next(curve for curve in found.curves if curve.groups == (group,))
    assert curve.losses[curve.widths.index(4)] == pytest.approx(truth.item(), rel=1e-4)
    as_cut = sp.sensitivity(net, graph, scores, [x], widths=[0.5], joint=0, norms=False)
    assert as_cut.whole == 0
    assert found.whole > 0  # the network's own statistics are of other data


def test_the_model_stays_as_it_is() -> None:
    net = Residual(norm=True)
    net.norm.train()
    net.head.eval()
    before, flags = copy.deepcopy(net.state_dict()), [module.training for module in net.modules()]
    state = torch.random.get_rng_state()
    measured(net, samples(8, 2, 5, 5))
    assert torch.equal(state, torch.random.get_rng_state())
    assert flags == [module.training for module in net.modules()]
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_a_file_gives_back_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = measured(mlp(), samples(32, 6), joint=4)
    path = tmp_path / "new" / "s.json"
    found.save(path)
    again = sp.Sensitivity.load(path)
    assert again == found
    assert again.forecast({"0": 3, "2": 5}) == found.forecast({"0": 3, "2": 5})
    assert [one.name for one in path.parent.iterdir()] == ["s.json"]

    def broken(*_: Any) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(sp.StorageError, match="disk is full"):
        measured(diagonal(), BASIS).save(path)
    assert sp.Sensitivity.load(path) == found
    assert [one.name for one in path.parent.iterdir()] == ["s.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 9}, "schema version 9"),
        ({"fingerprint": "x"}, "fingerprint"),
        ({"whole": "0"}, "whole"),
        ({"more": 1}, "more"),
        ({"curves": [{"groups": ["0"], "size": 2, "widths": [2, 1], "losses": [1.0, 0.0], "marks": [[1, 1, 1]]}]},
         "ascend"),
        ({"joint": [{"counts": {"0": 9}, "loss": 1.0}]}, "cannot keep 9"),
        ({"joint": [{"counts": {"none": 1}, "loss": 1.0}]}, "none"),
        ({"joint": [{"counts": {"0": 1}, "loss": -1.0}]}, "cannot be negative"),
        ({"whole": -0.5}, "cannot be negative"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    text = json.loads(measured(diagonal(), BASIS).to_json())
    (tmp_path / "s.json").write_text(json.dumps(text | change))
    with pytest.raises(sp.StorageError, match=message):
        sp.Sensitivity.load(tmp_path / "s.json")
    (tmp_path / "s.json").write_text(json.dumps(text)[:-9])
    with pytest.raises(sp.StorageError, match=r"s\.json"):
        sp.Sensitivity.load(tmp_path / "s.json")


def test_a_stale_one_is_refused() -> None:
    net, x = mlp(), samples(32, 6)
    found = measured(net, x)
    budget = sp.Budget(macs=0.5)
    sp.prune(net, x[:1], budget, sensitivity=found)
    with pytest.raises(
        sp.InputError, match=r"other scores now than when it was measured( \(by l2\))?\. Score"
    ):
        sp.prune(net, x[:1], budget, "l1", sensitivity=found)
    trained = copy.deepcopy(net)
    with torch.no_grad():
        trained[2].weight.mul_(1 + 0.1 * samples(10, 12))
    with pytest.raises(sp.InputError, match="stale"):
        sp.prune(trained, x[:1], budget, sensitivity=found)
    with pytest.raises(sp.InputError, match="other layers or widths"):
        sp.prune(diagonal(), BASIS[:1], budget, sensitivity=found)
    with pytest.raises(sp.InputError, match="not measured"):
        sp.prune(net, x[:1], budget, sensitivity=measured(net, x, keep="2"))
    with pytest.raises(sp.InputError, match="other layers or widths"):
        found.forecast(sp.prune(diagonal(), BASIS[:1], budget).plan)
    with pytest.raises(sp.InputError, match="scope"):
        sp.prune(net, x[:1], budget, scope="layer", sensitivity=found)


def loaded(found: sp.Sensitivity) -> sp.Sensitivity:
    return sp.Sensitivity.from_json(found.to_json())


def refused_by_all(net: nn.Module, x: Tensor, found: sp.Sensitivity, message: str, **options: Any) -> None:
    with pytest.raises(sp.InputError, match=message):
        sp.prune(net, x[:1], sp.Budget(macs=0.5), sensitivity=found, **options)
    with pytest.raises(sp.InputError, match=message):
        sp.sweep(net, x[:1], [sp.Budget(macs=0.5)], sensitivity=found, **options)


def test_scores_that_know_no_weights_do_not_hide_other_ones() -> None:
    net, x = mlp(), samples(32, 6)
    graph = sp.trace(net, x[:1])
    found = loaded(sp.sensitivity(net, graph, sp.score(net, graph, "random", seed=1), x, criterion="random"))
    sp.prune(net, x[:1], sp.Budget(macs=0.5), "random", seed=1, sensitivity=found)
    refused_by_all(mlp(seed=5), x, found, "stale: '0.weight' and 7 more of 8", criterion="random", seed=1)
    with pytest.raises(sp.InputError, match="measure it anew"):
        found.require(mlp(seed=5))


def test_a_tensor_that_no_score_reads_counts() -> None:
    net, x = mlp(), samples(32, 6)
    found = loaded(measured(net, x))
    with torch.no_grad():
        net[6].bias.mul_(-30)
    refused_by_all(net, x, found, r"stale: '6\.bias' had other values")


def test_another_function_of_the_same_tensors_is_told_apart() -> None:
    torch.manual_seed(0)
    net, x = (
        nn.Sequential(nn.Conv1d(2, 6, 3, padding=1), nn.LeakyReLU(0.1), nn.Conv1d(6, 2, 3)),
        samples(9, 2, 8),
    )
    found = loaded(measured(net, x))
    others = (nn.Tanh(), nn.LeakyReLU(0.2), nn.Identity())
    for other in [nn.Sequential(net[0], each, net[2]) for each in others]:
        refused_by_all(other, x, found, "another activation or constant")
        graph = sp.trace(other, x[:1])
        with pytest.raises(sp.InputError, match="another activation or constant"):
            sp.select(graph, sp.score(other, graph), sp.Budget(macs=0.5), sensitivity=found)
    wider = nn.Conv1d(2, 6, 3, padding=2, dilation=2)
    wider.load_state_dict(net[0].state_dict())
    refused_by_all(nn.Sequential(wider, *net[1:]), x, found, "another activation or constant")


class Remembering(nn.Module):
    """Its code makes positions for the batch at hand, and remembers them."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.known = mlp(), dict[int, Tensor]()

    def forward(self, x: Tensor) -> Tensor:
        rows = self.known.setdefault(len(x), torch.arange(len(x), device=x.device) / len(x))
        out: Tensor = self.body(x) + rows[:, None] * 0
        return out


def test_batches_devices_and_wider_dtypes_are_no_other_network() -> None:
    net, x = Remembering(), samples(32, 6)
    found = loaded(measured(net, x))
    budget = sp.Budget(macs=0.5)
    for size in (1, 3, 3):
        plan = sp.prune(net, x[:size], budget, sensitivity=found).plan
    assert found.forecast(plan) > found.whole
    assert (
        sp.prune(copy.deepcopy(net).double(), x[:1].double(), budget, sensitivity=found).plan.groups
        == plan.groups
    )
    with pytest.raises(sp.InputError, match="stale"):
        found.require(copy.deepcopy(net).bfloat16())
    with pytest.raises(sp.InputError, match="meta device"):
        found.require(copy.deepcopy(net).to("meta"))


def test_rises_combine_as_they_are_fitted() -> None:
    alone = np.random.default_rng(0).uniform(0, 1, (12, 5))
    truth = Combination(power=0.9, factor=2.0)(alone)
    found = fitted(alone, truth)
    assert found.power == pytest.approx(0.9, abs=0.06)
    assert np.allclose(found(alone), truth, rtol=0.15)
    lower, higher = (fitted(alone, Combination(power)(alone)).power for power in (0.5, 1.4))
    assert lower < Combination().power < higher
    assert fitted(alone, np.zeros(12)) == Combination()
    assert fitted(np.zeros((0, 5)), np.zeros(0)) == Combination()


def test_noise_adds_up_and_the_loss_rises_with_its_logarithm() -> None:
    two = np.full((1, 2), np.log(2.0))  # noise of 1 each
    assert Combination(power=1.0, knee=1.0)(two) == pytest.approx(np.log(3))
    assert Combination(power=0.5, knee=1.0)(two) == pytest.approx(np.log(1 + 4))
    assert Combination(power=1.0, knee=1.0)(two[:, :1]) == pytest.approx(np.log(2))
    small, large = np.full((1, 5), 1e-4), np.array([[30.0, 30.0, 29.0]])
    assert Combination(power=1.0, knee=1.0)(small) == pytest.approx(
        5e-4, rel=1e-3
    )  # below the knee they add up
    assert 30 > Combination(power=1.0, knee=2.0)(large / 2) > 15  # above it the largest says nearly all


@pytest.mark.parametrize("knee", [0.01, 0.5, np.inf])
def test_a_plan_that_keeps_less_is_never_forecast_better(knee: float) -> None:
    combine, chance = Combination(0.8, 2.0, 50.0, knee), np.random.default_rng(3)
    rises = chance.uniform(0, 1, (200, 6)) * 10.0 ** chance.integers(-4, 2, (200, 1))
    more = rises + chance.uniform(0, 0.5, rises.shape) * (chance.uniform(size=rises.shape) < 0.3)
    assert np.isfinite(combine(rises)).all()
    assert (combine(more) >= combine(rises)).all()
    assert (combine(rises) < combine(2 * rises)).all()
    orders = combine.terms(rises).sum(axis=1), combine(rises)  # what widths are chosen by, and the forecast
    assert np.array_equal(*(np.argsort(one, kind="stable") for one in orders))


def saturating(rises: Any) -> Any:
    """All rises below 1 add up; together they are at most 2, and where they are near it, the largest stands out."""
    noise = np.expm1(2.5 * rises).sum(axis=1)
    return 2 * noise / (noise + 20)


def test_saturation_is_found_where_there_is_any() -> None:
    chance = np.random.default_rng(0)

    def drawn(number: int) -> Any:  # two knobs that can spoil everything, eight that hardly can
        return chance.uniform(0, 1, (number, 10)) ** 2 * ([1.8] * 2 + [0.2] * 8) + 1e-6

    some, others = drawn(12), drawn(300)
    found = fitted(some, saturating(some))
    assert np.isfinite(found.knee)
    agreement = spearmanr(found(others), saturating(others)).statistic
    assert agreement > 0.985
    assert agreement > spearmanr(Combination()(others), saturating(others)).statistic + 0.01
    assert np.isinf(fitted(some, some.sum(axis=1)).knee)


def test_a_curve_never_says_that_fewer_channels_are_better() -> None:
    noisy = Curve(("a",), 8, (2, 4, 6, 8), (0.5, 0.1, 0.2, 0.01), ((1.0, 1.0, 1.0),))
    assert (np.diff(noisy.rises) <= 0).all()
    assert noisy.rises[-1] == 0
    assert noisy.rises[0] > noisy.rises[1] == pytest.approx(0.49)
    assert noisy.rises[3] == noisy.rises[5] == pytest.approx(0.14)


@pytest.mark.parametrize("saturated", [False, True])
def test_widths_of_least_forecast_loss_are_chosen(saturated: bool) -> None:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 3))  # fmt: skip  # noqa: E501
    x = samples(64, 5)
    graph = sp.trace(net, x[:1])
    scores = sp.score(net, graph)
    found = sp.sensitivity(net, graph, scores, x)
    if saturated:
        alone = found._rises([one.counts for one in found.joint])
        losses = (found.whole + Combination(knee=0.3 * alone.max())(alone)).tolist()
        joint = tuple(replace(one, loss=loss) for one, loss in zip(found.joint, losses, strict=True))
        found = replace(found, joint=joint)
        assert np.isfinite(found.combination.knee)
    free = [group for group in graph.groups if group.frozen is None]
    whole = graph.price("macs", graph.sizes())
    for share in (0.3, 0.5, 0.7):
        plan = sp.select(graph, scores, sp.Budget(macs=share), sensitivity=found)
        assert plan.remaining["macs"] <= share
        least = min(
            found.forecast(counts)
            for kept in itertools.product(*(range(1, group.size + 1) for group in free))
            if graph.price(
                "macs", _counts(graph, counts := dict(zip((g.name for g in free), kept, strict=True)))
            )
            <= share * whole
        )
        assert found.forecast(plan) <= least * 1.02


def _counts(graph: sp.DependencyGraph, counts: dict[str, int]) -> Any:
    return np.array([counts.get(group.name, group.size) for group in graph.groups])


class Parallel(nn.Module):
    """Three branches, each with outputs of its own: the squared errors of all add up to that of the network."""

    def __init__(self) -> None:
        super().__init__()
        self.ups = nn.ModuleList(nn.Linear(6, width) for width in (8, 10, 12))
        self.downs = nn.ModuleList(nn.Linear(up.out_features, 2) for up in self.ups)

    def forward(self, x: Tensor) -> Tensor:
        pairs = zip(self.ups, self.downs, strict=True)
        return torch.cat([down(up(x).relu()) for up, down in pairs], dim=1)


def test_forecasts_rank_plans_as_the_truth_does() -> None:
    torch.manual_seed(0)
    net, x = Parallel(), samples(128, 6)
    graph = sp.trace(net, x[:1])
    scores, chance = sp.score(net, graph, "wanda", data=x), np.random.default_rng(5)
    found = sp.sensitivity(net, graph, scores, x, widths=np.linspace(0.05, 0.95, 19))
    assert found.combination.power == pytest.approx(
        1.0, abs=0.11
    )  # errors that have nothing to do with each other
    forecasts, truths = [], []
    for _ in range(30):
        counts = {g.name: int(chance.integers(2, g.size + 1)) for g in graph.groups if g.frozen is None}
        keep = {name: sorted(np.argsort(-scores[name])[:count].tolist()) for name, count in counts.items()}
        with torch.no_grad():
            gap = sp.apply_plan(net, graph.plan(keep))(x) - net(x)
        forecasts.append(found.forecast(counts))
        truths.append((gap.square().sum() / net(x).square().sum()).item())
    assert spearmanr(forecasts, truths).statistic > 0.95
    assert np.median(np.abs(np.array(forecasts) / truths - 1)) < 0.1
    assert found.agreement > 0.95


def test_prune_measures_where_it_is_asked_to() -> None:
    net, x = mlp(), samples(64, 6)
    result = sp.prune(net, x[:1], sp.Budget(macs=0.5), sensitivity=True, calibration=x.split(16))
    assert result.sensitivity is not None
    assert result.report.forecast is not None
    assert result.report.forecast.cut == result.sensitivity.forecast(result.plan)
    assert "forecast to rise" in str(result.report)
    plain = sp.prune(net, x[:1], sp.Budget(macs=0.5))
    assert result.sensitivity.forecast(result.plan) <= result.sensitivity.forecast(plain.plan)
    again = sp.prune(net, x[:1], sp.Budget(macs=0.5), sensitivity=result.sensitivity)
    assert again.plan.groups == result.plan.groups
    once = sp.prune(net, x[:1], sp.Budget(macs=0.5), "wanda", sensitivity=True, data=iter([x[:32], x[32:]]))
    assert once.sensitivity is not None
    assert once.sensitivity.samples == 64
    with pytest.raises(sp.InputError, match="calibration= or data="):
        sp.prune(net, x[:1], sp.Budget(macs=0.5), sensitivity=True)
    with pytest.raises(sp.InputError, match=r"expected Sensitivity"):
        sp.prune(net, x[:1], sp.Budget(macs=0.5), sensitivity="s.json")  # type: ignore[arg-type]
    points = sp.sweep(net, x[:1], [sp.Budget(macs=s) for s in (0.75, 0.5)], sensitivity=result.sensitivity)
    assert points[1].plan is not None
    assert points[1].plan.groups == result.plan.groups
    assert points[0].loss is not None
    assert points[1].loss == result.report.forecast.cut > points[0].loss


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "mse"}, "expected one of outputs, kl, cross_entropy"),
        ({"widths": []}, "between 0 and 1"),
        ({"widths": [0.5, 1.0]}, "between 0 and 1"),
        ({"joint": -1}, "from 0 up"),
        ({"loss": "cross_entropy"}, "integer classes"),
        ({"loss": lambda output, target: output}, "without dimensions"),
        ({"loss": lambda output, target: output.sum() / 0}, "is inf|is nan|is -inf"),
        ({"keep": "0"}, "no group of this model can be cut"),
        ({"seed": -1}, "seed=-1: expected an integer from 0 up"),
    ],
)
def test_what_does_not_fit_is_said(options: dict[str, Any], message: str) -> None:
    with pytest.raises(sp.InputError, match=message):
        measured(diagonal(), BASIS, **options)


def test_a_loss_of_one_s_own_goes_by_its_name_and_may_be_negative() -> None:
    def cross_entropy(output: Tensor, target: Any) -> Tensor:
        return output.square().mean() - 9

    found = measured(diagonal(), BASIS, loss=cross_entropy)
    assert found.loss == "cross_entropy()"
    assert found.whole < 0
    assert loaded(found) == found

    class Loss(nn.Module):
        def forward(self, output: Tensor, target: Any) -> Tensor:
            return output.sum() / 0

    for loss, name in ((Loss(), "'Loss'"), (lambda output, target: output.sum() / 0, "'<lambda>'")):
        with pytest.raises(sp.InputError, match=f"the loss {name} of a cut network"):
            measured(diagonal(), BASIS, loss=loss)


@pytest.mark.parametrize("counts", [{"0": 2.5}, {"0": "2"}, {"0": 9}, {"0": 0}, [1], {1: 1}])
def test_counts_that_are_none_are_refused(counts: Any) -> None:
    found = measured(diagonal(), BASIS, joint=0)
    with pytest.raises(sp.InputError, match=r"forecast\(|cannot keep"):
        found.forecast(counts)
    assert found.forecast({"0": np.int64(2)}) == pytest.approx(5 / 30)  # type: ignore[dict-item]


def test_no_data_are_refused() -> None:
    graph = sp.trace(diagonal(), BASIS)
    with pytest.raises(sp.InputError, match="no sample"):
        sp.sensitivity(diagonal(), graph, sp.score(diagonal(), graph), [])


MODULE = """
import torch
from torch import nn

def net():
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))

def batches():
    return torch.randn(64, 6, generator=torch.Generator().manual_seed(0)).split(32)
"""


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, result.output
    return result.output if code else result.stdout


def test_the_command_measures_plots_and_is_used_by_prune(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text(MODULE)
    model, data = ["nets.py:net", "--input", "1x6"], ["--data", "nets.py:batches"]
    files = ["--out", "s.json", "--plot", "s.svg"]
    document = json.loads(run("sensitivity", *model, *data, *files, "--json"))
    assert document["files"] == {"sensitivity": "s.json", "plot": "s.svg"}
    assert [curve["groups"] for curve in document["curves"]] == [["0"], ["2"]]
    assert document["samples"] == 64
    assert "<svg" in Path("s.svg").read_text()
    found = sp.Sensitivity.load("s.json")
    pruned = json.loads(run("prune", *model, "--macs", "0.5", "--sensitivity", "s.json", "--json"))
    assert pruned["scope"] == "value"
    widths = {name: count for name, (size, count) in pruned["widths"].items() if count < size}
    assert pruned["forecast"]["cut"] == pytest.approx(found.forecast(widths))
    assert "forecast to rise" in run("prune", *model, "--macs", "0.5", "--sensitivity", "s.json")
    table = run("sensitivity", *model, *data, "--joint", "0", "--loss", "kl")
    assert "50%" in table
    stale = run("prune", *model, "--macs", "0.5", "--sensitivity", "s.json", "--criterion", "l1", code=2)
    assert "stale" in stale
    run("prune", *model, "--macs", "0.5", "--sensitivity", "none.json", code=7)
    run("sensitivity", *model, *data, "--widths", "a", code=2)
    assert "expected an integer from 0 up" in run("sensitivity", *model, *data, "--seed", "-1", code=2)
