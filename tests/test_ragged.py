"""Choices by row: each head, each group of a convolution keeps its own channels."""

from __future__ import annotations

import copy
import dataclasses
import json
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import structprune as sp
from structprune.errors import PlanError
from structprune.plan import ByRow, GroupPlan, PruningPlan
from structprune.surgery import cut_tensor
from tests.nets.by_row import FREE, TOGETHER
from tests.oracle import compare, fill_distinct


def made(build: Any) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model, x = build()
    return fill_distinct(copy.deepcopy(model)).eval(), x


def drawn(graph: sp.DependencyGraph, chance: random.Random) -> dict[str, Any]:
    """Some channels of every free group, by row wherever that is allowed."""
    counts: dict[int, int] = {}
    keep = {}
    for group in graph.groups:
        if group.frozen is None:
            count = counts.setdefault(group.tie, chance.randint(1, group.size))
            rows = [sorted(chance.sample(range(group.size), count)) for _ in range(group.rows)]
            keep[group.name] = rows if group.by else rows[0]
    return keep


@pytest.mark.parametrize("name", FREE)
def test_axes_that_may_differ_by_row(name: str) -> None:
    model, x = made(FREE[name][0])
    groups = {group.name: group for group in sp.trace(model, x).groups}
    assert any(group.by for group in groups.values())
    for group, rows in FREE[name][1].items():
        assert groups[group].rows == rows
        assert np.prod([groups[other].size for other in groups[group].by]) == rows


@pytest.mark.parametrize("name", TOGETHER)
def test_axes_that_may_not_differ_by_row(name: str) -> None:
    model, x = made(TOGETHER[name][0])
    graph = sp.trace(model, x)
    concerned = [g for g in graph.groups if any(m.tensor in TOGETHER[name][1] for m in g.members)]
    assert concerned
    assert not any(group.by for group in concerned)
    plan = graph.plan(drawn(graph, random.Random(1)))
    assert compare(model, sp.apply_plan(model, plan), x).status in ("exact", "left whole")


@pytest.mark.parametrize("name", FREE)
def test_any_choice_by_row_is_exact(name: str) -> None:
    """Twice in a row, as text, and as the independent judge has it."""
    model, x = made(FREE[name][0])
    for seed in (1, 2, 3):
        graph = sp.trace(model, x)
        plan = graph.plan(drawn(graph, random.Random(seed)))
        assert PruningPlan.from_json(plan.to_json()) == plan
        small = sp.apply_plan(model, plan)
        verdict = compare(model, small, x)
        assert verdict.status in ("exact", "left whole"), verdict.detail
        sp.verify(model, small, plan, x)
    again = sp.trace(small, x)
    plan = again.plan(drawn(again, random.Random(4)))
    assert compare(small, sp.apply_plan(small, plan), x).status in ("exact", "left whole")


@pytest.mark.parametrize("name", [name for name in FREE if name != "depthwise with a multiplier"])
@pytest.mark.parametrize("criterion", ["l1", "l2"])
def test_own_channels_keep_at_least_as_much(name: str, criterion: str) -> None:
    model, x = made(FREE[name][0])
    graph = sp.trace(model, x)
    scores = sp.score(model, graph, criterion)
    kept = {}
    for ragged in (True, False):
        plan = sp.select(graph, scores, sp.Budget(channels=0.5), ragged=ragged)
        assert compare(model, sp.apply_plan(model, plan), x).status == "exact"
        kept[ragged] = {group.name: importance(group, scores[group.name]) for group in plan.groups}
        assert any(group.by for group in plan.groups) == ragged
    assert all(kept[True][group] >= kept[False][group] for group in kept[True])
    assert any(kept[True][group] > kept[False][group] for group in kept[True])


def importance(group: GroupPlan, scores: np.ndarray) -> float:
    if group.by:
        return float(np.take_along_axis(scores, np.array(group.keep), axis=1).sum())
    return float(scores[..., list(group.keep)].sum())


@pytest.mark.parametrize("name", ["grouped convolution", "attention"])
def test_prune_chooses_by_row_unless_told_otherwise(name: str) -> None:
    model, x = made(FREE[name][0])
    own, same = (sp.prune(model, x, sp.Budget(macs=0.6), ragged=ragged) for ragged in (True, False))
    assert any(group.by for group in own.plan.groups)
    assert not any(group.by for group in same.plan.groups)
    assert own.report.macs_after == same.report.macs_after


