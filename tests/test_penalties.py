"""Penalties: values and proximal steps by hand and by brute force, minima as scikit-learn finds them, exact zeros."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import nn
from torch.utils.data import TensorDataset

import structprune as sp
from structprune.errors import InputError
from structprune.masking import sparsify
from structprune.train import (
    L1,
    L2,
    GroupLasso,
    GrowingL2,
    Iterative,
    Penalty,
    Slimming,
    TrainOptions,
    finetune,
    prune_gradually,
)
from structprune.train.penalties.base import step_sizes
from structprune.train.penalties.channels import Channels, channels_of
from tests.nets.by_row import FREE


def by_hand() -> nn.Sequential:
    """Two hidden channels: (2, -1), bias 2, read by (4, 0) (norm 5) and (0, 1), bias 0, read by (0, -1)."""
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[2.0, -1.0], [0.0, 1.0]]))
        model[0].bias.copy_(torch.tensor([2.0, 0.0]))
        model[2].weight.copy_(torch.tensor([[4.0, 0.0], [0.0, -1.0]]))
        model[2].bias.copy_(torch.tensor([7.0, 7.0]))
    return model


def graph_of(model: nn.Module, x: Any = None) -> sp.DependencyGraph:
    return sp.trace(model, torch.randn(3, 2) if x is None else x)


def trainable(model: nn.Module, graph: sp.DependencyGraph) -> tuple[Channels, ...]:
    groups = [group for group in graph.groups if group.frozen is None]
    return channels_of(model, groups, lambda member: member.is_parameter)


class Streams(nn.Module):
    """A residual stream through two batch norms, a square matrix on it, and a grouped convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.deep, self.deep_norm = nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.BatchNorm2d(8)
        self.square = nn.Conv2d(8, 8, 1, bias=False)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.stem(x)).relu()
        x = x + self.deep_norm(self.deep(x)).relu()
        x = x + self.square(x)
        return self.head(x.mean((2, 3)))


class Square(nn.Module):
    """Two channels through a residual layer: channel 0 is made, passed on and read by weights of 1, all else is 0."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(i, o, bias=False) for i, o in ((1, 2), (2, 2), (2, 1)))
        with torch.no_grad():
            for layer in (self.a, self.b, self.c):
                layer.weight.zero_()[0, 0] = 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.a(x).relu()
        return self.c(h + self.b(h).relu())


class Tied(nn.Module):
    """An embedding whose table is the last layer's weight too."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.up, self.down = nn.Embedding(11, 6), nn.Linear(6, 9), nn.Linear(9, 6, bias=False)
        self.last = nn.Linear(6, 11)
        self.last.weight = self.table.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.table(ids)
        return self.last(x + self.down(self.up(x).tanh()))


NETS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "by hand": lambda: (by_hand(), torch.randn(3, 2)),
    "streams": lambda: (Streams(), torch.randn(2, 1, 6, 6)),
    "tied": lambda: (Tied(), torch.randint(0, 11, (2, 5))),
    **{name: build for name, (build, _) in FREE.items()},
}


def norms_by_weight(model: nn.Module, graph: sp.DependencyGraph) -> dict[str, np.ndarray]:
    """By group, the norms of the channels: of all weights that alone give the channel a score, each once."""
    probe = copy.deepcopy(model)
    for parameter in probe.parameters():
        parameter.data.zero_()
    squares: dict[str, Any] = dict.fromkeys(sp.score(model, graph, "l2"), 0.0)
    for own, empty in zip(model.parameters(), probe.parameters(), strict=True):
        for place, value in enumerate(own.detach().reshape(-1).tolist()):
            empty.data.view(-1)[place] = 1
            for group, found in sp.score(probe, graph, "l2").items():
                squares[group] = squares[group] + (found > 0) * value**2
            empty.data.view(-1)[place] = 0
    return {group: np.sqrt(square) for group, square in squares.items()}


