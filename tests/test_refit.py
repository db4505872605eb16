"""After the cut: what calibration data win back, held against dense solvers, direct computations and the outputs."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any, ClassVar
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import structprune as sp
from structprune.observe import Twin
from structprune.refit import batches as reading
from structprune.refit.solve import ridge_solution
from structprune.refit.statistics import Moments
from structprune.refit.survey import survey
from structprune.refit.targets import Targets
from tests.harness import flags

WIDE, KEPT = 8, 5


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def parts(*shape: int, count: int = 8) -> list[Tensor]:
    return [normal(*shape, seed=seed) for seed in range(count)]


def cut(model: nn.Module, inputs: Any, keep: dict[str, Any]) -> tuple[nn.Module, sp.PruningPlan]:
    plan = sp.trace(model, inputs).plan(keep)
    return sp.apply_plan(model, plan), plan


def first_group(model: nn.Module, inputs: Any, **options: Any) -> str:
    return next(group.name for group in sp.trace(model, inputs, **options).groups if group.frozen is None)


def error(original: nn.Module, small: nn.Module, inputs: list[Tensor]) -> float:
    with torch.no_grad():
        a, b = (torch.cat([net(x).flatten() for x in inputs]) for net in (original.eval(), small.eval()))
    return ((a - b).norm() / a.norm()).item()


# -- exact against a dense solver ------------------------------------------------------------------------------------


def rows_and_targets(groups: int, rows: int, width: int, out: int) -> tuple[Tensor, Tensor]:
    return normal(groups, rows, width), normal(groups, rows, out, seed=1)


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("groups", [1, 3])
def test_the_ridge_solution_is_the_dense_solvers(groups: int, intercept: bool) -> None:
    x, y = rows_and_targets(groups, 40, 6, 4)
    kept, bias, ridge = normal(groups, 4, 6, seed=2), normal(groups, 4, seed=3), 0.3
    moments = Moments.zeros(kept)
    for part in range(0, 40, 10):
        moments.add(x[:, part : part + 10] + 2, y[:, part : part + 10])
    matrix, constant = ridge_solution(moments, kept, bias, ridge, intercept)
    for g in range(groups):
        rows, wanted = (x[g] + 2).numpy(), y[g].numpy()
        centered = rows - rows.mean(0) if intercept else rows
        strength = np.sqrt(ridge * np.square(centered).sum() / 6)
        design = np.vstack([rows, strength * np.eye(6)])
        column = np.concatenate([np.ones(40), np.zeros(6)])[:, None] * float(intercept)
        right = np.vstack([wanted - (0 if intercept else bias[g].numpy()), strength * kept[g].numpy().T])
        found = np.linalg.lstsq(np.hstack([design, column]), right, rcond=None)[0]
        np.testing.assert_allclose(matrix[g].numpy(), found[:6].T, atol=1e-10)
        if intercept:
            np.testing.assert_allclose(constant[g].numpy(), found[6], atol=1e-10)
    gap = (x + 2) @ matrix.mT + constant.unsqueeze(1) - y
    assert moments.error(matrix, constant) == pytest.approx((gap.norm() / y.norm()).item(), abs=1e-12)


@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_no_data_and_zero_data_change_nothing(ridge: float) -> None:
    kept, bias = normal(1, 4, 6), normal(1, 4)
    moments = Moments.zeros(kept)
    assert ridge_solution(moments, kept, bias, ridge, True)[0] is kept
    moments.add(torch.zeros(1, 10, 6, dtype=torch.float64), bias.unsqueeze(1).expand(1, 10, 4))
    matrix, constant = ridge_solution(moments, kept, bias, ridge, True)
    assert torch.equal(matrix, kept)
    torch.testing.assert_close(constant, bias)


def test_directions_that_the_data_lack_keep_their_weights() -> None:
    x, y = rows_and_targets(1, 30, 6, 4)
    x[..., 3:] = 0
    kept = normal(1, 4, 6, seed=2)
    moments = Moments.zeros(kept)
    moments.add(x, y)
    matrix, _ = ridge_solution(moments, kept, torch.zeros(1, 4, dtype=torch.float64), 0.0, False)
    torch.testing.assert_close(matrix[..., 3:], kept[..., 3:])
    assert not torch.allclose(matrix[..., :3], kept[..., :3])


class Product(nn.Module):
    """A product with a bare parameter, `[i, o]`, and the bias beside it."""

    def __init__(self, width: int, out: int, how: str) -> None:
        super().__init__()
        self.how, self.weight = how, nn.Parameter(torch.randn(width, out))
        self.bias = nn.Parameter(torch.randn(out)) if how == "addmm" else None

    def forward(self, x: Tensor) -> Tensor:
        if self.bias is not None:
            return torch.addmm(self.bias, x, self.weight)
        return x @ self.weight if self.how == "matmul" else torch.einsum("bi,io->bo", x, self.weight)


def conv(rank: int, *sizes: int, transposed: bool = False, **options: Any) -> Callable[[], nn.Module]:
    kinds = [nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d]
    return lambda: kinds[rank - 1 + 3 * transposed](*sizes, **options)


CONSUMERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(WIDE, 3), (24,)),
    "linear without bias": (lambda: nn.Linear(WIDE, 3, bias=False), (24,)),
    "addmm": (lambda: Product(WIDE, 3, "addmm"), (24,)),
    "matmul": (lambda: Product(WIDE, 3, "matmul"), (24,)),
    "einsum": (lambda: Product(WIDE, 3, "einsum"), (24,)),
    "conv 1x1": (conv(2, WIDE, 3, 1), (4, 5, 5)),
    "conv strided, padded": (conv(2, WIDE, 3, 3, stride=2, padding=1), (4, 7, 6)),
    "conv dilated, same": (conv(2, WIDE, 3, 3, dilation=2, padding="same", bias=False), (4, 6, 6)),
    "conv circular": (conv(2, WIDE, 3, 3, padding=1, padding_mode="circular"), (4, 6, 6)),
    "conv1d": (conv(1, WIDE, 3, 3, padding=1), (4, 9)),
    "conv3d": (conv(3, WIDE, 2, (1, 2, 2)), (3, 3, 4, 4)),
    "grouped": (conv(2, WIDE, 4, 3, groups=2), (4, 6, 6)),
    "transposed": (conv(2, WIDE, 3, 3, transposed=True, stride=2, padding=1, output_padding=1), (4, 4, 4)),
}


class Between(nn.Module):
    """A producer of `WIDE` channels, and one consumer of them."""

    def __init__(self, consumer: nn.Module, rank: int) -> None:
        super().__init__()
        producers = [nn.Linear(4, WIDE), *(kind(4, WIDE, 1) for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d))]
        self.up, self.down = producers[rank], consumer

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.tanh(self.up(x)))


@pytest.mark.parametrize("kind", CONSUMERS)
def test_a_consumer_gets_the_weights_of_a_dense_solver(kind: str) -> None:
    build, (batch, *places) = CONSUMERS[kind]
    model = Between(build(), len(places)).double()
    data = parts(batch, 4, *places, count=16)
    group = max((g for g in sp.trace(model, data[0]).groups if g.frozen is None), key=lambda g: g.size)
    keep = [[0, 2], [1, 3]] if group.by else [0, 2, 3, 5, 6]  # each group of a convolution its own
    small, plan = cut(model, data[0], {group.name: keep})
    report = sp.refit(model, small, plan, data, "lstsq", ridge=0.0)
    assert [layer.taken for layer in report.layers] == [True]

    cut_down = sp.apply_plan(model, plan).down  # weights that are not refitted, to solve for in another way
    own = list(cut_down.parameters())
    columns, wanted = [], []
    with torch.no_grad():
        for x in data[:12]:
            hidden = torch.tanh(small.up(x))
            wanted.append(model(x).flatten())
            columns.append([])
            for parameter in own:
                for position in range(parameter.numel()):
                    for each in own:
                        each.zero_()
                    parameter.view(-1)[position] = 1.0
                    columns[-1].append(cut_down(hidden).flatten())
    design = torch.cat([torch.stack(each, 1) for each in columns]).numpy()
    solution = np.linalg.lstsq(design, torch.cat(wanted).numpy(), rcond=None)[0]
    found = torch.cat([p.detach().flatten() for p in small.down.parameters()])
    np.testing.assert_allclose(found.numpy(), solution, atol=1e-7)


# -- what can be won back in full --------------------------------------------------------------------------------------


def test_channels_that_are_combinations_of_others_cost_nothing() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1), nn.Flatten(), nn.Linear(8 * 16, 4)
    )
    model.double()
    with torch.no_grad():  # without an activation between: the last three channels follow from the others
        mix = normal(3, 5)
        for layer in model[:2]:
            layer.weight[5:] = torch.einsum("ij,jabc->iabc", mix, layer.weight[:5])
            layer.bias[5:] = mix @ layer.bias[:5]
    data = parts(8, 3, 6, 6, count=32)
    keep = [0, 1, 2, 3, 4]
    small, plan = cut(model, data[0], {"0": keep, "1": keep})
    report = sp.refit(model, small, plan, data, ridge=1e-12)
    assert report.before.error > 0.1
    assert error(model, small, parts(4, 3, 6, 6, count=40)[36:]) < 1e-6


class Constant(nn.Module):
    """Hidden channels of which the last three are constant, through an activation that is not 0 at 0."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.up, self.down = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3, bias=not norm)
        self.norm, self.head = nn.BatchNorm2d(4) if norm else nn.Identity(), nn.Linear(4, 2, bias=False)
        with torch.no_grad():
            self.up.weight[5:] = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.down(F.softplus(self.up(x)))).relu().mean((2, 3)))