def test_a_grouped_convolution_cut_by_hand() -> None:
    """Two groups of three inputs each: the first keeps 0 and 2, the second 1 and 2."""
    model = nn.Sequential(nn.Conv2d(2, 6, 1), nn.Conv2d(6, 4, 1, groups=2), nn.Conv2d(4, 2, 1))
    graph = sp.trace(model, torch.randn(1, 2, 4, 4))
    (group,) = [g for g in graph.groups if g.size == 3]
    plan = graph.plan({group.name: [[0, 2], [1, 2]]})
    assert plan.tensors["0.bias"] == {0: (0, 2, 4, 5)}
    assert plan.tensors["1.weight"] == {1: ByRow((0,), ((0, 2), (1, 2)), (0, 0, 1, 1))}
    assert plan.new_shape("1.weight") == (4, 2, 1, 1)
    assert [g for g in plan.groups if g.by] == [GroupPlan(group.name, 3, ((0, 2), (1, 2)), group.by)]
    small = sp.apply_plan(model, plan)
    before, after = model[1].weight[..., 0, 0], small[1].weight[..., 0, 0]
    assert torch.equal(after[:2], before[:2][:, [0, 2]])
    assert torch.equal(after[2:], before[2:][:, [1, 2]])
    assert (small[0].out_channels, small[1].in_channels, small[1].groups) == (4, 4, 2)


def test_scores_have_a_row_for_each_group() -> None:
    model = nn.Sequential(nn.Conv2d(2, 6, 1), nn.Conv2d(6, 4, 1, groups=2), nn.Conv2d(4, 2, 1))
    graph = sp.trace(model, torch.randn(1, 2, 4, 4))
    (group,) = [g for g in graph.groups if g.size == 3]
    expected = torch.zeros(2, 3, dtype=torch.float64)
    for row in range(2):
        for channel in range(3):
            at = row * 3 + channel
            own = [model[0].weight[at], model[0].bias[at], model[1].weight[2 * row : 2 * row + 2, channel]]
            expected[row, channel] = sum(part.detach().double().abs().sum() for part in own)
    np.testing.assert_allclose(sp.score(model, graph, "l1")[group.name], expected.numpy(), rtol=1e-12)
    assert sp.score(model, graph, "random")[group.name].shape == (2, 3)


def test_a_criterion_without_rows_gives_the_same_channels_in_each() -> None:
    model, x = made(FREE["attention"][0])
    graph = sp.trace(model, x)
    scores = sp.score(model, graph, lambda group: np.arange(group.size))
    plan = sp.select(graph, scores, sp.Budget(channels=0.5))
    assert {group.name: group.keep for group in plan.groups if group.count == 3} == {
        "q[1]": (3, 4, 5),
        "v": (3, 4, 5),
    }


@pytest.mark.parametrize("name", FREE)
def test_one_tensor_is_cut_by_name(name: str) -> None:
    model, x = made(FREE[name][0])
    graph = sp.trace(model, x)
    plan = graph.plan(drawn(graph, random.Random(5)))
    small = sp.apply_plan(model, plan)
    for key, tensor in model.state_dict().items():
        assert torch.equal(cut_tensor(plan, key, tensor), small.state_dict()[key])
    with pytest.raises(PlanError, match="has shape"):
        cut_tensor(plan, next(iter(plan.tensors)), torch.zeros(1, 1, 1))


def test_memory_format_and_ties_stay() -> None:
    model, x = made(FREE["grouped convolution"][0])
    model = model.to(memory_format=torch.channels_last)
    graph = sp.trace(model, x)
    plan = graph.plan({"0[1]": [[0, 1], [1, 2], [0, 3], [2, 3]], "2": [[0, 1], [1, 2], [0, 3], [2, 3]]})
    small = sp.apply_plan(model, plan)
    assert small[2].weight.is_contiguous(memory_format=torch.channels_last)
    assert small[2].weight.is_leaf


WRONG: dict[str, tuple[Any, str]] = {
    "rows of other lengths": ([[0, 1], [1], [2], [3]], "equal in number"),
    "too few rows": ([[0, 1], [1, 2]], "4 rows, one for each channel of"),
    "a channel twice": ([[0, 0], [1, 2], [1, 2], [1, 2]], "distinct channels"),
    "out of range": ([[0, 4], [1, 2], [1, 2], [1, 2]], "distinct channels"),
    "nothing": ([], "distinct channels"),
    "rows of nothing": ([[], [], [], []], "distinct channels"),
}


