"""Criteria: values worked out by hand, and a contract that every criterion keeps, against plain loops."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from structprune.errors import InputError
from structprune.importance import (
    CRITERIA,
    GroupTensors,
    MemberTensor,
    abs_max,
    abs_sum,
    needs_of,
    score,
    square_sum,
)
from tests.hand_groups import Group, Member

MAGNITUDE = ("l1", "l2", "linf")
PLAIN = sorted(
    name for name, function in CRITERIA.items() if needs_of(function) is None
)  # the others need data


@dataclass(frozen=True)
class Graph:
    groups: tuple[Group, ...]


class Net(nn.Module):
    """Two convolutions, concatenated, flattened into a linear layer: each way a channel takes part."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 4, 3)
        self.left_norm = nn.BatchNorm2d(4)
        self.right = nn.Conv2d(3, 6, (3, 1), bias=False)
        self.both_norm = nn.BatchNorm2d(10)
        self.classify = nn.Linear(10 * 4, 5)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight)
                nn.init.normal_(module.running_mean)


def graph_of(left: np.ndarray, right: np.ndarray) -> Graph:
    """The groups of Net, where channel left[i] of the group is filter i; the same for right."""
    first = np.concatenate([left, np.full(6, -1)])
    second = np.concatenate([np.full(4, -1), right])
    norm = {"weight": "scale", "bias": "affine", "running_mean": "affine", "running_var": "affine"}
    groups = (
        Group(
            "left",
            4,
            (
                Member("left.weight", 0, left, "out"),
                Member("left.bias", 0, left, "affine"),
                *(Member(f"left_norm.{part}", 0, left, role) for part, role in norm.items()),
                *(Member(f"both_norm.{part}", 0, first, role) for part, role in norm.items()),
                Member("classify.weight", 1, np.repeat(first, 4), "in"),
            ),
        ),
        Group(
            "right",
            6,
            (
                Member("right.weight", 0, right, "out"),
                *(Member(f"both_norm.{part}", 0, second, role) for part, role in norm.items()),
                Member("classify.weight", 1, np.repeat(second, 4), "in"),
            ),
        ),
        Group("classes", 5, (Member("classify.weight", 0, np.arange(5), "out"),), frozen="model output"),
    )
    return Graph(groups)


def plain() -> Graph:
    return graph_of(np.arange(4), np.arange(6))


def elements(model: nn.Module, group: Group, channel: int) -> Iterator[float]:
    """Every parameter element of one channel, member by member, position by position."""
    parameters = dict(model.named_parameters())
    for member in group.members:
        if member.tensor in parameters:
            for position, owner in enumerate(member.index):
                if owner == channel:
                    values = parameters[member.tensor].select(member.dim, position)
                    yield from values.detach().double().flatten().tolist()


def by_loops(model: nn.Module, group: Group, criterion: str) -> list[float]:
    result = []
    for channel in range(group.size):
        sizes = [abs(value) for value in elements(model, group, channel)]
        values = {"l1": sum(sizes), "l2": sum(v * v for v in sizes) ** 0.5, "linf": max(sizes)}
        result.append(values[criterion])
    return result


@pytest.mark.parametrize("criterion", PLAIN)
class TestEveryCriterion:
    def test_float64_per_channel_of_every_free_group(self, criterion: str) -> None:
        scores = score(Net(), plain(), criterion)
        assert {name: values.shape for name, values in scores.items()} == {"left": (4,), "right": (6,)}
        assert all(values.dtype == np.float64 for values in scores.values())

    def test_finite_and_not_negative(self, criterion: str) -> None:
        for values in score(Net(), plain(), criterion).values():
            assert np.isfinite(values).all()
            assert (values >= 0).all()

    def test_deterministic_and_the_model_is_only_read(self, criterion: str) -> None:
        model = Net().train()
        before = copy.deepcopy(model.state_dict())
        flags = [parameter.requires_grad for parameter in model.parameters()]
        state = torch.random.get_rng_state()
        first, second = score(model, plain(), criterion), score(model, plain(), criterion)
        for name, values in first.items():
            assert np.array_equal(values, second[name])
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, before[name])
        assert model.training
        assert [parameter.requires_grad for parameter in model.parameters()] == flags
        assert all(parameter.grad is None for parameter in model.parameters())
        assert torch.equal(torch.random.get_rng_state(), state)

    def test_groups_do_not_influence_each_other(self, criterion: str) -> None:
        model, graph = Net(), plain()
        together = score(model, graph, criterion)
        for group in graph.groups[:2]:
            alone = score(model, Graph((group,)), criterion)[group.name]
            np.testing.assert_allclose(alone, together[group.name], rtol=1e-12)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
    def test_every_dtype(self, criterion: str, dtype: torch.dtype) -> None:
        model = Net().to(dtype)
        reference = score(copy.deepcopy(model).double(), plain(), criterion)
        for name, values in score(model, plain(), criterion).items():
            np.testing.assert_allclose(values, reference[name], rtol=1e-12)


