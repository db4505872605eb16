"""Networks drawn at random are pruned as the independent judge says, or refused for a reason."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from torch import nn

import structprune as sp
from tests.nets.drawn import Program, Step, networks
from tests.oracle import compare, fill_distinct, judge

FRACTIONS = st.sampled_from([0.2, 0.34, 0.5, 0.62, 0.75, 0.9])
HOWS = st.sampled_from(["channels", "channels", "macs", "params", "any plan", "any plan"])


def any_plan(model: nn.Module, inputs: Any, fraction: float) -> nn.Module:
    """A plan that cuts every free group at random, those included that no default would cut."""
    graph = sp.trace(model, inputs)
    chance = random.Random(int(100 * fraction) + len(graph.groups))
    count: dict[int, int] = {}
    for group in graph.groups:
        if group.frozen is None:
            count.setdefault(group.tie, chance.randint(max(1, int(group.size * fraction / 2)), group.size))
    counts = np.array(
        [g.size if g.frozen else min(count[g.tie], g.size) for g in graph.groups], dtype=np.int64
    )
    for violation in graph.violations(counts):
        counts[list(violation.groups)] = graph.sizes()[list(violation.groups)]
    if graph.violations(counts):
        counts = graph.sizes()
    ties: dict[int, set[int]] = {}
    for group, kept in zip(graph.groups, counts, strict=True):
        ties.setdefault(group.tie, set()).add(int(kept))

    def drawn(group: sp.ChannelGroup, kept: int) -> list[int] | list[list[int]]:
        """Some channels, or some of its own in each channel of the groups that allow it."""
        rows = [sorted(chance.sample(range(group.size), kept)) for _ in range(group.rows)]
        return rows if group.by and chance.random() < 0.8 else rows[0]

    keep = {
        group.name: drawn(group, int(kept))
        for group, kept in zip(graph.groups, counts, strict=True)
        if group.frozen is None and len(ties[group.tie]) == 1
    }
    plan = graph.plan(keep)
    small = sp.apply_plan(model, plan)
    sp.verify(model, small, plan, inputs)
    return small


def check(program: Program, how: str, fraction: float) -> None:
    model, inputs = program.build(), program.inputs()

    def prune(network: nn.Module, x: Any) -> nn.Module:
        if how == "any plan":
            return any_plan(network, x, fraction)
        return sp.prune(network, x, sp.Budget(**{how: fraction})).model

    verdict = judge(model, inputs, prune, refusals=(sp.BudgetError,))
    assert verdict.status in ("exact", "left whole", "refused"), f"{verdict.status}: {verdict.detail}"
    if verdict.status == "refused":
        assert "cannot be met" in verdict.detail


RULES = settings(
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)


@pytest.mark.parametrize("part", range(4))
def test_drawn_networks_are_pruned_exactly(part: int) -> None:
    """200 networks, in parts that run beside each other."""

    @seed(part)
    @settings(RULES, max_examples=50, derandomize=False, phases=[Phase.explicit, Phase.generate])
    @given(networks(), HOWS, FRACTIONS)
    def run(program: Program, how: str, fraction: float) -> None:
        check(program, how, fraction)

    run()


@pytest.mark.nightly
@settings(RULES, max_examples=2000, derandomize=False, print_blob=True)
@given(networks(most=12), HOWS, FRACTIONS)
def test_many_drawn_networks_are_pruned_exactly(program: Program, how: str, fraction: float) -> None:
    check(program, how, fraction)


@pytest.mark.nightly
@settings(RULES, max_examples=300, derandomize=False, print_blob=True)
@given(networks(), FRACTIONS)
def test_many_drawn_networks_are_rewritten_and_pruned_exactly(program: Program, fraction: float) -> None:
    model, inputs = program.build(), program.inputs()

    def prune(network: nn.Module, x: Any) -> nn.Module:
        return sp.prune(network, x, sp.Budget(channels=fraction), rewrite=True).model

    verdict = judge(model, inputs, prune, refusals=(sp.BudgetError,))
    assert verdict.status in ("exact", "left whole", "refused"), f"{verdict.status}: {verdict.detail}"


@settings(RULES, max_examples=40, phases=[Phase.explicit, Phase.generate])
@given(networks(), st.randoms(use_true_random=False))
def test_proof_and_judge_agree_about_spoiled_networks(program: Program, chance: random.Random) -> None:
    """Channels of one tensor of the pruned network in another order: seen by both, or harmless to both."""
    model, inputs = fill_distinct(program.build()), program.inputs()
    try:
        result = sp.prune(model, inputs, sp.Budget(channels=0.5))
    except sp.BudgetError:
        return
    places = [(p, dim) for p in result.model.parameters() for dim in range(p.ndim) if p.shape[dim] > 1]
    tensor, dim = chance.choice(places)
    with torch.no_grad():
        tensor.copy_(tensor.roll(1, dim).clone())
    try:
        sp.verify(model, result.model, result.plan, inputs)
        proven = True
    except sp.VerificationError:
        proven = False
    assert proven is (compare(model, result.model, inputs).status in ("exact", "left whole"))


# Networks that were drawn once and went wrong, made as small as they get.
TOKENS, IMAGE = (2, 4, 6), (2, 3, 8, 8)
LINEAR = Step("Linear", (0,), {"out": 8, "bias": True, "how": "module"})
FIRST = Step("Convolve", (0,), {"out": 4, "kernel": 1, "groups": 1, "stride": 1, "bias": True})
GROUPED = Step("Convolve", (1,), {"out": 4, "kernel": 3, "groups": 2, "stride": 2, "bias": True})
FOUND = {
    "root mean square norm without weights": (
        Program(TOKENS, (LINEAR, Step("Norm", (1,), {"kind": "root", "groups": 1, "affine": False})), (2,)),
        "channels",
    ),
    "literal sizes that the batch repeats": (
        Program(TOKENS, (LINEAR, Step("Fold", (1,), {"groups": 2, "kind": "mix", "how": "literal"})), (2,)),
        "channels",
    ),
    "group norm with the channels last in memory": (
        Program(
            IMAGE,
            (
                FIRST,
                Step("Fold", (1,), {"groups": 4, "kind": "mix", "how": "attribute"}),
                Step("Norm", (2,), {"kind": "group", "groups": 1, "affine": False}),
                Step("Reform", (3,), {"how": "channels last flatten"}),
            ),
            (4,),
        ),
        "channels",
    ),
    "as many groups as strides": (Program(IMAGE, (FIRST, GROUPED), (2,)), "any plan"),
}


@pytest.mark.parametrize("found", FOUND)
def test_networks_that_went_wrong_once(found: str) -> None:
    program, how = FOUND[found]
    check(program, how, 0.2 if how == "any plan" else 0.5)
