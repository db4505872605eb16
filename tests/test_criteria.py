"""Criteria from data: a contract that every registered criterion keeps, and references that are worked out by force."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import structprune as sp
from structprune.graph import ChannelGroup, DependencyGraph, Member
from structprune.importance import (
    CRITERIA,
    Calibration,
    GroupTensors,
    Needs,
    criterion,
    needs_of,
    plain_sum,
    registry,
)
from structprune.importance.gradients import hessian_diagonal
from structprune.importance.groups import group_tensors

DATA = sorted(name for name, function in CRITERIA.items() if needs_of(function) is not None)
LABELLED = sorted(name for name in DATA if needs_of(CRITERIA[name]).labels)
PLAIN = sorted(set(CRITERIA) - set(DATA))
# How scores grow where the loss, or all weights of a network without data, grow by a factor.
WITH_THE_LOSS = {"taylor": 1, "snip": 1, "fisher": 2, "hessian": 1}
WITH_THE_WEIGHTS = {"l1": 1, "l2": 1, "linf": 1, "bn_scale": 1, "fpgm": 1, "lamp": 0, "random": 0}


@dataclass(frozen=True)
class Graph:
    groups: tuple[ChannelGroup, ...]


@dataclass(frozen=True)
class Case:
    model: nn.Module
    graph: DependencyGraph
    x: Tensor
    y: Tensor

    def data(self, *cuts: int) -> list[tuple[Tensor, Tensor]]:
        return list(zip(self.x.tensor_split(cuts), self.y.tensor_split(cuts), strict=True))

    def needs(self, name: str) -> None:
        """Skip where a criterion has nothing to read in this network."""
        if name == "bn_scale" and not any("norm" in n for n, _ in self.model.named_modules()):
            pytest.skip("no norm")

    def score(self, name: str, data: Iterable[Any] | None = None, **options: Any) -> dict[str, np.ndarray]:
        return sp.score(self.model, self.graph, name, data=self.data(5) if data is None else data, **options)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.split = nn.Conv2d(6, 6, 3, padding=1, groups=2)
        self.deep = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.fc = nn.Linear(6 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = x + F.relu(self.deep(F.relu(self.split(x))))
        return self.fc(F.adaptive_avg_pool2d(x, 2).flatten(1))


class Shared(nn.Module):
    """One layer used twice, a frozen parameter, a product without a layer, and what no data reach."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.again, self.unused = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 5)
        self.out = nn.Parameter(torch.randn(5, 3))
        self.again.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.again(torch.tanh(self.again(self.into(x))))) @ self.out


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.state, self.out = nn.GRU(4, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.state(x)[0][:, -1])


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


def attention() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.5, batch_first=True).eval()
    return sp.rewrite(nn.Sequential(nn.Linear(4, 8), layer, nn.Linear(8, 3)).eval(), torch.randn(2, 5, 4))


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], tuple[int, ...]]] = {
    "mlp": (mlp, (4,), ()),
    "residual": (Residual, (2, 4, 4), ()),
    "shared": (Shared, (4,), ()),
    "attention": (attention, (5, 4), (5,)),
    "recurrent": (Recurrent, (3, 4), ()),
}


@pytest.fixture(scope="module", params=sorted(NETS))
def case(request: pytest.FixtureRequest) -> Case:
    return built(request.param)


def built(name: str) -> Case:
    torch.manual_seed(0)
    build, inside, targets = NETS[name]
    model = build().double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.normal_(module.weight)
    x, y = torch.randn(12, *inside, dtype=torch.float64), torch.randint(0, 3, (12, *targets))
    return Case(model, sp.trace(model, x[:2]), x, y)


def equal(left: dict[str, np.ndarray], right: dict[str, np.ndarray], rtol: float = 1e-9) -> None:
    assert left.keys() == right.keys()
    for name, values in left.items():
        np.testing.assert_allclose(values, right[name], rtol=rtol, atol=rtol * np.abs(values).max(initial=0))


def free(graph: DependencyGraph) -> list[ChannelGroup]:
    return [group for group in graph.groups if group.frozen is None]


def test_the_table_says_how_each_criterion_scales() -> None:
    assert set(WITH_THE_LOSS) == set(LABELLED)
    assert set(WITH_THE_WEIGHTS) == set(PLAIN)
    assert set(DATA) >= {"taylor", "snip", "fisher", "hessian", "wanda", "obs"}