class TestChannels:
    @pytest.mark.parametrize("name", NETS)
    def test_norms_are_what_the_criterion_l2_says_with_each_weight_once(self, name: str) -> None:
        model, x = NETS[name]()
        graph = sp.trace(model, x)
        scores = sp.score(model, graph, "l2")
        found = {one.name: one.norms().reshape(one.shape).detach().numpy() for one in trainable(model, graph)}
        assert found.keys() == scores.keys()
        twice = name == "streams"  # there the criterion counts the weights from a channel to itself twice
        for group, values in (norms_by_weight(model, graph) if twice else scores).items():
            np.testing.assert_allclose(found[group], values, rtol=1e-5)

    @pytest.mark.parametrize("name", NETS)
    def test_a_channel_at_zero_is_zero_and_the_others_stay(self, name: str) -> None:
        """Against the plan that removes it: what the plan keeps of the tensors is untouched, all else is zero."""
        model, x = NETS[name]()
        graph = sp.trace(model, x)
        one = trainable(model, graph)[0]
        before = {key: value.clone() for key, value in model.named_parameters()}
        factors = torch.ones(one.count)
        factors.reshape(-1, one.shape[-1])[:, 0] = 0
        one.scale_(factors)
        plan = graph.plan({one.name: list(range(1, one.shape[-1]))})
        removed = 0
        for key, value in model.named_parameters():
            kept = torch.ones_like(value, dtype=torch.bool)
            for dim, positions in plan.tensors.get(key, {}).items():
                stays = torch.zeros(value.shape[dim], dtype=torch.bool)
                stays[list(positions)] = True
                kept &= stays.reshape([-1 if d == dim else 1 for d in range(value.ndim)])
            assert torch.equal(value, torch.where(kept, before[key], 0)), key
            removed += int((~kept).sum())
        assert one.sizes.reshape(one.shape)[..., 0].sum() == removed

    def test_what_is_not_trained_has_no_part(self) -> None:
        model = by_hand()
        graph = graph_of(model)
        model[0].requires_grad_(False)
        (one,) = trainable(model, graph)
        assert one.norms().tolist() == [4.0, 1.0]
        assert one.sizes.tolist() == [2.0, 2.0]
        one.scale_(torch.zeros(2))
        assert model[0].weight[0].tolist() == [2.0, -1.0]
        assert model[2].weight.count_nonzero() == 0