@pytest.mark.parametrize("norm", [False, True])
def test_constant_channels_are_folded_exactly(norm: bool) -> None:
    model = Constant(norm).double().eval()
    data = parts(4, 3, 6, 6)
    small, plan = cut(model, data[0], {"up": [0, 1, 2, 3, 4]})
    names = list(small.state_dict())
    report = sp.refit(model, small, plan, data, ["fold"])
    assert [step.step for step in report.steps] == ["cut", "fold"]
    assert report.before.error > 0.01
    assert report.after.error < 1e-12
    assert error(model, small, data) < 1e-12
    assert list(small.state_dict()) == names  # no bias is made: the norm's running mean took it


def test_without_a_place_for_a_constant_nothing_is_folded() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Sigmoid(), nn.Linear(8, 3, bias=False)).double()
    data = parts(16, 4)
    small, plan = cut(model, data[0], {"0": [0, 1, 2, 3]})
    before = copy.deepcopy(small.state_dict())
    report = sp.refit(model, small, plan, data, "fold")
    assert report.layers == ()
    assert all(torch.equal(small.state_dict()[name], value) for name, value in before.items())


# -- batch norms -------------------------------------------------------------------------------------------------------


def normed() -> nn.Module:
    layers = [
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 6, 3),
        nn.BatchNorm2d(6),
    ]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(6 * 4, 3)).double()
    with torch.no_grad():
        for x in parts(8, 3, 6, 6, count=60):
            model(x)
    return model.train()