@pytest.mark.parametrize("criterion", [*MAGNITUDE, "bn_scale"])
class TestEveryCriterionThatReadsWeights:
    def test_meta_tensors_are_refused(self, criterion: str) -> None:
        with pytest.raises(InputError, match=r"left.*weight.*meta"):
            score(Net().to("meta"), plain(), criterion)

    def test_follows_a_renumbering_of_the_channels(self, criterion: str) -> None:
        model = Net()
        left, right = np.array([2, 0, 3, 1]), np.array([5, 3, 1, 0, 2, 4])
        straight = score(model, plain(), criterion)
        turned = score(model, graph_of(left, right), criterion)
        np.testing.assert_allclose(turned["left"][left], straight["left"], rtol=1e-12)
        np.testing.assert_allclose(turned["right"][right], straight["right"], rtol=1e-12)

    def test_scales_with_the_weights_and_ignores_their_sign(self, criterion: str) -> None:
        model = Net()
        straight = score(model, plain(), criterion)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(-4)
        for name, values in score(model, plain(), criterion).items():
            np.testing.assert_allclose(values, 4 * straight[name], rtol=1e-12)

    def test_buffers_have_no_say(self, criterion: str) -> None:
        model = Net()
        straight = score(model, plain(), criterion)
        for buffer in model.buffers():
            buffer.fill_(7)
        for name, values in score(model, plain(), criterion).items():
            assert np.array_equal(values, straight[name])

    def test_a_silent_channel_comes_last(self, criterion: str) -> None:
        model = Net()
        with torch.no_grad():
            for tensor, channel in (
                (model.left.weight, 2),
                (model.left.bias, 2),
                (model.left_norm.weight, 2),
            ):
                tensor[channel] = 0
            for tensor in (model.left_norm.bias, model.both_norm.weight, model.both_norm.bias):
                tensor[2] = 0
            model.classify.weight[:, 8:12] = 0
        values = score(model, plain(), criterion)["left"]
        assert values[2] == 0
        assert values.argmin() == 2

    def test_noncontiguous_weights(self, criterion: str) -> None:
        model = Net()
        straight = score(model, plain(), criterion)
        for name, values in score(model.to(memory_format=torch.channels_last), plain(), criterion).items():
            np.testing.assert_allclose(values, straight[name], rtol=1e-12)

    def test_weights_that_are_not_finite_are_named(self, criterion: str) -> None:
        model = Net()
        with torch.no_grad():
            model.both_norm.weight[0] = torch.nan
        with pytest.raises(InputError, match=r"'left'.*'both_norm.weight' holds NaN"):
            score(model, plain(), criterion)