class TestByHand:
    def test_values(self) -> None:
        model = by_hand()
        graph = graph_of(model)
        assert GroupLasso(graph, 2.0).value(model).item() == pytest.approx(2 * 5**0.5 * (5 + 2**0.5))
        assert L1(graph, 2.0).value(model).item() == 2 * (2 + 1 + 2 + 4 + 1 + 1)
        assert L2(graph, 2.0).value(model).item() == (4 + 1 + 4 + 16) + (1 + 1)

    def test_group_lasso_takes_a_channel_as_a_whole(self) -> None:
        model = by_hand()
        GroupLasso(graph_of(model), 1 / 5**0.5).shrink(model, 2.0)  # each norm 2 less: 5 -> 3, sqrt(2) -> 0
        torch.testing.assert_close(model[0].weight, torch.tensor([[1.2, -0.6], [0.0, 0.0]]))
        torch.testing.assert_close(model[0].bias, torch.tensor([1.2, 0.0]))
        torch.testing.assert_close(model[2].weight, torch.tensor([[2.4, 0.0], [0.0, 0.0]]))
        assert model[2].bias.tolist() == [7.0, 7.0]  # of no channel
        assert int((model[0].weight == 0).sum()) == 2

    def test_what_a_layer_says_of_a_channel_to_itself_counts_once(self) -> None:
        """Channel 0 has five weights, three of them 1: one that makes it, three of the square, one that reads it."""
        model = Square()
        penalty = GroupLasso(graph_of(model, torch.randn(3, 1)), 1.0)
        assert penalty.value(model).item() == pytest.approx(15**0.5)
        penalty.add_gradients(model)
        assert model.b.weight.grad is not None
        assert model.b.weight.grad[0, 0].item() == pytest.approx((5 / 3) ** 0.5)  # sqrt(5) * w / norm
        penalty.shrink(model, 0.1)
        left = 1 - 0.1 * (5 / 3) ** 0.5
        for layer in (model.a, model.b, model.c):
            assert layer.weight.flatten()[0].item() == pytest.approx(left)
            assert layer.weight.count_nonzero() == 1

    def test_l1_takes_weights_one_by_one(self) -> None:
        model = by_hand()
        L1(graph_of(model), 3.0).shrink(model, 0.5)
        assert model[0].weight.tolist() == [[0.5, 0.0], [0.0, 0.0]]
        assert model[0].bias.tolist() == [0.5, 0.0]
        assert model[2].weight.tolist() == [[2.5, 0.0], [0.0, 0.0]]

    def test_l2_is_weight_decay(self) -> None:
        model = by_hand()
        L2(graph_of(model), 3.0).shrink(model, 1.0)
        assert model[0].bias.tolist() == [0.5, 0.0]
        assert model[2].bias.tolist() == [7.0, 7.0]

    def test_growing_l2_is_for_the_channels_that_go(self) -> None:
        model = by_hand()
        graph = graph_of(model)
        (group,) = (group for group in graph.groups if group.frozen is None)
        penalty = GrowingL2(graph, graph.plan({group.name: [1]}), 3.0)
        assert penalty.value(model).item() == 3 / 2 * 25
        penalty.shrink(model, 1.0, share=1 / 3)
        assert model[0].weight.tolist() == [[1.0, -0.5], [0.0, 1.0]]
        assert model[2].weight.tolist() == [[2.0, 0.0], [0.0, -1.0]]

    def test_slimming_takes_scales_that_belong_together_at_once(self) -> None:
        model = Streams()
        with torch.no_grad():
            model.norm.weight.fill_(3.0)
            model.deep_norm.weight.fill_(4.0)
        before = {key: value.clone() for key, value in model.named_parameters()}
        penalty = Slimming(graph_of(model, torch.randn(2, 1, 6, 6)), 1.0)
        assert penalty.value(model).item() == pytest.approx(8 * 2**0.5 * 5)
        penalty.shrink(model, 5 / 2**0.5 / 2)  # half of each norm
        torch.testing.assert_close(model.norm.weight, torch.full((8,), 1.5))
        torch.testing.assert_close(model.deep_norm.weight, torch.full((8,), 2.0))
        assert all(
            torch.equal(value, before[key])
            for key, value in model.named_parameters()
            if "norm.weight" not in key
        )
        penalty.shrink(model, 10.0)
        assert model.norm.weight.tolist() == model.deep_norm.weight.tolist() == [0.0] * 8


PENALTIES: dict[str, Callable[[sp.DependencyGraph], Penalty[Any]]] = {
    "L1": lambda graph: L1(graph, 0.3),
    "L2": lambda graph: L2(graph, 0.3),
    "GroupLasso": lambda graph: GroupLasso(graph, 0.3),
    "GrowingL2": lambda graph: GrowingL2(
        graph, graph.plan({next(g.name for g in graph.groups if g.frozen is None): [0]}), 0.3
    ),
}