def test_norms_get_the_statistics_of_all_that_reaches_them() -> None:
    model, data = normed(), parts(8, 3, 6, 6)
    small, plan = cut(model, data[0], {"0": [0, 2, 4], "3": [1, 2, 3]})
    before, state = flags(small), copy.deepcopy(small.state_dict())
    report = sp.refit(model, small, plan, data, "bn")
    assert report.norms == ("1", "4")
    assert report.after.error < report.before.error
    assert flags(small) == before
    with torch.no_grad():
        x = small[0](torch.cat(data[:6]))
        x_next = small[3](F.relu(small[1].eval()(x)))
    for norm, reaching in ((small[1], x), (small[4], x_next)):
        torch.testing.assert_close(norm.running_mean, reaching.mean((0, 2, 3)))
        torch.testing.assert_close(norm.running_var, reaching.transpose(0, 1).flatten(1).var(1))
        assert norm.momentum == 0.1
        assert norm.num_batches_tracked == 60
    kept = [name for name in state if "running" not in name]
    assert all(torch.equal(small.state_dict()[name], state[name]) for name in kept)

    again = sp.apply_plan(model, plan)  # batched otherwise: the same six batches to fit, in halves
    halves = [half for x in data for half in x.split(4)]
    sp.refit(model, again, plan, halves, "bn")
    torch.testing.assert_close(again[4].running_var, small[4].running_var)