@pytest.mark.parametrize("criterion", MAGNITUDE)
class TestMagnitude:
    def test_against_loops(self, criterion: str) -> None:
        model, graph = Net(), plain()
        scores = score(model, graph, criterion)
        for group in graph.groups[:2]:
            np.testing.assert_allclose(scores[group.name], by_loops(model, group, criterion), rtol=1e-12)

    def test_by_hand(self, criterion: str) -> None:
        model = nn.Linear(3, 2, bias=False)
        with torch.no_grad():
            model.weight.copy_(torch.tensor([[1.0, -2, 2], [0, 3, -4]]))
        inputs = Group("inputs", 3, (Member("weight", 1, np.arange(3), "in"),))
        outputs = Group("outputs", 2, (Member("weight", 0, np.arange(2), "out"),))
        expected = {
            "l1": ([5, 7], [1, 5, 6]),
            "l2": ([3, 5], [1, 13**0.5, 20**0.5]),
            "linf": ([2, 4], [1, 3, 4]),
        }[criterion]
        scores = score(model, Graph((outputs, inputs)), criterion)
        np.testing.assert_allclose(scores["outputs"], expected[0], rtol=1e-15)
        np.testing.assert_allclose(scores["inputs"], expected[1], rtol=1e-15)

    def test_a_tied_tensor_counts_where_it_is_named(self, criterion: str) -> None:
        model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
        model[1].weight = model[0].weight
        group = Group(
            "stream",
            4,
            (Member("0.weight", 0, np.arange(4), "out"), Member("0.weight", 1, np.arange(4), "in")),
        )
        values = score(model, Graph((group,)), criterion)["stream"]
        np.testing.assert_allclose(values, by_loops(model, group, criterion), rtol=1e-12)


class TestReductions:
    @pytest.mark.parametrize("shape", [(7,), (1,), (3, 5), (4, 3, 3, 3), (2, 70_001), (1, 3, 90_000), (0, 4)])
    def test_every_dim_in_one_pass(self, shape: tuple[int, ...]) -> None:
        tensor = torch.randn(shape)
        dims = list(range(len(shape)))
        exact = tensor.double().abs()
        for dim, squares, sums, peaks in zip(
            dims, square_sum(tensor, dims), abs_sum(tensor, dims), abs_max(tensor, dims), strict=True
        ):
            rows = exact.unsqueeze(-1).movedim(dim, 0).flatten(1)
            torch.testing.assert_close(squares, rows.square().sum(1), rtol=1e-12, atol=0)
            torch.testing.assert_close(sums, rows.sum(1), rtol=1e-12, atol=0)
            assert torch.equal(peaks, rows.amax(1) if rows.numel() else torch.zeros(shape[dim]).double())

    def test_large_row_splits_along_another_dim(self) -> None:
        tensor = torch.ones(2, 300_000)
        rows, columns = square_sum(tensor, [0, 1])
        assert rows.tolist() == [300_000, 300_000]
        assert columns.unique().tolist() == [2]

    def test_complex_weights(self) -> None:
        assert square_sum(torch.tensor([3 + 4j, 1j]), [0])[0].tolist() == [25, 1]


class TestBatchNormScale:
    def test_sums_the_scales_of_all_norms_of_a_channel(self) -> None:
        model = Net()
        scores = score(model, plain(), "bn_scale")
        single, double = model.left_norm.weight.abs().double(), model.both_norm.weight.abs().double()
        np.testing.assert_allclose(scores["left"], (single + double[:4]).tolist())
        np.testing.assert_allclose(scores["right"], double[4:].tolist())

    def test_a_group_without_norm_falls_back_to_l2_around_one(self) -> None:
        model = Net()
        left, right, classes = plain().groups
        bare = replace(right, members=tuple(m for m in right.members if "norm" not in m.tensor))
        scores = score(model, Graph((left, bare, classes)), "bn_scale")
        norms = score(model, Graph((bare,)), "l2")["right"]
        np.testing.assert_allclose(scores["right"], norms / norms.mean())

    def test_a_model_without_norm_is_refused(self) -> None:
        group = Group(
            "out", 2, (Member("weight", 0, np.arange(2), "out"), Member("bias", 0, np.arange(2), "affine"))
        )
        with pytest.raises(InputError, match=r"bn_scale.*'l2'"):
            score(nn.Linear(3, 2), Graph((group,)), "bn_scale")

    def test_scales_that_are_buffers_count(self) -> None:
        model = nn.Module()
        model.register_buffer("weight", torch.tensor([1.0, -2]))
        group = Group("out", 2, (Member("weight", 0, np.arange(2), "scale"),))
        assert score(model, Graph((group,)), "bn_scale")["out"].tolist() == [1, 2]


class TestRandom:
    def test_seeds_and_names_decide(self) -> None:
        model, graph = Net(), plain()
        first, second = score(model, graph, "random"), score(model, graph, "random", seed=1)
        assert not np.array_equal(first["left"], second["left"])
        assert not np.array_equal(first["left"], first["right"][:4])


