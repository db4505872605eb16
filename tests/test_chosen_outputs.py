"""`outputs=`: which parts of a forward's result count as the network's output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import structprune as sp


@dataclass
class Result:
    logits: Tensor
    cache: list[Tensor]


class Decoder(nn.Module):
    """Returns what it computed on the way as well, as decoders return their caches."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.stem, self.key, self.head = nn.Linear(4, 12), nn.Linear(12, 8), nn.Linear(8, 3)
        self.kind = kind

    def forward(self, x: Tensor) -> Any:
        key = self.key(self.stem(x).relu())
        logits = self.head(key.relu())
        results = {
            "object": Result(logits, [key]),
            "dict": {"logits": logits, "cache": [key]},
            "tuple": (logits, [key]),
        }
        return results[self.kind]


CHOICES = [("object", "logits"), ("dict", ["logits"]), ("tuple", 0), ("object", lambda result: result.logits)]


@pytest.mark.parametrize(("kind", "outputs"), CHOICES)
def test_what_else_is_returned_may_get_smaller(kind: str, outputs: Any) -> None:
    x = torch.randn(2, 4)
    whole = sp.prune(Decoder(kind), x, sp.Budget(channels=0.5)).model
    assert whole.get_submodule("key").out_features == 8, "all that is returned counts by default"
    result = sp.prune(Decoder(kind), x, sp.Budget(channels=0.5), outputs=outputs)
    assert result.model.get_submodule("key").out_features == 4
    assert result.report.verify is not None


def test_the_proof_compares_what_counts() -> None:
    model, x = Decoder("dict"), torch.randn(2, 4)
    plan = sp.trace(model, x, outputs="logits").plan({"key": range(4)})
    small = sp.apply_plan(model, plan)
    sp.verify(model, small, plan, x, outputs="logits")
    with pytest.raises(sp.VerificationError):
        sp.verify(model, small, plan, x)


@pytest.mark.parametrize(
    ("kind", "known"), [("dict", "'logits', 'cache'"), ("object", "'cache', 'logits'"), ("tuple", "")]
)
def test_an_output_that_is_not_there_is_named(kind: str, known: str) -> None:
    with pytest.raises(sp.InputError, match=f"outputs: a .* has no 'logit'; it has .{known}"):
        sp.trace(Decoder(kind), torch.randn(2, 4), outputs="logit")