@pytest.mark.parametrize("name", [*DATA, *PLAIN])
class TestEveryCriterion:
    def test_shape_and_sign(self, name: str, case: Case) -> None:
        case.needs(name)
        scores = case.score(name)
        shapes = {g.name: (g.rows, g.size) if g.by else (g.size,) for g in free(case.graph)}
        assert {group: values.shape for group, values in scores.items()} == shapes
        for values in scores.values():
            assert values.dtype == np.float64
            assert np.isfinite(values).all()
            assert (values >= 0).all()

    def test_deterministic_and_no_trace_is_left(self, name: str, case: Case) -> None:
        case.needs(name)
        model = case.model.train()
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        before = copy.deepcopy(model.state_dict())
        wanted = [p.requires_grad for p in model.parameters()]
        attributes = [sorted(vars(module)) for module in model.modules()]
        random = torch.random.get_rng_state()
        first = case.score(name)
        torch.rand(3)
        torch.random.set_rng_state(random)
        second = case.score(name)
        assert torch.equal(torch.random.get_rng_state(), random)
        assert all(np.array_equal(values, second[group]) for group, values in first.items())
        assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
        assert all(module.training for module in model.modules())
        assert [p.requires_grad for p in model.parameters()] == wanted
        assert all((p.grad == 1).all() for p in model.parameters() if p.grad is not None)
        assert [sorted(vars(module)) for module in model.modules()] == attributes
        assert not any(module._forward_hooks for module in model.modules())
        for parameter in model.parameters():
            parameter.grad = None

    def test_batches_have_no_say(self, name: str, case: Case) -> None:
        case.needs(name)
        whole = case.score(name, case.data())
        equal(case.score(name, case.data(1, 4, 11)), whole)
        equal(case.score(name, (pair for pair in case.data(7))), whole)

    def test_follows_a_renumbering_of_the_channels(self, name: str, case: Case) -> None:
        case.needs(name)
        if name == "random":
            pytest.skip("chance has no channels")
        turned = np.random.default_rng(0)
        orders = {group.name: turned.permutation(group.size) for group in free(case.graph)}

        def renumbered(member: Member, group: ChannelGroup) -> Member:
            order = np.append(orders[group.name], -1)
            outer = tuple(
                (dim, np.append(orders[by], -1)[index])
                for by, (dim, index) in zip(group.by, member.outer, strict=True)
                if by in orders
            )
            return replace(member, index=order[member.index], outer=outer)

        groups = [replace(g, members=tuple(renumbered(m, g) for m in g.members)) for g in free(case.graph)]
        scores = sp.score(case.model, Graph(tuple(groups)), name, data=case.data())
        for group, values in case.score(name, case.data()).items():
            by = next(g.by for g in groups if g.name == group)
            found = scores[group][..., orders[group]]
            if by:
                found = found[orders[by[0]]]
            np.testing.assert_allclose(found, values, rtol=1e-9, atol=1e-12)

    def test_frozen_parameters_count_as_others_do(self, name: str) -> None:
        case = built("residual")
        expected = case.score(name)
        case.model.requires_grad_(False)
        equal(case.score(name), expected)
        with torch.no_grad():
            equal(case.score(name), expected)
        with torch.inference_mode():
            equal(case.score(name), expected)

    def test_narrow_dtypes(self, name: str) -> None:
        case = built("residual")
        model = case.model.bfloat16()
        scores = sp.score(model, case.graph, name, data=[(case.x.bfloat16(), case.y)])
        for values in scores.values():
            assert np.isfinite(values).all()