@pytest.mark.parametrize("name", WRONG)
def test_rows_that_cannot_be(name: str) -> None:
    model, x = made(FREE["grouped convolution"][0])
    graph = sp.trace(model, x)
    with pytest.raises(PlanError, match=WRONG[name][1]):
        graph.plan({"0[1]": WRONG[name][0]})
    with pytest.raises(PlanError, match="one for all, got 2 rows"):
        graph.plan({"0[0]": [[0, 1], [1, 2]]})


def by_row_plan() -> tuple[nn.Module, torch.Tensor, PruningPlan]:
    model, x = made(FREE["grouped convolution"][0])
    rows = [[0, 1], [1, 2], [0, 3], [2, 3]]
    return model, x, sp.trace(model, x).plan({"0[1]": rows})


def test_proof_refuses_a_tensor_with_other_rows() -> None:
    model, x, plan = by_row_plan()
    keep = plan.tensors["2.weight"][1]
    assert isinstance(keep, ByRow)
    spoiled = dataclasses.replace(keep, row=keep.row[::-1])
    wrong = dataclasses.replace(plan, tensors={**plan.tensors, "2.weight": {1: spoiled}})
    with pytest.raises(sp.VerificationError, match=r"otherwise than|differs"):
        sp.verify(model, sp.apply_plan(model, wrong), wrong, x)
    assert compare(model, sp.apply_plan(model, wrong), x).status == "wrong"


def test_proof_refuses_a_network_with_other_rows() -> None:
    model, x, plan = by_row_plan()
    other = sp.trace(model, x).plan({"0[1]": [[1, 2], [0, 1], [0, 3], [2, 3]]})
    with pytest.raises(sp.VerificationError, match="differs from the masked original"):
        sp.verify(model, sp.apply_plan(model, other), plan, x)


def text_with(path: str, value: Any) -> str:
    body = json.loads(by_row_plan()[2].to_json())
    *way, last = path.split("/")
    place = body["plans"][0]["tensors"]["2.weight"]
    for key in way:
        place = place[int(key)] if isinstance(place, list) else place[key]
    place[int(last) if isinstance(place, list) else last] = value
    return json.dumps(body)


HOSTILE = {
    "row that is not there": ("by_row/1/row", [[9, 16]]),
    "negative row": ("by_row/1/row", [[-1, 16]]),
    "too few": ("by_row/1/row", [[0, 3]]),
    "too many": ("by_row/1/row", [[0, 10**12]]),
    "less than once": ("by_row/1/row", [[0, 17], [0, -1]]),
    "rows of other lengths": ("by_row/1/rows/0", [[0, 1]]),
    "no rows": ("by_row/1/rows", []),
    "an empty row": ("by_row/1/rows/0", []),
    "a position twice": ("by_row/1/rows/0", [[0, 1], [0, 1]]),
    "a position outside": ("by_row/1/rows/0", [[3, 5]]),
    "by itself": ("by_row/1/by", [1]),
    "by a dim outside": ("by_row/1/by", [7]),
    "by a dim twice": ("by_row/1/by", [0, 0]),
    "by a negative dim": ("by_row/1/by", [-4]),
    "said twice": ("keep/1", [[0, 2]]),
    "dim outside": ("by_row/7", {"by": [0], "rows": [[[0, 1]]], "row": [[0, 16]]}),
    "unknown key": ("by_row/1/more", 1),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_rows_are_refused(name: str) -> None:
    with pytest.raises(PlanError) as caught:
        PruningPlan.from_json(text_with(*HOSTILE[name]))
    assert 10 < len(str(caught.value)) < 500


def test_text_of_version_one_is_read() -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 2))
    plan = sp.trace(model, torch.zeros(1, 3)).plan({"0": [0, 2, 5]})
    body = json.loads(plan.to_json())
    assert PruningPlan.from_json(json.dumps(body | {"schema_version": 1})) == plan


def test_rows_of_a_group_are_of_one_length() -> None:
    with pytest.raises(PlanError, match="rows of one length"):
        GroupPlan("g", 4, ((0, 1), (2,)), ("heads",))
    assert GroupPlan("g", 4, ((0, 1), (2, 3)), ("heads",)).count == 2
