"""Small versions of the architectures people use: each is pruned to half its channels and judged exact."""

from __future__ import annotations

import pytest

from tests.harness import check_case
from tests.nets import (
    architectures_dense,
    architectures_residual,
    architectures_tokens,
    architectures_transformers,
)
from tests.nets.case import Case

HAND_WRITTEN = [*architectures_residual.CASES, *architectures_dense.CASES, *architectures_tokens.CASES]
FROM_TRANSFORMERS = architectures_transformers.CASES

# What pruning at half the channels gives where it is not "exact": the status, and words of the reason.
OUTCOMES: dict[str, str] = {}

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


def test_outcomes_belong_to_networks() -> None:
    names = [case.id for case in (*HAND_WRITTEN, *FROM_TRANSFORMERS)]
    assert len(set(names)) == len(names)
    assert set(OUTCOMES) <= set(names)


@pytest.mark.parametrize("case", HAND_WRITTEN, ids=lambda case: case.id)
def test_hand_written(case: Case) -> None:
    check_case(case, OUTCOMES, 0.5)


@pytest.mark.parametrize("case", FROM_TRANSFORMERS, ids=lambda case: case.id)
def test_from_transformers(case: Case) -> None:
    check_case(case, OUTCOMES, 0.5)