@pytest.mark.parametrize("name", LABELLED)
class TestEveryCriterionThatTakesLabels:
    def test_scales_with_the_loss(self, name: str, case: Case) -> None:
        def louder(output: Tensor, target: Tensor) -> Tensor:
            return 3 * F.cross_entropy(output.flatten(0, -2), target.flatten())

        plain = case.score(name)
        degree = 3 ** WITH_THE_LOSS[name]
        equal(case.score(name, loss=louder), {group: degree * values for group, values in plain.items()})

    def test_a_channel_whose_weights_are_zero_comes_last(self, name: str) -> None:
        case = built("mlp")
        with torch.no_grad():
            case.model[0].weight[2] = case.model[0].bias[2] = 0
            case.model[2].weight[:, 2] = 0
        (first, *_) = case.score(name).values()
        assert first[2] == 0

    def test_targets_are_asked_for(self, name: str) -> None:
        case = built("mlp")
        for data in ([case.x], [(case.x, None)]):
            with pytest.raises(sp.InputError, match="batch 0 of data has no target"):
                case.score(name, data)
        own = case.score(name, [case.x], loss=lambda output, _: output.square().mean())
        assert all(values.max() > 0 for values in own.values())

    def test_losses_that_are_none_are_refused(self, name: str) -> None:
        case = built("mlp")
        for loss, said in (
            (lambda o, t: o, r"one number.*tensor \[[15], 3\]"),
            (lambda o, t: 1.0, "one number.*float"),
            (lambda o, t: o.sum() * torch.nan, "nan"),
            (lambda o, t: torch.zeros(()), "does not depend"),
            (
                lambda o, t: o.square().sum(1),
                r"batch 0 of data: what loss= returns must be one number.*tensor \[[15]\]",
            ),
            (lambda o: o.sum(), r"loss failed on batch 0 of data.*TypeError.*\(output, target\)"),
            (lambda o, t: 1 / 0, "loss failed on batch 0 of data.*ZeroDivisionError: division by zero"),
            ("mse", r"loss='mse'\): expected Callable"),
        ):
            with pytest.raises(sp.InputError, match=said):
                case.score(name, loss=loss)
        with pytest.raises(sp.InputError, match=r"integer classes; got a tensor \[[15], 3\].*float64"):
            case.score(name, [(case.x[:5], case.x[:5])])
        for wrong in (-1, 3):
            with pytest.raises(
                sp.InputError, match=rf"batch 1 of data: .*3 classes, and a target is {wrong}"
            ):
                case.score(name, [*case.data(), (case.x[:1], torch.tensor([wrong]))])
        with pytest.raises(
            sp.InputError, match=r"batch 0 of data(: without loss=.*a tensor \[3\]| \(1 sample)"
        ):
            case.score(name, [(case.x[0], case.y[0])])

    def test_classes_that_do_not_count_are_passed_over(self, name: str) -> None:
        case = built("mlp")
        some = case.y.clone()
        some[0] = -100
        equal(case.score(name, [(case.x, some)]), case.score(name, [(case.x[1:], case.y[1:])]))
        with pytest.raises(sp.InputError, match="nothing that counts: all targets are -100"):
            case.score(name, [(case.x, torch.full_like(some, -100))])

    def test_all_targets_that_count_weigh_alike(self, name: str) -> None:
        case = built("attention")
        some = case.y.clone()
        some[::2, 1:], some[3] = -100, -100
        whole = case.score(name, [(case.x, some)])
        for cuts in ((4,), (1, 2, 3, 4, 9), (3, 4)):  # the last two: a batch in which nothing counts
            pairs = list(zip(case.x.tensor_split(cuts), some.tensor_split(cuts), strict=True))
            equal(case.score(name, pairs), whole)

    def test_zeros_alone_rank_nothing(self, name: str) -> None:
        with pytest.raises(sp.InputError, match=r"0 for every channel.*Check loss="):
            built("mlp").score(name, loss=lambda output, _: (0 * output).sum())


@pytest.mark.parametrize("name", DATA)
class TestEveryCriterionThatTakesData:
    def test_data_are_asked_for(self, name: str) -> None:
        case = built("mlp")
        labels = ", ".join(LABELLED)
        with pytest.raises(
            sp.InputError, match=rf"{name!r} is worked out on data: give data=.*by obs, wanda.*by {labels}"
        ):
            sp.score(case.model, case.graph, name)
        with pytest.raises(sp.InputError, match="no sample"):
            case.score(name, [])
        with pytest.raises(sp.InputError, match=rf"{name!r} runs the model"):
            case.score(name, weights="folder")

    def test_a_loader_that_shuffles_draws_nothing_of_the_process(self, name: str) -> None:
        case = built("mlp")
        loader = DataLoader(TensorDataset(case.x, case.y), 5, shuffle=True)
        state = torch.random.get_rng_state()
        equal(case.score(name, loader), case.score(name))
        assert torch.equal(torch.random.get_rng_state(), state)

    def test_a_model_without_values_is_refused(self, name: str) -> None:
        case = built("mlp")
        with pytest.raises(
            sp.InputError, match=rf"{name!r} runs the model, and '0.weight' is on the meta device"
        ):
            sp.score(copy.deepcopy(case.model).to("meta"), case.graph, name, data=case.data())

    def test_batches_that_do_not_fit_are_named(self, name: str) -> None:
        case = built("mlp")
        with pytest.raises(sp.InputError, match=r"batch 1 .*too many positional.*\(\(a, b\), None\)"):
            case.score(name, [*case.data(), ((case.x, case.x), case.y)])

    @pytest.mark.parametrize(
        ("batch", "said"),
        [
            (
                lambda x: x[:, :-1],
                r"forward failed on batch 1 of data \(\d+ samples?: .*RuntimeError.*example inputs",
            ),
            (lambda x: x.float(), r"forward failed on batch 1 of data.*RuntimeError"),
            (lambda x: x[:0], "batch 1 of data holds no sample"),
            (
                lambda x: x.index_fill(0, torch.tensor([2]), torch.nan),
                "batch 1 .* NaN or infinity, first in its sample 2",
            ),
            (
                lambda x: x.index_fill(0, torch.tensor([1]), torch.inf),
                "batch 1 .* NaN or infinity, first in its sample 1",
            ),
            (
                lambda x: x.index_fill(0, torch.tensor([1]), -torch.inf),
                "batch 1 .*infinity, first in its sample [01]",
            ),
            (lambda x: "text", "batch 1 of data: .*hold no tensor"),
        ],
    )
    def test_data_that_no_score_can_come_from(
        self, name: str, batch: Callable[[Tensor], Any], said: str
    ) -> None:
        case = built("mlp")
        with pytest.raises(sp.InputError, match=said):
            case.score(name, [(case.x, case.y), (batch(case.x), case.y)])

    @pytest.mark.parametrize("data", [3, "text", {"x": torch.zeros(1)}])
    def test_what_is_no_iterable_of_batches(self, name: str, data: Any) -> None:
        with pytest.raises(
            sp.InputError,
            match=rf"data is a {type(data).__name__}; .*where there is one batch|expected Iterable",
        ):
            built("mlp").score(name, data)

    def test_a_lone_tensor_is_split_into_batches(self, name: str) -> None:
        case = built("mlp")
        loss = {"loss": lambda output, _: output.square().mean()} if name in LABELLED else {}
        equal(case.score(name, case.x, **loss), case.score(name, [case.x], **loss))

    def test_every_way_to_write_inputs(self, name: str) -> None:
        case = built("mlp")
        expected = case.score(name, case.data())
        for item in ([case.x, case.y], ((case.x,), case.y), ({"input": case.x}, case.y), ([case.x], case.y)):
            equal(case.score(name, [item]), expected)
        if name not in LABELLED:
            equal(case.score(name, [case.x]), expected)
            equal(case.score(name, [{"input": case.x}]), expected)

    def test_prune_takes_them(self, name: str) -> None:
        case = built("mlp")
        result = sp.prune(case.model, case.x, sp.Budget(channels=0.5), name, data=case.data())
        assert result.plan.criterion == name
        for group in result.plan.groups:
            best = np.sort(np.argsort(-case.score(name)[group.name])[: group.count])
            assert list(group.keep) == best.tolist()