@pytest.mark.parametrize("name", PENALTIES)
class TestEvery:
    def test_gradients_are_those_of_the_value(self, name: str) -> None:
        """By finite differences in float64."""
        model = by_hand().double()
        penalty = PENALTIES[name](graph_of(model, torch.randn(3, 2).double()))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter[parameter == 0] = 0.5  # where all of them are differentiable
        penalty.add_gradients(model)
        penalty.add_gradients(model, share=0.5)
        for parameter in model.parameters():
            flat = parameter.data.view(-1)
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            for place, found in enumerate(gradient.view(-1).tolist()):
                values = []
                for step in (1e-6, -1e-6):
                    flat[place] += step
                    values.append(penalty.value(model).item())
                    flat[place] -= step
                assert found == pytest.approx(1.5 * (values[0] - values[1]) / 2e-6, abs=1e-6)

    def test_the_gradient_is_finite_at_zero(self, name: str) -> None:
        model = by_hand()
        penalty = PENALTIES[name](graph_of(model))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        penalty.add_gradients(model)
        assert all(p.grad is None or p.grad.count_nonzero() == 0 for p in model.parameters())

    def test_the_proximal_step_is_the_minimum_it_is_defined_by(self, name: str) -> None:
        """Of half the squared distance and step * penalty, found by a search that knows only the value."""
        model = by_hand().double()
        penalty = PENALTIES[name](graph_of(model, torch.randn(3, 2).double()))
        start = nn.utils.parameters_to_vector(model.parameters()).detach().numpy().copy()
        probe = copy.deepcopy(model)

        def objective(values: np.ndarray) -> float:
            nn.utils.vector_to_parameters(torch.tensor(values), probe.parameters())
            return 0.5 * float(((values - start) ** 2).sum()) + 2.0 * float(penalty.value(probe).detach())

        found = minimize(objective, start, method="Powell", options={"xtol": 1e-9, "ftol": 1e-13})
        penalty.shrink(model, 2.0)
        stepped = nn.utils.parameters_to_vector(model.parameters()).detach().numpy()
        assert objective(stepped) <= found.fun + 1e-9
        np.testing.assert_allclose(stepped, found.x, atol=1e-3)

    def test_it_is_the_same_for_every_process(self, name: str) -> None:
        """The same weights and the same graph, bit for bit, whoever computes it: nothing is drawn, no data is read."""
        models = [by_hand(), by_hand()]
        for model in models:
            torch.manual_seed(id(model))
            PENALTIES[name](graph_of(model)).shrink(model, 0.1)
        for first, second in zip(*(model.parameters() for model in models), strict=True):
            assert torch.equal(first, second)

    def test_a_network_that_was_not_traced(self, name: str) -> None:
        penalty = PENALTIES[name](graph_of(by_hand()))
        with pytest.raises(InputError, match="trace"):
            penalty.value(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)))
        with pytest.raises(InputError, match="nothing to act on"):
            penalty.value(by_hand().requires_grad_(False))


class TestMinima:
    """What training comes to rest at, beside scikit-learn's solvers of the same problems."""

    @staticmethod
    def problem() -> tuple[nn.Sequential, torch.Tensor, torch.Tensor]:
        """Linear regression on 8 features, of which 3 matter, as a layer behind a frozen identity."""
        x = torch.randn(60, 8, dtype=torch.float64)
        truth = torch.zeros(8, 3, dtype=torch.float64)
        truth[:3] = torch.randn(3, 3, dtype=torch.float64)
        model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 3, bias=False)).double()
        model[0].weight.data.copy_(torch.eye(8))
        model[0].requires_grad_(False)
        return model, x, x @ truth + 0.1 * torch.randn(60, 3, dtype=torch.float64)

    @staticmethod
    def descend(model: nn.Module, x: torch.Tensor, y: torch.Tensor, penalty: Penalty[Any]) -> np.ndarray:
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(parameters, lr=0.01, momentum=0.9)
        for _ in range(500):
            optimizer.zero_grad()
            ((model(x) - y).square().sum() / (2 * len(x))).backward()
            optimizer.step()
            penalty.shrink(model, optimizer)
        return model[1].weight.detach().numpy()  # type: ignore[no-any-return, index, union-attr, operator]

    def test_group_lasso_with_momentum(self) -> None:
        linear = pytest.importorskip("sklearn.linear_model")
        model, x, y = self.problem()
        penalty = GroupLasso(sp.trace(model, x), 0.2 / 3**0.5)
        found = self.descend(model, x, y, penalty)
        theirs = linear.MultiTaskLasso(alpha=0.2, fit_intercept=False, tol=1e-12, max_iter=10**5)
        expected = theirs.fit(x.numpy(), y.numpy()).coef_
        np.testing.assert_allclose(found, expected, atol=1e-6)
        assert ((found == 0) == (expected == 0)).all()
        assert (expected == 0).all(0).sum() >= 3
        (zeros,) = penalty.zeros(model).values()
        assert zeros.tolist() == (expected == 0).all(0).tolist()

    def test_l1_with_momentum(self) -> None:
        linear = pytest.importorskip("sklearn.linear_model")
        model, x, y = self.problem()
        found = self.descend(model, x, y, L1(sp.trace(model, x), 0.1))
        theirs = linear.Lasso(alpha=0.1, fit_intercept=False, tol=1e-12, max_iter=10**5)
        expected = theirs.fit(x.numpy(), y.numpy()).coef_
        np.testing.assert_allclose(found, expected, atol=1e-6)
        assert ((found == 0) == (expected == 0)).all()

    def test_group_lasso_where_channels_share_weights(self) -> None:
        """The minimum of a quadratic with overlapping groups, beside the full dual ascent over explicit index sets."""
        model = nn.Sequential(
            nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)
        ).double()
        graph = sp.trace(model, torch.randn(2, 3, dtype=torch.float64))
        start = nn.utils.parameters_to_vector(model.parameters()).detach()
        sets = []
        numbers = copy.deepcopy(model)
        nn.utils.vector_to_parameters(torch.arange(len(start), dtype=torch.float64), numbers.parameters())
        first, second, third = numbers[0], numbers[2], numbers[4]
        for c in range(4):
            sets.append(torch.cat([first.weight[c], first.bias[c : c + 1], second.weight[:, c]]).long())
        for c in range(5):
            sets.append(torch.cat([second.weight[c], second.bias[c : c + 1], third.weight[:, c]]).long())
        strength = 0.25
        duals = [torch.zeros(len(one), dtype=torch.float64) for one in sets]
        expected = start.clone()
        for _ in range(400):
            for one, dual in zip(sets, duals, strict=True):
                expected[one] += dual
                limit = strength * len(one) ** 0.5
                dual.copy_(expected[one] * min(1.0, limit / float(expected[one].norm())))
                expected[one] -= dual
        penalty = GroupLasso(graph, strength)
        for number in range(1, 1200):
            step = 1 / (number + 2)
            with torch.no_grad():
                values = nn.utils.parameters_to_vector(model.parameters())
                nn.utils.vector_to_parameters(values - step * (values - start), model.parameters())
            penalty.shrink(model, step)
        found = nn.utils.parameters_to_vector(model.parameters()).detach()
        torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)
        zeros = [one for one in sets if bool((found[one] == 0).all())]
        assert 0 < len(zeros) < 9
        assert all(float(expected[one].norm()) < 1e-6 for one in zeros)