@pytest.mark.parametrize("broken", [False, True])
def test_a_step_that_gives_no_numbers_is_taken_back(broken: bool) -> None:
    """The norms are fitted on samples that overflow in the first layer; those held back are harmless."""
    model, data = normed().float(), [part.float() for part in parts(8, 3, 6, 6)]
    with torch.no_grad():
        model[0].weight *= 1e3
    small, plan = cut(model, data[0], {first_group(model, data[0]): range(4)})
    data[0] = data[0] * 1e37
    if broken:  # the step gives no numbers, as the cut before it: no gain
        with torch.no_grad():
            small[-1].weight[0, 0] = torch.nan
    before = copy.deepcopy(small.state_dict())
    report = sp.refit(model, small, plan, data, "bn")
    assert report.before.error == float("inf") or not broken
    assert (report.after, report.steps[-1].error) == (report.before, float("inf"))
    assert not report.norms
    for name, value in small.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)


def test_an_original_without_finite_outputs_is_refused() -> None:
    model, data = normed(), parts(8, 3, 6, 6)
    small, plan = cut(model, data[0], {first_group(model, data[0]): range(4)})
    with torch.no_grad():
        model[3].bias[:] = torch.nan
    with pytest.raises(sp.InputError, match="the original gives no finite number"):
        sp.refit(model, small, plan, data)


def test_a_step_that_makes_the_outputs_worse_is_taken_back() -> None:
    model = normed()
    for norm in (model[1], model[4]):
        norm.reset_running_stats()  # statistics that are not the data's, as a network without training has them
    data = parts(8, 3, 6, 6)
    small, plan = cut(model, data[0], {"0": [0, 1, 2, 3, 4, 5, 6]})
    state = copy.deepcopy(small.state_dict())
    report = sp.refit(model, small, plan, data, "bn")
    assert not report.steps[-1].taken
    assert report.after == report.before
    assert "taken back" in str(report)
    assert all(torch.equal(small.state_dict()[name], value) for name, value in state.items())


# -- the whole of it ---------------------------------------------------------------------------------------------------


def drawn(seed: int) -> tuple[nn.Module, list[Tensor]]:
    torch.manual_seed(seed)
    widths = torch.randint(6, 14, (3,)).tolist()
    layers: list[nn.Module] = [
        nn.Conv2d(3, widths[0], 3, padding=1, bias=seed % 2 == 0),
        nn.BatchNorm2d(widths[0]),
    ]
    layers += [
        (nn.ReLU, nn.GELU, nn.Sigmoid)[seed % 3](),
        nn.Conv2d(widths[0], widths[1], 3, stride=2),
        nn.SiLU(),
    ]
    layers += [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * widths[1], widths[2]), nn.Tanh()]
    model = nn.Sequential(*layers, nn.Linear(widths[2], 3))
    return model, [torch.randn(12, 3, 7, 7) for _ in range(8)]


@pytest.mark.parametrize("seed", range(4))
def test_held_back_errors_never_rise(seed: int) -> None:
    model, data = drawn(seed)
    result = sp.prune(model, data[0], sp.Budget(channels=0.5), calibration=data)
    report = result.report.refit
    assert report is not None
    assert all(layer.after <= layer.before for layer in report.layers)
    taken = [step for step in report.steps if step.taken]
    assert all(later.error <= earlier.error for earlier, later in pairwise(taken))
    assert report.after.error < report.before.error
    assert error(model, result.model, data[6:]) == pytest.approx(report.after.error, rel=1e-4)


