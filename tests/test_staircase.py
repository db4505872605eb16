"""Staircases: found in formulas with noise, and in a network on a runtime of the tests' own."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import structprune as sp
from structprune.cli import app
from structprune.report import staircase_plot
from structprune.runtimes import Kernel, Profile, register_profiler, register_runtime
from structprune.staircase import busiest, find_stairs

NOISE = 0.003

Formula = Callable[[int], float]


def rising(block: int, offset: int = 0) -> Formula:
    """Milliseconds of a kernel that pads to blocks: flat within a block."""
    return lambda width: 0.05 + 0.003 * (-(-(width + offset) // block) * block)


def comb(block: int) -> Formula:
    """Faster at whole blocks, as 97, 96 and 95 channels that take 1.58, 1.34 and 1.48 ms."""
    return lambda width: (0.25 + 0.0115 * width) * (1.0 if width % block == 0 else 1.15)


def noisy(
    formula: Formula, seed: int = 0, noise: float = NOISE
) -> tuple[Callable[[int], list[float]], list[int]]:
    """The formula with noise, now and then a reading that another program spoilt; and the widths asked for."""
    generator, asked = np.random.default_rng(seed), []

    def measure(width: int) -> list[float]:
        asked.append(width)
        spoilt = 1.3 if generator.random() < 0.02 else 1.0
        return [formula(width) * (1 + noise * generator.standard_normal()) * spoilt]

    return measure, asked


def rises(formula: Formula, most: int) -> set[int]:
    """The widths after which the formula rises by more than 2 % at once."""
    return {width for width in range(1, most) if formula(width + 1) > 1.02 * formula(width)}


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("block", [16, 24, 64])
def test_every_stair_of_a_wide_layer_is_found_with_few_measurements(block: int, seed: int) -> None:
    measure, asked = noisy(rising(block), seed)
    found = find_stairs(measure, range(1, 513))
    assert {step.width for step in found.steps if step.up} >= rises(rising(block), 512)
    assert len(rises(rising(block), 512)) == 511 // block
    assert found.alignment == block
    assert found.visits == len(asked) < 130
    assert len(set(asked)) < 100
    assert found.open == ()


@pytest.mark.parametrize("most", [512, 500])
def test_widths_that_are_faster_than_narrower_ones_are_found(most: int) -> None:
    measure, asked = noisy(comb(16))
    found = find_stairs(measure, range(1, most + 1), limit=260)
    fast = set(range(16, most, 16))
    assert {step.width for step in found.steps if step.up} == fast
    downs = {step.width + 1 for step in found.steps if not step.up}
    assert downs >= {width for width in fast if width > 32}
    assert found.alignment == 16
    assert len(set(asked)) < 200


@pytest.mark.parametrize(("block", "most"), [(12, 500), (10, 320), (8, 384)])
def test_a_block_may_have_any_size(block: int, most: int) -> None:
    measure, _ = noisy(rising(block))
    assert find_stairs(measure, range(1, most + 1), limit=220).alignment == block


def test_stairs_may_begin_anywhere() -> None:
    measure, _ = noisy(rising(16, offset=5))
    found = find_stairs(measure, range(1, 257))
    assert {step.width % 16 for step in found.steps} == {11}
    assert found.alignment == 16


@pytest.mark.parametrize(
    "straight", [lambda width: 1.0, lambda width: 0.1 + 0.01 * width, lambda width: 5.0 + 0.001 * width]
)
def test_what_a_straight_line_explains_is_not_searched(straight: Formula) -> None:
    measure, asked = noisy(straight, seed=1)
    found = find_stairs(measure, range(1, 513))
    assert (found.steps, found.alignment) == ((), 1)
    assert len(asked) < 40


def test_a_curve_without_stairs_has_none() -> None:
    measure, asked = noisy(lambda width: 0.1 + 1e-4 * width**2)
    found = find_stairs(measure, range(1, 513))
    assert (found.steps, found.alignment) == ((), 1)
    assert len(asked) < 130


def test_one_step_is_no_pattern() -> None:
    measure, asked = noisy(lambda width: 1.0 if width <= 137 else 1.5)
    found = find_stairs(measure, range(1, 513))
    assert [(step.width, step.up) for step in found.steps] == [(137, True)]
    assert found.alignment is None
    assert len(asked) < 40


def test_where_noise_hides_a_step_it_is_read_again() -> None:
    measure, asked = noisy(lambda width: 1.0 if width <= 100 else 1.05, noise=0.015)
    found = find_stairs(measure, range(1, 129))
    assert [step.width for step in found.steps] == [100]
    assert max(asked.count(width) for width in (100, 101)) > 1
    assert 0.005 < found.noise < 0.03


def test_the_limit_holds_and_what_is_left_open_is_said() -> None:
    measure, asked = noisy(rising(4))
    found = find_stairs(measure, range(1, 257), limit=40)
    assert len(asked) == found.visits <= 40
    assert found.open
    assert all(low < high for low, high in found.open)


def test_what_was_not_searched_is_not_said_to_be_straight() -> None:
    measure, _ = noisy(lambda width: 0.1 + 1e-4 * width**2)
    found = find_stairs(measure, range(1, 257), limit=14)
    assert found.open
    assert found.alignment is None


def test_only_widths_that_are_possible_are_asked_for() -> None:
    measure, asked = noisy(rising(16))
    find_stairs(measure, range(6, 385, 6))
    assert {width % 6 for width in asked} == {0}
    measure, asked = noisy(rising(1))
    two = find_stairs(measure, [1, 2])
    assert set(asked) == {1, 2}
    assert two.open == ()


@pytest.mark.parametrize(
    ("widths", "limit"), [([4], 50), ([], 50), ([3, 2], 50), ([1, 1, 2], 50), ([1, 2], 5)]
)
def test_a_range_that_is_none_is_refused(widths: list[int], limit: int) -> None:
    with pytest.raises(sp.InputError, match="staircase needs"):
        find_stairs(lambda width: [1.0], widths, limit)


# -- in a network ----------------------------------------------------------------------------------

SLOW = {"calls": 0}


@register_profiler("stairs")
def stairs_profile(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], runtime: sp.Runtime
) -> Profile:
    """A machine that runs by turns at full and half speed, and pads outputs to 8 channels."""
    SLOW["calls"] += 1
    speed = 1.0 + SLOW["calls"] % 2
    found = []
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear):
            into, out = layer.in_features, layer.out_features
            ms = 0.01 + 1e-5 * into * (-(-out // 8) * 8)
            found.append(Kernel(name, "toy", ((1, into), (out, into), (1, out)), ms * speed))
    return Profile(tuple(found), sum(kernel.ms for kernel in found) + 0.5)


@register_runtime("stairs")
@contextmanager
def stairs(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], runtime: sp.Runtime
) -> Iterator[Any]:
    yield lambda: stairs_profile(model, args, kwargs, runtime).whole_ms


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STRUCTPRUNE_CACHE", str(tmp_path / "cache"))
    SLOW["calls"] = 0
    return tmp_path / "cache"


def mlp() -> nn.Module:
    widths = (32, 48, 96, 64, 200, 10)
    layers = [layer for pair in itertools.pairwise(widths) for layer in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


EXAMPLE = torch.zeros(1, 32)


def test_the_kernels_that_a_group_governs_are_told_apart_and_its_stairs_found() -> None:
    model = mlp()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = sp.staircase(model, EXAMPLE, "2", runtime="stairs")
    assert (found.group, found.size) == ("2", 96)
    assert found.kernels == ("2", "4")
    assert found.alignment == 8
    assert {step.width for step in found.stairs.steps} <= set(range(8, 96, 8))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert [point.width for point in found.whole] == [point.width for point in found.stairs.points]
    assert all(whole.ms > part.ms for whole, part in zip(found.whole, found.stairs.points, strict=True))
    assert "low at multiples of 8" in str(found)


def test_what_was_measured_is_not_measured_again(cache: Path) -> None:
    calls = []
    first = sp.staircase(
        mlp(), EXAMPLE, "2", runtime="stairs", progress=lambda done, most: calls.append(done)
    )
    taken = SLOW["calls"]
    assert calls[-1] == first.stairs.visits <= taken <= first.stairs.visits + 10
    again = sp.staircase(mlp(), EXAMPLE, "2", runtime="stairs")
    assert SLOW["calls"] == taken
    assert again == first
    sp.staircase(mlp(), EXAMPLE, "2", runtime="stairs", threads=2)
    assert SLOW["calls"] > taken


def test_an_interrupted_search_goes_on() -> None:
    def stop(done: int, most: int) -> None:
        if done == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sp.staircase(mlp(), EXAMPLE, "2", runtime="stairs", progress=stop)
    taken = SLOW["calls"]
    found = sp.staircase(mlp(), EXAMPLE, "2", runtime="stairs")
    assert SLOW["calls"] <= found.stairs.visits + 10
    assert SLOW["calls"] > taken


class Even(nn.Module):
    """Halves its hidden width, and takes another way where that is odd; the last layer is only there to be cut."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.up(x)
        if x.shape[1] % 4 != 0:
            x = x * 2
        return self.down(x)