@pytest.mark.parametrize("name", sorted(WITH_THE_WEIGHTS))
def test_scales_with_the_weights(name: str) -> None:
    case = built("residual")
    plain = case.score(name)
    with torch.no_grad():
        for parameter in case.model.parameters():
            parameter *= 3
    equal(case.score(name), {group: 3 ** WITH_THE_WEIGHTS[name] * values for group, values in plain.items()})


@pytest.mark.parametrize("name", ["taylor", "snip", "fisher", "wanda", "obs"])
def test_a_factor_that_the_next_layer_undoes_has_no_say(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    x, y = torch.randn(20, 4).double(), torch.randint(0, 3, (20,))
    graph = sp.trace(model, x)
    plain = sp.score(model, graph, name, data=[(x, y)])
    with torch.no_grad():
        model[0].weight *= 4
        model[0].bias *= 4
        model[2].weight /= 4
    equal(sp.score(model, graph, name, data=[(x, y)]), plain)


@pytest.mark.parametrize("name", ["taylor", "snip", "fisher", "wanda", "obs", "fpgm", "lamp"])
def test_follows_channels_that_are_put_in_another_order(name: str) -> None:
    case = built("mlp")
    plain, order = case.score(name), torch.tensor([3, 0, 5, 1, 2, 4])
    with torch.no_grad():
        for tensor, dim in ((case.model[0].weight, 0), (case.model[0].bias, 0), (case.model[2].weight, 1)):
            tensor.copy_(tensor.index_select(dim, order))
    first, second = case.score(name).values()
    np.testing.assert_allclose(first, next(iter(plain.values()))[order.numpy()], rtol=1e-9)
    np.testing.assert_allclose(second, list(plain.values())[1], rtol=1e-9)


# -- references ---------------------------------------------------------------------------------------------------


def by_channel(
    group: ChannelGroup, values: dict[str, Tensor], roles: str = "out in scale affine"
) -> np.ndarray:
    """The sum of tensors over the members, position by position: [rows, size], or [size]."""
    found = np.zeros((group.rows, group.size) if group.by else (1, group.size))
    for member in group.members:
        tensor = values.get(member.tensor)
        if tensor is None or member.role not in roles.split():
            continue
        for place in np.ndindex(*tensor.shape):
            row = 0
            for dim, index in member.outer:
                row = row * (int(index.max()) + 1) + index[place[dim]]
            channel = member.index[place[member.dim]]
            if channel >= 0:
                found[row, channel] += float(tensor[place])
    return found if group.by else found[0]


def gradients(case: Case, start: int, stop: int) -> dict[str, Tensor]:
    model = copy.deepcopy(case.model).eval().requires_grad_()
    output = model(case.x[start:stop])
    F.cross_entropy(output.flatten(0, -2), case.y[start:stop].flatten()).backward()
    return {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}


def test_first_order_by_the_gradients_of_single_samples(case: Case) -> None:
    weights = {name: p.detach() for name, p in case.model.named_parameters()}
    single = [gradients(case, n, n + 1) for n in range(12)]
    groups = free(case.graph)
    slopes = {}
    for group in groups:
        roles = "in" if any(m.role == "in" for m in group.members) else "out in scale affine"
        each = [by_channel(group, {n: w * g[n] for n, w in weights.items()}, roles) for g in single]
        slopes[group.name] = np.abs(each).mean(0)
    equal(case.score("taylor"), slopes)
    mean = {n: (w * torch.stack([g[n] for g in single]).mean(0)).abs() for n, w in weights.items()}
    equal(case.score("snip"), {group.name: by_channel(group, mean) for group in groups})
    squares = {n: w**2 * torch.stack([g[n] ** 2 for g in single]).mean(0) / 2 for n, w in weights.items()}
    equal(case.score("fisher"), {group.name: by_channel(group, squares) for group in groups})


def test_taylor_is_the_slope_of_a_gate() -> None:
    case = built("mlp")
    gate = torch.ones(12, 6, dtype=torch.float64, requires_grad=True)
    first, second = case.model[:2], case.model[2:]
    losses = F.cross_entropy(second(first(case.x) * gate), case.y, reduction="sum")
    (slopes,) = torch.autograd.grad(losses, gate)
    (found, _) = case.score("taylor").values()
    np.testing.assert_allclose(found, slopes.abs().mean(0).numpy())


def test_hessian_by_the_exact_one() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    x, y = torch.randn(9, 2).double(), torch.randint(0, 3, (9,))
    graph, names = sp.trace(model, x), [name for name, _ in model.named_parameters()]

    def loss(*values: Tensor) -> Tensor:
        weights = dict(zip(names, values, strict=True))
        return F.cross_entropy(torch.func.functional_call(model, weights, (x,)), y)

    weights = tuple(p.detach() for p in model.parameters())
    blocks = torch.autograd.functional.hessian(loss, weights)
    sizes = [w.numel() for w in weights]
    full = torch.cat(
        [torch.cat([b.reshape(n, -1) for b in row], 1) for n, row in zip(sizes, blocks, strict=True)]
    )
    probes = 100
    calibration = Calibration(
        model, group_tensors(model, graph, dict(model.named_parameters())), [(x, y)], F.cross_entropy, True
    )
    found = hessian_diagonal(calibration, probes=probes)
    found_flat = torch.cat([found[name].flatten() for name in names if name in found])
    known = torch.tensor([name in found for name, n in zip(names, sizes, strict=True) for _ in range(n)])
    seen = full[known][:, known]  # the random vector is zero for what is not asked for
    spread = ((seen.square().sum(1) - seen.diagonal().square()) / probes).sqrt()
    assert ((found_flat - seen.diagonal()).abs() < 5 * spread + 1e-12).all()
    assert (spread < seen.diagonal().abs().max()).all()
    (group,) = free(graph)
    saliency = {n: w**2 * found[n] / 2 for n, w in zip(names, weights, strict=True) if n in found}
    scores = sp.score(model, graph, "hessian", data=[(x, y)], probes=probes)
    np.testing.assert_allclose(scores[group.name], np.abs(by_channel(group, saliency)))


def test_hessian_is_exact_where_weights_do_not_meet() -> None:
    class Alone(nn.Module):
        """Each channel bends the loss by itself: random signs cancel exactly."""

        def __init__(self) -> None:
            super().__init__()
            self.up = nn.Linear(1, 4, bias=False)
            self.down = nn.Parameter(torch.ones(4, 1))

        def forward(self, x: Tensor) -> Tensor:
            return torch.exp(self.up(x)) @ self.down

    model, x = Alone().double(), torch.randn(6, 1).double()
    (group,) = free(sp.trace(model, x))
    alone = replace(group, members=tuple(m for m in group.members if m.tensor == "up.weight"))
    weight = model.up.weight.detach()[:, 0]
    curve = (x**2 * torch.exp(x * weight)).mean(0)
    options = {"data": [x], "loss": lambda output, _: output.mean(), "probes": 1}
    scores = sp.score(model, Graph((alone,)), "hessian", **options)
    np.testing.assert_allclose(scores[group.name], (weight**2 * curve / 2).numpy())


def inputs_of(case: Case) -> dict[str, Tensor]:
    """The inputs of each layer, rows by inputs, from hooks: [rows, inputs]."""
    found: dict[str, list[Tensor]] = {}

    def hook(name: str) -> Callable[..., None]:
        def keep(module: nn.Module, args: Any) -> None:
            x = args[0]
            if isinstance(module, nn.Conv2d):
                x = F.unfold(x, module.kernel_size, padding=module.padding).mT
            found.setdefault(f"{name}.weight", []).append(x.flatten(0, -2))

        return keep

    model = copy.deepcopy(case.model).eval()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.register_forward_pre_hook(hook(name))
    with torch.no_grad():
        model(case.x)
    return {name: torch.cat(parts) for name, parts in found.items()}


@pytest.mark.parametrize("net", ["mlp", "residual"])
def test_wanda_by_its_definition(net: str) -> None:
    case = built(net)
    norms = {name: (x.square().sum(0) / len(case.x)).sqrt() for name, x in inputs_of(case).items()}
    sizes: dict[str, Tensor] = {}
    for name, parameter in case.model.named_parameters():
        if name in norms:
            weight, norm = parameter.detach().abs(), norms[name]
            per = weight[0].numel()
            lead = (
                norm.view(-1, per) if norm.numel() > per else norm.view(1, per)
            )  # the inputs of each conv group
            sizes[name] = (weight.flatten(1) * lead.repeat_interleave(len(weight) // len(lead), 0)).view(
                weight.shape
            )
    equal(case.score("wanda"), {g.name: by_channel(g, sizes, "in") for g in free(case.graph)})


def test_wanda_of_images_of_several_sizes() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU(), nn.Conv2d(3, 2, 3, 2, 1)).double()
    images = [
        torch.randn(n, 1, size, size, dtype=torch.float64) for n, size in ((3, 7), (2, 5), (1, 5), (4, 7))
    ]
    with torch.no_grad():
        patches = [
            F.unfold(net[:2](x), 3, padding=1, stride=2) for x in images
        ]  # [n, channels * kernel, places]
    energy = sum(one.square().sum((0, 2)) for one in patches) / sum(len(x) for x in images)
    expected = (net[2].weight.detach().abs().flatten(1) * energy.sqrt()).sum(0).view(3, -1).sum(1)
    graph = sp.trace(net, images[0])
    (found,) = sp.score(net, graph, "wanda", data=images).values()
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("net", ["mlp", "residual"])
def test_obs_by_fitting_what_is_left(net: str) -> None:
    case = built(net)
    inputs, damping = inputs_of(case), 1e-3
    for group in free(case.graph):
        if group.by:
            continue
        expected = np.zeros(group.size)
        for member in group.members:
            if member.role != "in":
                continue
            weight, x = case.model.get_parameter(member.tensor).detach(), inputs[member.tensor]
            sets = len(x[0]) // weight[0].numel()  # the groups of a convolution, each by itself
            for part, rows in zip(x.chunk(sets, 1), weight.chunk(sets), strict=True):
                index = np.broadcast_to(
                    member.index[:, None], (weight.shape[1], weight[0, 0].numel())
                ).ravel()
                for channel in range(group.size):
                    expected[channel] += least_error(
                        part, rows.flatten(1), index != channel, damping, len(case.x)
                    )
        found = case.score("obs", damping=damping)[group.name]
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def least_error(x: Tensor, weight: Tensor, kept: np.ndarray, damping: float, samples: int) -> float:
    """The least of |x (w' - w)|^2 / samples + ridge |w' - w|^2 over all w' that are zero where nothing is kept."""
    ridge = damping * x.square().sum(0).mean() / samples
    design = torch.cat([x / samples**0.5, ridge.sqrt() * torch.eye(x.shape[1], dtype=x.dtype)])
    aim = design @ weight.T
    left = design[:, torch.from_numpy(kept)]
    return float((left @ torch.linalg.lstsq(left, aim).solution - aim).square().sum())


def test_obs_sees_what_others_can_stand_in_for() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    with torch.no_grad():
        model[0].weight[3], model[0].bias[3] = 2 * model[0].weight[1], 2 * model[0].bias[1]
    x = torch.randn(200, 4).double()
    (scores,) = sp.score(model, sp.trace(model, x), "obs", data=[x], damping=1e-9).values()
    assert sorted(np.argsort(scores)[:2].tolist()) == [1, 3]
    assert scores[[1, 3]].max() < 1e-6 * np.delete(scores, [1, 3]).min()


def vectors(case: Case, group: ChannelGroup) -> np.ndarray:
    """All parameters of each channel in a row: [size, numbers]."""
    parameters = dict(case.model.named_parameters())
    rows = []
    for channel in range(group.size):
        parts = [
            parameters[m.tensor].detach().movedim(m.dim, 0)[torch.from_numpy(m.index == channel)].flatten()
            for m in group.members
            if m.tensor in parameters
        ]
        rows.append(torch.cat(parts).numpy())
    return np.stack(rows)


def test_fpgm_and_lamp_by_loops(case: Case) -> None:
    medians, shares = case.score("fpgm"), case.score("lamp")
    for group in free(case.graph):
        if group.by:
            continue
        rows = vectors(case, group)
        distances = [sum(np.linalg.norm(one - other) for other in rows) for one in rows]
        np.testing.assert_allclose(medians[group.name], distances, rtol=1e-9)
        squares = (rows**2).sum(1)
        expected = [s / squares[squares >= s * (1 - 1e-12)].sum() for s in squares]
        np.testing.assert_allclose(shares[group.name], expected, rtol=1e-9)


@pytest.mark.parametrize("name", ["fpgm", "lamp", "l2"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused(name: str, value: float) -> None:
    case = built("mlp")
    with torch.no_grad():
        case.model[0].weight[1, 2] = value
    with pytest.raises(sp.InputError, match=r"'0.weight' holds NaN or infinity"):
        case.score(name)


def test_fpgm_compares_within_a_head_and_a_group() -> None:
    case = built("residual")
    (group,) = [g for g in free(case.graph) if g.by]
    whole = case.score("fpgm")[group.name]
    with torch.no_grad():
        case.model.split.weight[:3] *= 5  # the first group's filters
    changed = case.score("fpgm")[group.name]
    assert (changed[0] != whole[0]).any()
    np.testing.assert_allclose(changed[1], whole[1])


def test_queries_and_keys_are_scored_by_what_makes_them() -> None:
    case = built("attention")
    (group,) = [g for g in free(case.graph) if g.kind == "qk width"]
    assert not any(member.role == "in" for member in group.members)
    for name in ("wanda", "obs"):
        assert (case.score(name)[group.name] > 0).all()


# -- further -----------------------------------------------------------------------------------------------------


def test_inputs_that_are_not_seen_are_an_error() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(4, 6), nn.Parameter(torch.randn(6))

        def forward(self, x: Tensor) -> Tensor:
            return (self.up(x) * self.down).sum(1)

    model, x = Own(), torch.randn(3, 4)
    graph = sp.trace(model, x)
    groups = [
        replace(g, members=tuple(replace(m, role="in") if m.tensor == "down" else m for m in g.members))
        for g in free(graph)
    ]
    for name in ("wanda", "obs"):
        with pytest.raises(sp.InputError, match=r"input of 'down' is not known.*'mul'.*'taylor'"):
            sp.score(model, Graph(tuple(groups)), name, data=[x])


def test_complex_weights_and_inputs() -> None:
    class Spectral(nn.Module):
        """Hidden channels that are complex: made and read by complex weights."""

        def __init__(self) -> None:
            super().__init__()
            self.up = nn.Parameter(torch.randn(8, 5, dtype=torch.complex128))
            self.down = nn.Parameter(torch.randn(5, 3, dtype=torch.complex128))

        def forward(self, x: Tensor) -> Tensor:
            return (torch.fft.fft(x) @ self.up @ self.down).abs()

    model, x = Spectral(), torch.randn(20, 8).double()
    (group,) = free(sp.trace(model, x))
    hidden = torch.fft.fft(x) @ model.up.detach()
    size = (hidden.abs().square().sum(0) / 20).sqrt() * model.down.detach().abs().sum(1)
    (found,) = sp.score(model, Graph((group,)), "wanda", data=[x]).values()
    np.testing.assert_allclose(found, size.numpy())
    aim = hidden @ model.down.detach()
    lost = []
    for channel in range(5):
        left = hidden[:, [other for other in range(5) if other != channel]]
        lost.append(float((left @ torch.linalg.lstsq(left, aim).solution - aim).abs().square().sum()) / 20)
    (found,) = sp.score(model, Graph((group,)), "obs", data=[x], damping=1e-12).values()
    np.testing.assert_allclose(found, lost, rtol=1e-4)
    for name in LABELLED:
        (found,) = sp.score(
            model, Graph((group,)), name, data=[x], loss=lambda o, _: o.square().mean()
        ).values()
        assert (found > 0).all()


def test_a_forward_that_fails_says_on_what() -> None:
    class Pairs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.down(self.up(x[0] * x[1]).relu())

    model, x = Pairs(), torch.randn(2, 4)
    graph = sp.trace(model, x)
    sp.score(model, graph, "snip", data=[x], loss=lambda o, _: o.sum())
    with pytest.raises(
        sp.InputError, match=r"forward failed on batch 0 of data \(1 sample: .*gradients: IndexError"
    ):
        sp.score(model, graph, "fisher", data=[x], loss=lambda o, _: o.sum())


def test_masks_of_minus_infinity_are_inputs() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.down(self.up((x + mask).softmax(1)).relu())

    model, x, mask = Masked(), torch.randn(2, 4), torch.zeros(2, 4)
    mask[:, 3] = -torch.inf
    graph = sp.trace(model, (x, mask))
    for name in ("wanda", "snip"):
        found = sp.score(model, graph, name, data=[((x, mask), torch.tensor([0, 1]))])
        assert all(values.max() > 0 for values in found.values())


@pytest.mark.parametrize("seed", ["a", -1, 1.5])
def test_a_seed_is_a_number_from_zero_up(seed: Any) -> None:
    for name in ("random", "hessian"):
        with pytest.raises(sp.InputError, match=r"seed=.*an integer from 0 up"):
            built("mlp").score(name, seed=seed)


def test_options_go_where_they_belong() -> None:
    case = built("mlp")
    one, other = case.score("hessian", seed=1), case.score("hessian", seed=2)
    assert any((one[group] != other[group]).any() for group in one)
    for options in ({"probes": 0}, {"steps": 3}):
        with pytest.raises(sp.InputError, match="|".join(options)):
            case.score("hessian", **options)
    with pytest.raises(sp.InputError, match="damping=0"):
        case.score("obs", damping=0)
    with pytest.raises(sp.InputError, match="damping"):
        case.score("wanda", damping=1)


def test_a_criterion_is_a_statistic_and_a_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_CRITERIA", own := dict(registry._CRITERIA))
    monkeypatch.setattr(registry, "_NEEDS", dict(registry._NEEDS))

    def counted(calibration: Calibration) -> dict[str, Tensor]:
        samples = sum(batch.size for batch in calibration)
        shapes = {name: calibration.model.get_parameter(name).shape for name in calibration.parameters}
        return {name: torch.full(shape, samples) for name, shape in shapes.items()}

    def each(weight: Tensor, statistic: Tensor) -> Tensor:
        return statistic

    @criterion(counted)
    def samples(group: GroupTensors) -> np.ndarray:
        return group.total(plain_sum, of=each)

    case = built("mlp")
    assert own["samples"] is samples
    assert needs_of(samples) == Needs(counted, False)
    scores = sp.score(case.model, case.graph, samples, data=[case.x[:5], case.x[5:]])
    assert [values.tolist() for values in scores.values()] == [[12 * 10] * 6, [12 * 10] * 5]
    with pytest.raises(ValueError, match="'samples' is registered already"):
        criterion()(samples)


def test_a_function_of_ones_own_may_take_data_itself() -> None:
    case = built("mlp")
    seen: list[Any] = []

    def own(group: GroupTensors, data: Any = None) -> np.ndarray:
        seen.append(data)
        return np.ones(group.size)

    sp.score(case.model, case.graph, own, data="mine")
    sp.score(case.model, case.graph, lambda group: np.ones(group.size), data="passed over")
    assert seen == ["mine", "mine"]


def test_sequences_of_logits_and_other_losses() -> None:
    case = built("attention")
    flat = case.score("taylor", loss=lambda o, t: F.cross_entropy(o.flatten(0, 1), t.flatten()))
    equal(case.score("taylor"), flat)


TWO = """
import sys, torch, torch.distributed as dist
import structprune as sp
from tests.test_criteria import DATA, built, equal

rank = int(sys.argv[1])
case = built(sys.argv[3])
alone = {name: case.score(name, case.data()) for name in DATA}
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
for name in DATA:
    equal(case.score(name, [case.data(3, 7)[0]] if rank else case.data(3, 7)[1:]), alone[name])
dist.destroy_process_group()
"""


def test_two_processes_score_as_one(tmp_path: Path) -> None:
    root = str(Path(__file__).resolve().parent.parent)
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    command, store = [sys.executable, "-W", "ignore", "-c", TWO], str(tmp_path / "store")
    processes = [
        subprocess.Popen(
            [*command, str(rank), store, "residual"], env=environment, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors


def test_processes_that_have_not_met_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    case = built("mlp")
    with pytest.raises(sp.InputError, match=r"2 processes.*accelerate.Accelerator\(\)"):
        case.score("taylor")
    assert case.score("l2")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *(("hessian", {"probes": probes}) for probes in (0, 1.5, "8", True)),
        *(("hessian", {"seed": seed}) for seed in (-1, 1.5, "1")),
        *(("obs", {"damping": damping}) for damping in (0, -1.0, "a", float("inf"), float("nan"))),
    ],
)
def test_options_out_of_range_are_refused_by_name(name: str, options: dict[str, Any]) -> None:
    model, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.ones(2, 3)
    with pytest.raises(sp.InputError, match=f"{next(iter(options))}="):
        sp.score(model, sp.trace(model, x), name, data=[(x, torch.tensor([0, 1]))], **options)