def test_a_fit_that_does_not_carry_over_is_not_taken() -> None:
    model = nn.Sequential(nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, 3)).double()
    data = [normal(1, 4) + 1e-2 * normal(1, 4, seed=seed) for seed in range(1, 4)]  # all of them in one place
    data.append(5 * normal(4, 4, seed=5))
    small, plan = cut(model, data[0], {"0": list(range(11))})
    state = copy.deepcopy(small.state_dict())
    report = sp.refit(model, small, plan, data, "lstsq", ridge=0.0)
    assert not report.layers[0].taken
    assert report.layers[0].after == report.layers[0].before < report.layers[0].tried
    assert all(torch.equal(small.state_dict()[name], value) for name, value in state.items())


def test_half_of_an_encoders_neurons_cost_less() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )
    config.initializer_range = 0.3
    model = transformers.BertModel(config).eval()
    draw = torch.Generator().manual_seed(0)
    data = [{"input_ids": torch.randint(0, 60, (8, 12), generator=draw)} for _ in range(8)]
    result = sp.prune(model, data[0], sp.Budget(channels=0.5), only="mlp", calibration=data, verify=False)
    report = result.report.refit
    assert report is not None
    assert not report.left
    assert 1 - report.after.cosine < 0.5 * (1 - report.before.cosine)