def digits(count: int = 600) -> TensorDataset:
    datasets = pytest.importorskip("sklearn.datasets")
    data = datasets.load_digits()
    pictures = torch.tensor(data.data[:count] / 16 - 0.5, dtype=torch.float32)
    return TensorDataset(pictures.view(-1, 1, 8, 8), torch.tensor(data.target[:count]))


def convolutions() -> nn.Sequential:
    first = [nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2)]
    second = [nn.Conv2d(12, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(24, 10))


def neurons() -> nn.Sequential:
    first = [nn.Flatten(), nn.Linear(64, 64), nn.ReLU()]
    return nn.Sequential(*first, nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


class TestTraining:
    def test_group_lasso_leaves_channels_that_go_for_nothing(self) -> None:
        data, x = digits(), torch.randn(2, 1, 8, 8)
        start = neurons()
        finetune(start, data, epochs=5, lr=0.05, batch_size=32)
        found = []
        for strength in (0.0, 2e-3):
            model = copy.deepcopy(start)
            graph = sp.trace(model, x)
            penalty = GroupLasso(graph, strength)
            log = finetune(model, data, epochs=8, lr=0.05, batch_size=32, hooks=[penalty], validation=data)
            plan = sp.train.zero_plan(graph, model)
            small = sp.apply_plan(model, plan)
            sp.verify(model, small, plan, x)
            inputs = data.tensors[0][:64].double()
            outputs = [net.double().eval()(inputs) for net in (model, small)]
            torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-12, atol=1e-12)
            found.append((sum(group.size - group.count for group in plan.groups), log[-1]))
        (without, _), (zeros, metrics) = found
        assert without == found[0][1]["zero_channels"] == 0
        assert zeros == metrics["zero_channels"] >= 10
        assert metrics["penalty"] > 0
        assert metrics["accuracy"] > 0.9

    def test_slimming_makes_scales_exactly_zero(self) -> None:
        model, data = convolutions(), digits()
        graph = sp.trace(model, torch.randn(2, 1, 8, 8))
        finetune(model, data, epochs=8, lr=0.05, batch_size=32, hooks=[Slimming(graph, 0.045)])
        dead = [int((norm.weight == 0).sum()) for norm in (model[1], model[5])]
        plan = sp.train.zero_plan(graph, model, criterion="bn_scale")
        assert [group.size - group.count for group in plan.groups] == dead
        assert sum(dead) >= 3

    def test_growing_l2_makes_the_cut_cheap(self) -> None:
        """The channels that go are the best ones by l2: without the penalty, their loss is felt."""
        data, x = digits(), torch.randn(2, 1, 8, 8)
        start = convolutions()
        finetune(start, data, epochs=3, lr=0.05)
        graph = sp.trace(start, x)
        worst = {name: -scores for name, scores in sp.score(start, graph).items()}
        plan = sp.select(graph, worst, sp.Budget(channels=0.5))
        kept = []
        for hooks in ([], [GrowingL2(graph, plan)]):
            model = copy.deepcopy(start)
            finetune(model, data, epochs=4, lr=0.05, hooks=hooks)
            kept.append(sp.train.evaluate(sp.apply_plan(model, plan), data))
            inputs = data.tensors[0][:64]
            small = sp.apply_plan(model, plan).eval()
            error = (model.eval()(inputs) - small(inputs)).norm() / small(inputs).norm()
            kept.append(float(error))
        without, difference_without, growing, difference = kept
        assert growing > without + 0.2
        assert difference < 0.05 < difference_without

    @pytest.mark.parametrize("traced", ["before masks", "after masks"])
    def test_masked_weights_stay_zero_and_channels_go(self, traced: str) -> None:
        model, data, x = neurons(), digits(), torch.randn(2, 1, 8, 8)
        finetune(model, data, epochs=3, lr=0.05, batch_size=32)
        masked = sparsify(model, 0.5)
        graph = sp.trace(model if traced == "before masks" else masked, x)
        gone = masked[3].weight == 0
        penalty = GroupLasso(graph, 2e-3)
        finetune(masked, data, epochs=6, lr=0.05, batch_size=32, weight_decay=0.01, hooks=[penalty])
        assert bool((masked[3].weight[gone] == 0).all())
        zeros = sum(int(zero.sum()) for zero in penalty.zeros(masked).values())
        plain = sp.finalize(masked)
        plan = sp.train.zero_plan(sp.trace(plain, x), plain)
        assert 3 <= zeros < 90
        assert sum(group.size - group.count for group in plan.groups) == zeros

    def test_a_gradient_instead_of_a_step(self) -> None:
        """L2 by its gradient is the optimiser's own weight decay."""
        data = TensorDataset(torch.randn(20, 2), torch.randint(0, 2, (20,)))
        start = nn.Sequential(nn.Linear(2, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False))
        ours, theirs = copy.deepcopy(start), copy.deepcopy(start)
        hook = L2(graph_of(ours), 0.5, proximal=False)
        finetune(ours, data, epochs=2, lr=0.1, weight_decay=0.0, hooks=[hook])
        finetune(theirs, data, epochs=2, lr=0.1, weight_decay=0.5)
        for found, expected, before in zip(*(m.parameters() for m in (ours, theirs, start)), strict=True):
            torch.testing.assert_close(found, expected)
            assert not torch.equal(found, before)

    def test_a_network_that_is_cut_between_is_traced_again(self) -> None:
        model, data = neurons(), digits(200)
        x = torch.randn(2, 1, 8, 8)
        graph, options = sp.trace(model, x), TrainOptions(epochs=1, lr=0.05)
        schedule = Iterative(steps=2)
        with pytest.raises(InputError, match="trace the model again"):
            prune_gradually(
                model, x, sp.Budget(params=0.5), data, options, schedule=schedule, hooks=[L1(graph, 0.1)]
            )
        penalty = L1(graph, 3e-3, example_inputs=x)
        result = prune_gradually(
            model, x, sp.Budget(params=0.5), data, options, schedule=schedule, hooks=[penalty]
        )
        assert [step.history[-1]["penalty"] > 0 for step in result.steps] == [True, True]
        assert sum(group.size for group in penalty.groups) < 64 + 32
        assert int((result.model[1].weight == 0).sum()) > 0  # type: ignore[index, union-attr]

    def test_strength_grows_with_the_steps(self) -> None:
        model = by_hand()
        penalty = L1(graph_of(model), 1.0, growth=0.5)
        seen = []
        penalty.shrink = lambda model, step, share=1.0: seen.append(share)  # type: ignore[method-assign]
        data = TensorDataset(torch.randn(32, 2), torch.randint(0, 2, (32,)))
        finetune(model, data, epochs=2, lr=0.1, batch_size=8, hooks=[penalty])
        assert seen == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0]