def test_widths_under_which_the_code_decides_otherwise_are_left_out() -> None:
    found = sp.staircase(Even(), EXAMPLE, "up", runtime="stairs")
    assert {point.width % 4 for point in found.stairs.points} == {0}


@pytest.mark.parametrize(
    ("group", "says"),
    [
        ("8", "stays whole"),
        ("nothing", "group='nothing' matches no group"),
        ("44", "close names: 4"),
        ("[02]", "several groups"),
        ("", "matches no group"),
    ],
)
def test_a_group_that_cannot_be_meant_is_refused(group: str, says: str) -> None:
    with pytest.raises(sp.InputError, match=says):
        sp.staircase(mlp(), EXAMPLE, group, runtime="stairs")


def test_a_runtime_that_cannot_say_what_its_kernels_take_is_refused() -> None:
    with pytest.raises(sp.InputError, match="is not known"):
        sp.staircase(mlp(), EXAMPLE, "2", runtime="abacus")


def test_the_busiest_groups_come_first() -> None:
    times = busiest(sp.forecast_latency(mlp(), EXAMPLE, runtime="stairs"))
    assert set(times) == {"0", "2", "4", "6"}
    assert next(iter(times)) in ("4", "6")
    assert list(times.values()) == sorted(times.values(), reverse=True)


