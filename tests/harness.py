"""Prune one test network and hold the result against what its case asks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

import structprune as sp
from tests.nets.case import Case
from tests.oracle import Verdict, compare, judge

__all__ = ["check_again", "check_case", "check_frozen", "flags", "sizes"]


def flags(model: nn.Module) -> tuple[dict[str, bool], dict[str, bool]]:
    """The training flag of every module and the gradient flag of every parameter."""
    training = {name: module.training for name, module in model.named_modules(remove_duplicate=False)}
    return training, {name: p.requires_grad for name, p in model.named_parameters(remove_duplicate=False)}


def sizes(model: nn.Module) -> dict[str, int]:
    """How many numbers each parameter and buffer holds, under each of its names."""
    held = dict(model.named_parameters(remove_duplicate=False)) | dict(
        model.named_buffers(remove_duplicate=False)
    )
    return {name: tensor.numel() for name, tensor in held.items()}


def cut(fraction: float) -> Any:
    return lambda model, inputs: sp.prune(model, inputs, sp.Budget(channels=fraction)).model


def check_case(
    case: Case, outcomes: Mapping[str, str], fraction: float, still_whole: Mapping[str, tuple[str, ...]]
) -> Verdict:
    """The verdict, after every promise of the case was asserted.

    `outcomes` holds the status, and words of the reason, where that is not "exact"; `still_whole` the tensors
    that could get smaller and do not yet.
    """
    torch.manual_seed(0)
    model, inputs = case.build(), case.inputs()
    before, held = flags(model), sizes(model)
    verdict = judge(model, inputs, cut(fraction), refusals=(sp.StructpruneError,))
    wanted = outcomes.get(case.id, "exact")
    status, _, words = wanted.partition(": ")
    assert verdict.status == status, f"{verdict.status}: {verdict.detail}"
    assert words in verdict.detail
    assert flags(model) == before, "pruning changed a flag of the original"
    assert sizes(model) == held, "pruning changed the original"
    if verdict.pruned is None:
        return verdict
    small = sizes(verdict.pruned)
    assert flags(verdict.pruned) == before, "the pruned network has other flags than the original"
    if fraction <= 0.5 and status == "exact":
        whole = tuple(name for name in case.smaller if small[name] >= held[name])
        assert whole == still_whole.get(case.id, ())
    assert [name for name in case.whole if small[name] != held[name]] == [], "cut, though it must stay"
    return verdict


def check_frozen(case: Case) -> None:
    """Every dimension of which positions must stay has them in a frozen group, for the reason the case names."""
    torch.manual_seed(0)
    graph = sp.trace(case.build(), case.inputs())
    for wanted in case.frozen:
        at = (wanted.tensor, wanted.dim)
        groups = [g for g in graph.groups if any((m.tensor, m.dim) == at for m in g.members)]
        reasons = [str(group.frozen) for group in groups if group.frozen is not None]
        assert any(wanted.reason in reason for reason in reasons), f"{at}: {reasons or 'free'}"


def check_again(verdict: Verdict, inputs: Any) -> None:
    """What was pruned can be pruned further, and the second cut is as exact as the first."""
    assert verdict.pruned is not None
    smaller = sp.prune(verdict.pruned, inputs, sp.Budget(channels=0.5)).model
    second = compare(verdict.pruned, smaller, inputs)
    assert second.status in ("exact", "left whole"), f"second cut: {second.status}: {second.detail}"
