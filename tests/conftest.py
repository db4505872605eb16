"""Shared set-up of all tests: one thread, a fixed seed, reproducible hypothesis examples where CI says so."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
import torch

from structprune.rules import registry

collect_ignore = [
    "toy_runtime.py"
]  # it registers a runtime: to collect doctests would import it a second time

hypothesis.settings.register_profile("default", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "default")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Every test starts from the same random state, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture
def table() -> Iterator[dict[str, Any]]:
    """The rule table, put back afterwards."""
    before = dict(registry._RULES)
    yield registry._RULES
    registry._RULES.clear()
    registry._RULES.update(before)
