"""Layers that values choose among: each of them is cut with the rest, or what it shares stays."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import structprune as sp
from tests.oracle import judge


class Expert(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))  # type: ignore[no-any-return]


class Experts(nn.Module):
    """A residual block whose rows go to the best of six experts; ``way`` is how the rows are sent there."""

    def __init__(self, way: str, best: int = 1, width: int = 16, count: int = 6) -> None:
        super().__init__()
        self.stem, self.norm, self.head = nn.Linear(8, width), nn.LayerNorm(width), nn.Linear(width, 5)
        self.router = nn.Linear(width, count, bias=False)
        self.experts = nn.ModuleList(Expert(width, 24) for _ in range(count))
        self.way, self.best, self.count = way, best, count

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        shares, chosen = F.softmax(self.router(x), -1).topk(self.best, -1)
        x = x + getattr(self, self.way)(x, shares, chosen)
        return self.head(self.norm(x))  # type: ignore[no-any-return]

    def added(self, x: Tensor, shares: Tensor, chosen: Tensor) -> Tensor:
        """Rows by number, over the experts that were hit (as transformers writes it)."""
        out = torch.zeros_like(x)
        mask = F.one_hot(chosen, self.count).permute(2, 1, 0)
        for (expert,) in torch.greater(mask.sum(dim=(-1, -2)), 0).nonzero():
            place, rows = torch.where(mask[expert])
            out.index_add_(0, rows, self.experts[expert](x[rows]) * shares[rows, place, None])  # type: ignore[index]
        return out

    def masked(self, x: Tensor, shares: Tensor, chosen: Tensor) -> Tensor:
        """Rows by mask, over all experts but those that nothing goes to."""
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            mine = chosen == number
            rows = mine.any(-1)
            if rows.any():
                out[rows] = out[rows] + expert(x[rows]) * (shares * mine).sum(-1, keepdim=True)[rows]
        return out

    def single(self, x: Tensor, shares: Tensor, chosen: Tensor) -> Tensor:
        """Row by row."""
        rows = [self.experts[int(number)](row) for row, number in zip(x, chosen[:, 0], strict=True)]
        return torch.stack(rows) * shares[:, :1]


def half(model: nn.Module, x: Any) -> nn.Module:
    return sp.prune(model, x, sp.Budget(channels=0.5)).model


@pytest.mark.parametrize("rows", [2, 40])
@pytest.mark.parametrize(
    ("way", "best"), [("added", 1), ("added", 2), ("masked", 1), ("masked", 3), ("single", 1)]
)
def test_every_expert_is_cut_with_the_rest_whichever_the_example_reaches(
    way: str, best: int, rows: int
) -> None:
    torch.manual_seed(3)
    x = torch.randn(rows, 8)
    graph = sp.trace(Experts(way, best), x)
    free = {group.name for group in graph.groups if group.frozen is None}
    assert free == {"stem", *(f"experts.{number}.up" for number in range(6))}
    assert graph.unused == ()
    verdict = judge(Experts(way, best), x, half)
    assert verdict.status == "exact", verdict.detail
    assert verdict.pruned is not None
    verdict.pruned(torch.randn(200, 8))  # reaches all


def test_macs_are_those_of_the_example_alone() -> None:
    torch.manual_seed(3)
    x = torch.randn(1, 8)
    assert sp.count_macs(Experts("masked"), x) == 8 * 16 + 16 * 6 + 2 * 16 * 24 + 16 * 5


class Gated(nn.Module):
    """Branches taken where a sum is positive: no scores to turn round."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(8, 16), nn.Linear(16, 5)
        self.branches = nn.ModuleList(Expert(16, 24) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = self.branches[0](x) if x.sum() > 0 else self.branches[1](x)
        return self.head(x)  # type: ignore[no-any-return]


def test_what_a_missed_branch_shares_with_its_sibling_stays() -> None:
    model = Gated()
    groups = {group.name: group for group in sp.trace(model, torch.randn(2, 8)).groups}
    assert "branches.1, which may take and give the same, was not chosen" in str(groups["stem"].frozen)
    assert groups["branches.0.up"].frozen is None
    with pytest.warns(UserWarning, match="not reached by this forward"):
        result = sp.prune(model, torch.randn(2, 8), sp.Budget(channels=0.5))
    small = result.model
    assert small.get_submodule("branches.0.up").out_features == 12
    with torch.no_grad():
        small.get_parameter("stem.bias").fill_(-100.0)
        assert small(torch.randn(2, 8)).shape == (2, 5), "the other branch fits as well"


def test_the_masked_original_goes_its_own_way() -> None:
    """The branch that the cut network takes is another than the whole one took: still the same function."""
    torch.manual_seed(0)

    class Turning(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            x = x.relu() if self.head(x).sum() > 0 else torch.tanh(x) * 2
            return self.head(x)  # type: ignore[no-any-return]

    model, x = Turning(), torch.tensor([[1.0, 1.0, 1.0, 1.5]])
    with torch.no_grad():
        model.stem.weight.fill_(1.0)
        model.stem.bias.zero_()
        model.head.bias.zero_()
        model.head.weight.fill_(-0.1)
        model.head.weight[:, 0] = 1.0
    keep = list(range(1, 8))
    plan = sp.trace(model, x).plan({"stem": keep})
    small = sp.apply_plan(model, plan)
    report = sp.verify(model, small, plan, x)
    assert report.max_error <= 1e-9
    assert (
        float(model.head(model.stem(x)).sum()) > 0 > float(small.get_submodule("head")(small.stem(x)).sum())
    )


def test_axes_that_only_the_proof_would_freeze_are_masked() -> None:
    """On real tensors torch takes other steps, and a sibling that was not reached freezes what it shares."""
    torch.manual_seed(0)

    class Added(nn.Module):
        def __init__(self, used: bool) -> None:
            super().__init__()
            self.table, self.used = nn.Parameter(torch.randn(1, 4, 8)), used

        def forward(self, x: Tensor) -> Tensor:
            return x + self.table if self.used else x + F.one_hot(torch.arange(4), 4).sum(-1, keepdim=True)

    model = nn.Sequential(
        nn.Linear(6, 8), Added(True), Added(False), nn.Linear(8, 8), nn.MaxPool1d(2), nn.Linear(4, 3)
    )
    x = torch.randn(2, 4, 6)
    with pytest.warns(UserWarning, match="not reached by this forward"):
        result = sp.prune(model, x, sp.Budget(macs=0.6))
    assert result.model.get_submodule("0").out_features < 8
    assert result.report.verify is not None