def test_which_groups() -> None:
    model = Streams()
    graph = sp.trace(model, torch.randn(2, 1, 6, 6))
    everything = {group.name for group in graph.groups if group.frozen is None and group.primary}
    assert {group.name for group in L1(graph, 1.0).groups} == everything
    assert not {group.name for group in L1(graph, 1.0, keep="square").groups} & {
        group.name for group in graph.groups if "square.weight" in group.layers
    }
    with pytest.raises(InputError, match="matches no group"):
        L1(graph, 1.0, only="nothing")


def test_steps_that_would_do_nothing_are_refused() -> None:
    model, before = by_hand(), by_hand()
    penalty = GroupLasso(graph_of(model), 1.0)
    stale = torch.optim.SGD(before.parameters(), lr=0.1)
    with pytest.raises(InputError, match="holds none of the weights that GroupLasso"):
        penalty.shrink(model, stale)
    for wrong in (-1.0, float("nan"), float("inf"), "much"):
        with pytest.raises(InputError, match="step="):
            penalty.shrink(model, wrong)  # type: ignore[arg-type]
    torch.testing.assert_close(model.state_dict(), before.state_dict(), rtol=0, atol=0)
    penalty.shrink(model, torch.optim.SGD(model[2].parameters(), lr=0.1))  # a part of them is enough
    assert not torch.equal(model[2].weight, before[2].weight)