class Stream(nn.Module):
    """Two residual blocks with gates; the second one's inputs are whole when only the first's inner width is cut."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"gate": nn.Linear(6, 16), "up": nn.Linear(6, 16), "down": nn.Linear(16, 6)})
            for _ in range(2)
        )
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block["down"](F.silu(block["gate"](x)) * block["up"](x))
        return self.head(x)


def test_layers_behind_the_cut_are_refitted_as_well() -> None:
    model, data = Stream().double(), parts(64, 6)
    small, plan = cut(model, data[0], {first_group(model, data[0]): range(6)})
    alone = copy.deepcopy(small)
    consumers = sp.refit(model, alone, plan, data, "consumers")
    calls: list[tuple[int, int]] = []
    report = sp.refit(model, small, plan, data, "lstsq", progress=lambda *done: calls.append(done))
    assert [layer.name for layer in consumers.layers] == ["blocks.0.down.weight"]
    behind = ["blocks.1.gate.weight", "blocks.1.up.weight", "blocks.1.down.weight", "head.weight"]
    assert [layer.name for layer in report.layers] == ["blocks.0.down.weight", *behind]
    assert report.after.error < consumers.after.error < consumers.before.error
    assert calls == [(1, 5), (3, 5), (4, 5), (5, 5)]  # gate and up read the same: one pass for both


class Counted(Stream):
    runs: ClassVar = Counter[int]()  # by the first block's width: of the original and of the cut network

    def forward(self, x: Tensor) -> Tensor:
        self.runs[self.blocks[0]["gate"].out_features] += 1
        return super().forward(x)


def test_the_original_runs_once_for_all_layers_whose_outputs_fit() -> None:
    model, data = Counted().double(), parts(64, 6)
    plan = sp.trace(model, data[0]).plan({first_group(model, data[0]): range(6)})
    states, runs = [], []
    sums = (
        2 * 8 * (16 * 16 + 16 * 6 + 16 + 2 * 6)
    )  # of blocks.1.down, the largest; of gate and up, one by one, less
    for memory in (1 << 30, sums):
        small = sp.apply_plan(model, plan)
        Counted.runs.clear()
        report = sp.refit(model, small, plan, data, "lstsq", memory_bytes=memory)
        assert len(report.layers) == 5
        states.append(small.state_dict())
        runs.append(Counted.runs[16])
    assert runs[1] - runs[0] >= 8 * 3  # four inputs, each with all batches: three passes less
    assert all(torch.equal(states[0][name], value) for name, value in states[1].items())


def test_outputs_of_the_original_are_kept_for_as_many_layers_as_fit() -> None:
    model, data = Stream().double(), parts(64, 6)
    small, plan = cut(model, data[0], {first_group(model, data[0]): range(6)})
    batches, original = reading.Batches(data, model), Twin(model)
    layers, _ = survey(original, Twin(small), plan, next(iter(batches))[0])
    down, gate = 8 * 64 * 6 * 8, 8 * 64 * 16 * 8  # bytes: batches x rows x outputs x float64
    for room, count in ((down - 1, 0), (down, 1), (down + gate - 1, 1), (down + gate, 2), (1 << 30, 5)):
        kept = Targets(original, batches, room)
        kept.gather(layers)
        assert [kept.holds([layer]) for layer in layers] == [number < count for number in range(5)]
        for batch, _ in batches:  # what is handed out is the same, kept or not
            x, block = batch.args[0], model.blocks[0]
            hidden = block["down"](F.silu(block["gate"](x)) * block["up"](x))
            torch.testing.assert_close(kept.of(layers, batch)[layers[0]], [hidden.detach().unsqueeze(0)])


def test_what_was_written_to_in_between_is_not_the_same_input() -> None:
    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.one, self.two = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.tanh(self.up(x))
            x += self.one(x)
            return self.two(x)

    model, data = Written().double(), parts(32, 4)
    small, plan = cut(model, data[0], {first_group(model, data[0]): range(4)})
    calls: list[tuple[int, int]] = []
    sp.refit(model, small, plan, data, "lstsq", progress=lambda *done: calls.append(done))
    assert calls == [(1, 2), (2, 2)]


def test_a_rewritten_network_is_refitted_as_well() -> None:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    model = nn.Sequential(nn.Linear(6, 16), layer, nn.Linear(16, 5)).eval()
    data = [torch.randn(4, 7, 6) for _ in range(8)]
    result = sp.prune(model, data[0], sp.Budget(channels=0.5), rewrite=True, calibration=data)
    report = result.report.refit
    assert report is not None
    assert report.after.error < 0.7 * report.before.error


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.mix = nn.Embedding(20, 12), nn.Linear(12, 12)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        return F.linear(x + torch.tanh(self.mix(x)), self.table.weight)


def test_a_weight_that_something_else_reads_is_left_with_the_reason() -> None:
    model, data = Tied(), [torch.randint(0, 20, (8, 5)) for _ in range(4)]
    small, plan = cut(model, data[0], {first_group(model, data[0]): range(6)})
    report = sp.refit(model, small, plan, data)
    assert dict(report.left) == {"table.weight": "embedding reads it as well"}
    assert "table.weight" in str(report)
    assert torch.equal(small.table.weight, model.table.weight[:, :6])


def test_a_consumer_too_large_for_its_sums_is_left_with_the_reason() -> None:
    model, data = drawn(0)
    result = sp.prune(model, data[0], sp.Budget(channels=0.5))
    report = sp.refit(model, result.model, result.plan, data, "lstsq", memory_bytes=1000)
    assert [name for name, _ in report.left] == ["3.weight", "7.weight"]
    assert all("memory_bytes=1,000" in reason for _, reason in report.left)


# -- what stays as it was ----------------------------------------------------------------------------------------------


def test_nothing_of_the_users_changes() -> None:
    model, data = drawn(1)
    model.train()
    model[0].requires_grad_(False)
    before, state, random = flags(model), copy.deepcopy(model.state_dict()), torch.get_rng_state()
    untouched = [x.clone() for x in data]
    result = sp.prune(model, data[0], sp.Budget(channels=0.5), calibration=data)
    assert flags(model) == before
    assert flags(result.model) == before
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())
    assert all(torch.equal(a, b) for a, b in zip(data, untouched, strict=True))


def test_in_place_gives_the_same_network() -> None:
    model, data = drawn(2)
    budget = sp.Budget(channels=0.5)
    copied = sp.prune(model, data[0], budget, calibration=data).model
    assert sp.prune(model, data[0], budget, calibration=data, inplace=True).model is model
    state = model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in copied.state_dict().items())


class Breaks:
    """Batches of which a later pass fails half way."""

    def __init__(self, data: list[Tensor], passes: int) -> None:
        self.data, self.left = data, passes

    def __iter__(self) -> Iterator[Tensor]:
        self.left -= 1
        for number, x in enumerate(self.data):
            if not self.left and number == 5:
                raise OSError("the disk is gone")
            yield x


@pytest.mark.parametrize("passes", [2, 7])
def test_an_interrupted_refit_leaves_the_networks_as_they_were(passes: int) -> None:
    model, data = drawn(1)
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(OSError, match="the disk is gone"):
        sp.prune(model, data[0], sp.Budget(channels=0.5), calibration=Breaks(data, passes), inplace=True)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())
    result = sp.prune(model, data[0], sp.Budget(channels=0.5))
    state = copy.deepcopy(result.model.state_dict())
    with pytest.raises(OSError, match="the disk is gone"):
        sp.refit(model, result.model, result.plan, Breaks(data, passes))
    assert all(torch.equal(result.model.state_dict()[name], value) for name, value in state.items())


# -- calibration data --------------------------------------------------------------------------------------------------


def refitted(model: nn.Module, plan: sp.PruningPlan, calibration: Any) -> dict[str, Tensor]:
    small = sp.apply_plan(model, plan)
    sp.refit(model, small, plan, calibration)
    return small.state_dict()


def test_batches_come_from_lists_iterators_tensors_pairs_and_loaders() -> None:
    model, data = drawn(3)
    plan = sp.prune(model, data[0], sp.Budget(channels=0.5)).plan
    data = [torch.cat(data)[start : start + 32] for start in (0, 32, 64)]
    wanted = refitted(model, plan, data)
    images = TensorDataset(torch.cat(data), torch.zeros(96))
    spellings = [iter(data), (x for x in data), torch.cat(data), [(x, torch.zeros(32)) for x in data]]
    for calibration in (*spellings, DataLoader(images, batch_size=32)):
        found = refitted(model, plan, calibration)
        assert all(torch.equal(found[name], value) for name, value in wanted.items())


def test_a_loader_that_shuffles_is_read_alike_in_each_pass() -> None:
    model, data = drawn(3)
    plan = sp.prune(model, data[0], sp.Budget(channels=0.5)).plan
    shuffled = DataLoader(TensorDataset(torch.cat(data), torch.zeros(96)), batch_size=12, shuffle=True)
    random = torch.get_rng_state()
    refitted(model, plan, shuffled)
    assert torch.equal(torch.get_rng_state(), random)


def test_criteria_from_data_are_worked_out_on_the_same_inputs() -> None:
    model, data = drawn(3)
    budget = sp.Budget(channels=0.5)
    plan = sp.prune(model, data[0], budget, "wanda", calibration=iter(data)).plan
    assert plan == sp.prune(model, data[0], budget, "wanda", data=data).plan


class Random:
    def __iter__(self) -> Iterator[Tensor]:
        self.seed = getattr(self, "seed", 0) + 1
        yield from (normal(4, 3, 7, 7, seed=self.seed).float() for _ in range(4))


@pytest.mark.parametrize(
    ("calibration", "words"),
    [
        ([], "gives no batch"),
        (iter(()), "gives no batch"),
        ({"x": torch.zeros(1)}, r"\[inputs\] where there is one batch"),
        (3, "calibration=3"),
        (["text"], "hold no tensor"),
        (Random(), "other batches in a second pass"),
        (
            [torch.zeros(1, 3, 7, 7), torch.zeros(1, 4, 7, 7)],
            "forward failed on batch 1 of data .*RuntimeError",
        ),
        (torch.zeros(0, 3, 7, 7), "batch 0 of data holds no sample"),
        (torch.full((8, 3, 7, 7), torch.nan), "batch 0 of data holds NaN or infinity, first in its sample 0"),
        (torch.zeros(64, 3, 7, 7).index_fill_(0, torch.tensor([35]), torch.inf), "batch 1 .*in its sample 3"),
        ([(torch.zeros(1, 3, 7, 7),) * 3], "batch 0 of data does not fit the model's forward"),
    ],
)
def test_calibration_that_does_not_fit_is_refused(calibration: Any, words: str) -> None:
    model, data = drawn(3)
    with pytest.raises(sp.InputError, match=words):
        sp.prune(model, data[0], sp.Budget(channels=0.5), calibration=calibration)


def test_an_iterator_has_to_fit_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_CACHED_BYTES", 1000)
    with pytest.raises(sp.InputError, match="can be read only once"):
        reading.readable_again(iter([torch.zeros(500)]))


def test_steps_ridge_and_plan_are_checked() -> None:
    model, data = drawn(3)
    result = sp.prune(model, data[0], sp.Budget(channels=0.5), calibration=data, refit=())
    assert result.report.refit is None
    with pytest.raises(sp.InputError, match="'svd'"):
        sp.refit(model, result.model, result.plan, data, "svd")
    for steps in (3, None, [3]):
        with pytest.raises(sp.InputError, match=r"refit step|steps="):
            sp.refit(model, result.model, result.plan, data, steps)
    for ridge in (-1.0, "a", None, [], [1.0, "a"]):
        with pytest.raises(sp.InputError, match="ridge="):
            sp.refit(model, result.model, result.plan, data, ridge=ridge)
    for memory in (-1, "a", None, float("nan")):
        with pytest.raises(sp.InputError, match="memory_bytes="):
            sp.refit(model, result.model, result.plan, data, memory_bytes=memory)
    for wanted in (["bn"], "all"):
        with pytest.raises(sp.InputError, match=r"refit=.*needs calibration="):
            sp.prune(model, data[0], sp.Budget(channels=0.5), refit=wanted)
    with pytest.raises(sp.PlanError, match="not what the plan makes"):
        sp.refit(model, model, result.plan, data)
    calls: list[tuple[int, int]] = []
    sp.refit(model, result.model, result.plan, data, progress=lambda *done: calls.append(done))
    assert calls[-1] == (3, 3)


def chain() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    return net, torch.randn(64, 6)


def test_the_report_counts_only_what_was_done() -> None:
    net, x = chain()
    result = sp.prune(net, x[:1], sp.Budget(channels=0.5))
    told = str(sp.refit(net, copy.deepcopy(result.model), result.plan, x, memory_bytes=0))
    assert "layers folded, 0 of 2 layers refitted" in told
    assert "not refitted: 2.weight (its sums take" in told
    report = sp.refit(net, result.model, result.plan, x)
    better = {layer.name for layer in report.layers if layer.step == "lstsq" and layer.tried < layer.before}
    assert better
    assert f"{len(better)} of 2 layers refitted" in str(report)
    undone = replace(report, steps=tuple(replace(step, taken=step.step == "cut") for step in report.steps))
    assert "0 of 2 layers folded, 0 of 2 layers refitted" in str(undone)
    only_norms = sp.refit(net, result.model, result.plan, x, "bn")
    assert "layers" not in str(only_norms)


def test_one_iterator_as_data_and_calibration_is_read_once_and_kept() -> None:
    net, x = chain()
    batches = list(x.split(16))
    wanted = sp.prune(net, x[:1], sp.Budget(channels=0.5), "wanda", data=batches, calibration=batches)
    once = iter(batches)
    found = sp.prune(net, x[:1], sp.Budget(channels=0.5), "wanda", data=once, calibration=once)
    assert found.plan == wanted.plan
    assert str(found.report.refit) == str(wanted.report.refit)
    once = iter(batches)
    sp.prune(net, x[:1], sp.Budget(channels=0.5), "wanda", data=once, calibration=once, sensitivity=True)
    with (
        pytest.raises(sp.InputError, match="data is an iterator"),
        mock.patch.object(reading, "_CACHED_BYTES", 1),
    ):
        sp.prune(net, x[:1], sp.Budget(channels=0.5), data=iter(batches), calibration=x, sensitivity=True)
