"""Every pattern that broke other tools is pruned and judged exact, or what cannot be cut says why."""

from __future__ import annotations

import pytest
import torch

import structprune as sp
from tests.harness import check_again, check_case, check_frozen
from tests.nets.case import Case
from tests.nets.patterns import PATTERNS
from tests.oracle import compare, duplicate, fill_distinct

# What pruning at half the channels gives where it is not "exact": the status, and words of the reason.
OUTCOMES = {
    "one layer": "refused: weight (model output)",
    "one layer inside": "refused: 0 (model output)",
    "one-channel gate expanded by literal": "refused: expanded to the number 8",
    "projection that must stay": "refused: a view is written with the number 8",
    "data parallel": "refused: prune model.module",
    "traced by jit": "refused: before it is scripted or traced",
    "compiled": "refused: before torch.compile",
    "quantised": "refused: before quantising",
}

# Tensors that could get smaller and are left whole: what remains to be understood.
STILL_WHOLE: dict[str, tuple[str, ...]] = {}

EVERY = pytest.mark.parametrize("case", PATTERNS, ids=lambda case: f"{case.row}-{case.id}")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


def test_every_row_has_a_network() -> None:
    assert {case.row for case in PATTERNS} == set(range(1, 32))
    assert len({case.id for case in PATTERNS}) == len(PATTERNS)
    assert {*OUTCOMES, *STILL_WHOLE} <= {case.id for case in PATTERNS}


@EVERY
def test_half_of_the_channels(case: Case) -> None:
    verdict = check_case(case, OUTCOMES, 0.5, STILL_WHOLE)
    if verdict.status == "exact":
        check_again(verdict, case.inputs())


@EVERY
def test_a_quarter_of_the_channels(case: Case) -> None:
    check_case(case, OUTCOMES, 0.75, STILL_WHOLE)


@pytest.mark.parametrize("case", [c for c in PATTERNS if c.frozen], ids=lambda case: case.id)
def test_reasons(case: Case) -> None:
    check_frozen(case)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_chunk_halves_stay_equal_over_steps(steps: int) -> None:
    case = next(c for c in PATTERNS if c.id == "chunk into two convs")
    torch.manual_seed(0)
    model, x = fill_distinct(case.build()), case.inputs()
    small = duplicate(model)
    for _ in range(steps):
        small = sp.prune(small, x, sp.Budget(channels=0.5 ** (1 / steps))).model
    verdict = compare(model, small, x)
    assert verdict.status == "exact", verdict.detail
    left, right = small.get_submodule("left"), small.get_submodule("right")
    assert left.in_channels == right.in_channels == small.get_submodule("stem").out_channels // 2 < 16
