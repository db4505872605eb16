"""Cuts that change a function: norms, softmax and means over the cut axis are named beforehand, proven over the kept
channels, and listed; what depends on positions stays, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import structprune as sp
from structprune.changes import told
from tests.nets.case import Net, conv, image, tokens
from tests.nets.gates import RMS, LayerNorm2d
from tests.oracle import judge

WIDTH = 16


def on_channels(operation: Callable[[Tensor], Tensor]) -> nn.Module:
    """A map of [n, c, h, w] between two convolutions; it runs in the root, on the line of `operation`."""
    width = operation(torch.randn(2, WIDTH, 8, 8)).shape[1]
    return Net(
        lambda m, x: m.head(m.operation(m.stem(x))),
        stem=conv(3, WIDTH),
        operation=operation,
        head=conv(width, 5),
    )


def on_tokens(norm: Any) -> nn.Module:
    return Net(
        lambda m, x: m.head(m.norm(m.stem(x))), stem=nn.Linear(6, WIDTH), norm=norm, head=nn.Linear(WIDTH, 5)
    )


def standardised(x: Tensor) -> Tensor:
    mean = x.mean(1, keepdim=True)
    return (x - mean) / torch.sqrt(((x - mean) ** 2).mean(1, keepdim=True) + 1e-5)


def response(x: Tensor) -> Tensor:
    norm = x.norm(dim=(2, 3), keepdim=True)
    return x * norm / (norm.mean(1, keepdim=True) + 1e-6) + x


# Each with what a cut of the channels changes, told by operation.
LAYERS: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "layer norm": (lambda: nn.LayerNorm(WIDTH), ["layer_norm"]),
    "layer norm, no weights": (lambda: nn.LayerNorm(WIDTH, elementwise_affine=False), ["layer_norm"]),
    "rms norm": (lambda: nn.RMSNorm(WIDTH), ["rms_norm"]),
    "rms norm by hand": (lambda: RMS(WIDTH), ["mean"]),
    "softmax": (lambda: nn.Softmax(-1), ["softmax"]),
    "layer norm of the first axes": (
        lambda: Net(lambda m, x: F.layer_norm(x, x.shape[-1:])),
        ["layer_norm"],
    ),
}
CHANGED: dict[str, tuple[Callable[[Tensor], Tensor], list[str]]] = {
    "layer norm over channels by hand": (LayerNorm2d(WIDTH), ["mean", "mean"]),
    "standardised by mean": (standardised, ["mean", "mean"]),
    "root of the mean square": (lambda x: x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-6), ["mean"]),
    "deviation": (lambda x: x / (x.std(1, keepdim=True) + 1e-6), ["std"]),
    "variance, biased": (lambda x: x / (1 + x.var(1, unbiased=False, keepdim=True)), ["var"]),
    "variance and mean": (lambda x: sum(torch.var_mean(x, dim=1, keepdim=True)) + x, ["var_mean"]),
    "group norm of one group": (lambda x: F.group_norm(x, 1), ["group_norm"]),
    "global response norm": (response, ["mean"]),
    "softmax": (lambda x: x.softmax(1), ["softmax"]),
    "log softmax": (lambda x: x.log_softmax(1), ["log_softmax"]),
    "softmin": (lambda x: F.softmin(x, 1), ["softmax"]),
    "gumbel-free temperature": (lambda x: (x / 0.5).softmax(1) * x, ["softmax"]),
    "logsumexp": (lambda x: x - x.logsumexp(1, keepdim=True), ["logsumexp"]),
    "mean": (lambda x: x * x.mean(1, keepdim=True), ["mean"]),
    "maximum": (lambda x: x - x.amax(1, keepdim=True), ["amax"]),
    "maximum with its place": (lambda x: x - x.max(1, keepdim=True)[0], ["max"]),
    "range": (lambda x: x / (torch.aminmax(x, dim=1, keepdim=True).max + 9), ["aminmax"]),
    "median": (lambda x: x - x.median(1, keepdim=True)[0], ["median"]),
    "product": (lambda x: x + x.prod(1, keepdim=True), ["prod"]),
    "mean over all but the batch": (lambda x: x - x.mean((1, 2, 3), keepdim=True), ["mean"]),
}

NOT_JUDGED = (
    "range",
    "median",
    "product",
)  # the judge's arithmetic has no form of these that skips what is gone

# Sums leave out what is removed, as the masked original does; other statistics run over places.
UNCHANGED: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": lambda x: x / (1 + x.abs().sum(1, keepdim=True)),
    "mean over places": lambda x: x * x.mean((2, 3), keepdim=True),
    "instance norm": lambda x: F.instance_norm(x),
    "softmax over places": lambda x: x.flatten(2).softmax(-1).view_as(x),
    "batch statistics": lambda x: F.batch_norm(x, None, None, training=True),
}

# The order or the number of the channels decides.
FROZEN: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "running sum": (lambda x: x.cumsum(1), "cumsum depends on the order of positions"),
    "sorted": (lambda x: x.sort(1)[0], "sort depends on the order of positions"),
    "best three": (lambda x: x.topk(3, 1)[0], "topk chooses among the positions of this dimension"),
    "position of the best": (
        lambda x: x * x.argmax(1, keepdim=True),
        "argmax returns a position in this dimension",
    ),
    "sum over a number": (
        lambda x: x / (x.sum(1, keepdim=True) / x.shape[1]),
        "the code uses this size, 16, as a",
    ),
    "local response norm": (lambda x: F.local_response_norm(x, 3), "avg_pool3d runs along this dimension"),
}


def stem_of(graph: sp.DependencyGraph) -> sp.ChannelGroup:
    return next(group for group in graph.groups if group.name == "stem")


def check(model: nn.Module, x: Tensor, wanted: list[str], judged: bool = True) -> None:
    """What is named beforehand is what the proof and the report list; an independent judge finds the cut right."""
    group = stem_of(sp.trace(model, x))
    assert group.frozen is None
    assert sorted(change.name for change in group.changes) == sorted(wanted)
    result = sp.prune(model, x, sp.Budget(channels=0.5))
    report = result.report
    assert report.changes == group.changes
    assert report.verify is not None
    assert {change.what for change in report.verify.changes} == {change.what for change in group.changes}
    listed = [
        line for line in str(report).splitlines() if line.startswith("statistics over fewer channels: ")
    ]
    assert listed == [f"statistics over fewer channels: {told(group.changes)}"] * bool(wanted)
    if judged:
        verdict = judge(model, x, lambda net, given: sp.prune(net, given, sp.Budget(channels=0.5)).model)
        assert (verdict.status, verdict.detail) == ("exact", verdict.detail)


@pytest.mark.parametrize("name", LAYERS)
def test_layers_over_channels(name: str) -> None:
    build, wanted = LAYERS[name]
    check(on_tokens(build()), tokens(6)(), wanted)


@pytest.mark.parametrize("name", CHANGED)
def test_operations_over_channels(name: str) -> None:
    operation, wanted = CHANGED[name]
    check(on_channels(operation), image()(), wanted, name not in NOT_JUDGED)


@pytest.mark.parametrize("name", UNCHANGED)
def test_what_does_not_change(name: str) -> None:
    check(on_channels(UNCHANGED[name]), image()(), [])


@pytest.mark.parametrize("name", FROZEN)
def test_what_depends_on_positions_stays(name: str) -> None:
    operation, reason = FROZEN[name]
    frozen = stem_of(sp.trace(on_channels(operation), image()())).frozen
    assert frozen is not None
    assert reason in frozen.reason


def test_a_change_names_its_layer_and_the_line() -> None:
    model = on_channels(standardised)
    line = standardised.__code__.co_firstlineno
    changes = stem_of(sp.trace(model, image()())).changes
    assert [(c.layer, c.operation, c.where) for c in changes] == [
        ("", "mean", f"test_changes.py:{line + 1}"),
        ("", "mean", f"test_changes.py:{line + 2}"),
    ]
    (change,) = stem_of(sp.trace(on_tokens(nn.LayerNorm(WIDTH)), tokens(6)())).changes
    assert (change.layer, change.name) == ("norm", "layer_norm")
    assert change.what == "its statistics are taken over the kept channels"


def test_group_norm_changes_by_the_channels_of_a_group_and_not_by_whole_groups() -> None:
    model = nn.Sequential(conv(3, 16), nn.GroupNorm(4, 16), conv(16, 5))
    groups = {group.name: group for group in sp.trace(model, image()()).groups}
    assert [(c.layer, c.name) for c in groups["0[1]"].changes] == [("1", "group_norm")]
    assert groups["0[0]"].changes == ()


def test_the_table_says_what_a_cut_changes() -> None:
    model = nn.Sequential(
        nn.Linear(6, 16), *(nn.LayerNorm(16) for _ in range(5)), nn.Softmax(-1), nn.Linear(16, 3)
    )
    row = next(line for line in str(sp.trace(model, tokens(6)())).splitlines() if line.startswith("0 "))
    assert row.endswith("free; statistics: layer_norm in 1, 2, 3 and 2 more; softmax in 6")


def test_cosine_similarity_is_over_the_kept_channels() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        a, b = m.stem(x), m.other(x)
        return m.head(a * F.cosine_similarity(a, b, dim=-1)[..., None] + b)

    layers = {"stem": nn.Linear(6, 16), "other": nn.Linear(6, 16), "head": nn.Linear(16, 3)}
    verdict = judge(
        Net(forward, **layers), tokens(6)(), lambda net, x: sp.prune(net, x, sp.Budget(channels=0.5)).model
    )
    assert (verdict.status, verdict.detail) == ("exact", verdict.detail)


def test_without_a_proof_the_report_lists_the_changes_all_the_same() -> None:
    result = sp.prune(on_tokens(nn.LayerNorm(WIDTH)), tokens(6)(), sp.Budget(channels=0.5), verify=False)
    assert result.report.verify is None
    assert [change.layer for change in result.report.changes] == ["norm"]
    kept = sp.prune(on_tokens(nn.LayerNorm(WIDTH)), tokens(6)(), sp.Budget(channels=1.0))
    assert kept.report.changes == ()