def test_another_budget_is_solved_with_the_same_scores_and_profiles() -> None:
    model = mlp()
    forecast = sp.forecast_latency(model, EXAMPLE, runtime="stairs")
    scores = sp.score(model, forecast.graph, "l2")
    taken = SLOW["calls"]
    widths = []
    for share in (0.95, 0.9, 0.87):
        budget = sp.Budget(latency=share, runtime="stairs")
        plan = sp.select(forecast.graph, scores, budget, prices=forecast.prices(share))
        counts = forecast.graph.counts(plan)
        assert forecast(counts) <= share * forecast.dense_ms * (1 + 1e-9)
        widths.append(int(counts.sum()))
    assert SLOW["calls"] == taken
    assert widths == sorted(widths, reverse=True)


def call(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture
def model_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.py").write_text(
        "from torch import nn\n\n\ndef mlp():\n"
        "    layers = [nn.Linear(32, 96), nn.ReLU(), nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 200), nn.ReLU()]\n"
        "    return nn.Sequential(*layers, nn.Linear(200, 10))\n"
    )
    return "one.py:mlp"


def test_the_command_prints_draws_and_documents_a_staircase(model_file: str) -> None:
    pytest.importorskip("matplotlib")
    asked = (model_file, "-i", "1x32", "--runtime", "stairs", "--layer", "0")
    result = call("staircase", *asked, "--plot", "stairs.svg")
    assert result.exit_code == 0, result.output
    assert "0: low at multiples of 8" in result.stdout
    assert "wrote stairs.svg" in result.stdout
    assert "low at multiples of 8" in Path("stairs.svg").read_text()
    document = json.loads(call("staircase", *asked, "--json").stdout)
    (one,) = document["staircases"]
    assert (one["group"], one["alignment"], one["runtime"], one["threads"]) == ("0", 8, "stairs", 1)
    assert one["measurements"] >= len(one["points"])
    assert {"width", "ms", "times_ms", "whole_ms"} == set(one["points"][0])


def test_without_a_group_the_command_lists_them_and_measures_the_busiest(model_file: str) -> None:
    asked = (model_file, "-i", "1x32", "--runtime", "stairs")
    listed = json.loads(call("staircase", *asked, "--json").stdout)
    assert set(listed["groups_ms"]) == {"0", "2", "4"}
    assert listed["staircases"] == []
    one = json.loads(call("staircase", *asked, "--top", "1", "--json").stdout)
    assert [found["group"] for found in one["staircases"]] == [
        max(listed["groups_ms"], key=listed["groups_ms"].get)
    ]


def test_a_network_without_free_groups_is_refused(model_file: str) -> None:
    Path("whole.py").write_text("from torch import nn\n\n\ndef whole():\n    return nn.Linear(32, 4)\n")
    result = call("staircase", "whole.py:whole", "-i", "1x32", "--runtime", "stairs")
    assert result.exit_code == 2
    assert "no group of this model is free" in result.output


def test_a_plot_that_cannot_be_drawn_is_refused_before_anything_is_measured(model_file: str) -> None:
    pytest.importorskip("matplotlib")
    asked = (model_file, "-i", "1x32", "--runtime", "stairs")
    for more in (("--plot", "a.svg"), ("--group", "0", "--plot", "a.gif")):
        result = call("staircase", *asked, *more)
        assert result.exit_code != 0
        assert "--group" in result.output or "ends in" in result.output
    assert SLOW["calls"] == 0


def test_several_staircases_share_a_figure() -> None:
    pytest.importorskip("matplotlib")
    found = [sp.staircase(mlp(), EXAMPLE, name, runtime="stairs") for name in ("0", "2", "4")]
    assert [axes.get_title().split(":")[0] for axes in staircase_plot(found).axes] == ["0", "2", "4"]