def test_step_sizes_follow_the_momentum() -> None:
    a, b = (nn.Parameter(torch.zeros(1)) for _ in range(2))
    groups = [{"params": [a], "lr": 0.5, "momentum": 0.75}, {"params": [b], "lr": 0.1}]
    assert step_sizes(torch.optim.SGD(groups, lr=1.0)) == {id(a): 2.0, id(b): 0.1}
    assert step_sizes(torch.optim.AdamW([a], lr=0.25)) == {id(a): 0.25}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda graph, plan: L1(graph, -1.0), "strength"),
        (lambda graph, plan: L1(graph, float("nan")), "strength"),
        (lambda graph, plan: L1(graph, "much"), "strength"),
        (lambda graph, plan: L1(by_hand(), 1.0), "structprune.trace"),
        (lambda graph, plan: L1(graph, 1.0, growth=2.0), "growth"),
        (lambda graph, plan: L1(graph, 1.0, only=3), "only=3: expected names"),
        (lambda graph, plan: L1(graph, 1.0, keep=["0", 3]), "keep=.*: expected names"),
        (lambda graph, plan: L1(graph, 1.0, proximal="no"), "proximal='no'"),
        (lambda graph, plan: GrowingL2(graph, graph.plan({})), "removes no channels"),
        (lambda graph, plan: GrowingL2(graph, plan), "another model"),
        (lambda graph, plan: GrowingL2(graph, 0.5), "a graph and a plan, got .* and a float"),
        (lambda graph, plan: GrowingL2(plan, plan), "a graph and a plan, got a PruningPlan"),
        (lambda graph, plan: Slimming(graph, 1.0).value(by_hand()), "scales of normalisation layers"),
    ],
)
def test_bad_arguments_are_named(make: Callable[..., Any], message: str) -> None:
    other = convolutions()
    other_graph = sp.trace(other, torch.randn(2, 1, 8, 8))
    plan = sp.select(other_graph, sp.score(other, other_graph), sp.Budget(channels=0.5))
    with pytest.raises(InputError, match=message):
        make(graph_of(by_hand()), plan)