class TestOwnCriteria:
    def test_a_function_of_the_group(self) -> None:
        seen: list[GroupTensors] = []

        def weight_of_consumers(group: GroupTensors) -> np.ndarray:
            seen.append(group)
            return group.total(abs_sum, [member for member in group.members if member.role == "in"])

        model = Net()
        scores = score(model, plain(), weight_of_consumers)
        consumed = model.classify.weight.detach().double().abs().sum(0).view(10, 4).sum(1)
        np.testing.assert_allclose(scores["left"], consumed[:4])
        np.testing.assert_allclose(scores["right"], consumed[4:])
        assert [group.name for group in seen] == [peer.name for peer in seen[0].peers] == ["left", "right"]
        member = seen[0].members[0]
        assert isinstance(member, MemberTensor)
        assert (
            torch.equal(member.tensor, model.left.weight),
            member.owner is model.left,
            member.is_parameter,
        ) == (True,) * 3

    def test_gradients_through_a_reduction(self) -> None:
        def products(tensor: torch.Tensor, dims: list[int]) -> list[torch.Tensor]:
            assert tensor.grad is not None
            return abs_sum(tensor * tensor.grad, dims)

        model = Net()
        for parameter in model.parameters():
            parameter.grad = 2 * torch.ones_like(parameter)
        scores = score(model, plain(), lambda group: group.total(products))
        for name, values in score(model, plain(), "l1").items():
            np.testing.assert_allclose(scores[name], 2 * values)

    def test_tensors_and_lists_are_taken(self) -> None:
        assert score(Net(), plain(), lambda g: torch.arange(g.size))["left"].tolist() == [0, 1, 2, 3]
        assert score(Net(), plain(), lambda g: list(range(g.size)))["left"].tolist() == [0, 1, 2, 3]

    def test_one_that_writes_into_what_it_is_given_leaves_the_model(self) -> None:
        def greedy(group: GroupTensors) -> np.ndarray:
            for member in group.members:
                member.tensor.mul_(0)
                group.values(member).detach().fill_(3)
            return group.total(lambda tensor, dims: abs_sum(tensor.abs_(), dims))

        model = Net()
        before = copy.deepcopy(model.state_dict())
        scores = score(model, plain(), greedy)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        for name, values in score(model, plain(), "l1").items():
            np.testing.assert_allclose(scores[name], values)

    @pytest.mark.parametrize(
        "result",
        [
            lambda g: ["high"] * g.size,
            lambda g: ["1"] * g.size,
            lambda g: np.ones(g.size) * 1j,
            lambda g: torch.ones(g.size, dtype=torch.complex64),
            lambda g: [object()] * g.size,
            lambda g: [[1.0], [1.0, 2.0]],
        ],
    )
    def test_what_is_no_real_number_is_refused_by_name(self, result: Any) -> None:
        with pytest.raises(InputError, match=r"'left': criterion '<lambda>' returned .*not one real number"):
            score(Net(), plain(), lambda group: result(group))

    def test_wrong_results_are_refused(self) -> None:
        with pytest.raises(InputError, match=r"'left' has 4 channels.*got \(2,\)"):
            score(Net(), plain(), lambda g: np.ones(2))
        with pytest.raises(InputError, match="check the criterion"):
            score(Net(), plain(), lambda g: np.full(g.size, np.inf))


class TestRefusals:
    def test_unknown_name_lists_the_known(self) -> None:
        with pytest.raises(InputError, match=r"'l3'.*bn_scale, .*l1, l2, .*random"):
            score(Net(), plain(), "l3")

    def test_unknown_option(self) -> None:
        with pytest.raises(InputError, match=r"'l2'.*seed"):
            score(Net(), plain(), "l2", seed=3)

    def test_another_model(self) -> None:
        with pytest.raises(InputError, match=r"no tensor 'left.weight'"):
            score(nn.Linear(2, 2), plain())
        model = Net()
        model.left = nn.Conv2d(3, 5, 3)
        with pytest.raises(InputError, match=r"'left.weight' has shape \(5, 3, 3, 3\).*size 4"):
            score(model, plain())
