"""One coverage case in this process: build, prune to half the channels, judge, and say what was found as plain data."""

from __future__ import annotations

import copy
import importlib
import os
import time
import traceback
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

import structprune as sp
from benchmarks.coverage_case import Case
from benchmarks.coverage_precision import InDouble

__all__ = ["judged"]

oracle: Any = importlib.import_module("tests.oracle")  # the tests are not type-checked

_SHOWN = 8


def judged(case: Case, tool: str) -> dict[str, Any]:
    """Status, seconds, share of the parameters removed, the reason where it is not exact, and what was left whole."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        model, inputs = oracle.fill_distinct(case.build()), case.inputs()
        with torch.no_grad():
            model(**inputs)
        original = oracle.duplicate(model)
    except Exception as error:  # noqa: BLE001 - whatever the package raises is the finding
        return {"status": "unjudged", "detail": f"the model: {_text(error)}", "trace": _trace(error)}
    began = time.perf_counter()
    try:
        pruned = _PRUNERS[tool](model, inputs)
    except Exception as error:  # noqa: BLE001 - whatever the pruner raises is the finding
        row = _not_pruned(error)
    else:
        row = _compared(original, pruned, inputs)
    row["seconds"] = round(row.pop("until", time.perf_counter()) - began, 2)
    return {**row, "whole": _whole(model, inputs) if tool == "structprune" else []}


def _compared(original: nn.Module, pruned: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    until = time.perf_counter()
    try:
        _as_numbers(original, pruned)
        with InDouble():
            verdict = oracle.compare(Seeded(original), Seeded(pruned), inputs)
    except Exception as error:  # noqa: BLE001 - an operation that the judge cannot run
        detail = f"the judge: {_text(error)}"
        return {"status": "unjudged", "until": until, "detail": detail, "trace": _trace(error)}
    return {
        "status": verdict.status,
        "until": until,
        "params": sum(p.numel() for p in original.parameters()),
        "removed": round(verdict.removed, 4),
        "error": verdict.error,
        "detail": verdict.detail,
    }


def _not_pruned(error: BaseException) -> dict[str, Any]:
    """A proof that fails is no refusal: the cut would have been wrong."""
    refused = isinstance(error, sp.StructpruneError) and not isinstance(error, sp.VerificationError)
    return {
        "status": "refused" if refused else "broken",
        "detail": _text(error),
        "trace": _trace(error),
    }


def _as_numbers(original: nn.Module, pruned: nn.Module) -> None:
    """Make whole-number buffers that were cut floats in both, so that the judge can mark what is gone there too."""
    smaller = dict(pruned.named_buffers())
    for name, buffer in original.named_buffers():
        cut = smaller.get(name, buffer)
        if not buffer.is_floating_point() and cut.shape != buffer.shape:
            buffer.data, cut.data = buffer.data.double(), cut.data.double()


class Seeded(nn.Module):
    """The same network, drawing the same random numbers in every run: some draw them in eval mode too."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, **inputs: Any) -> Any:
        torch.manual_seed(0)
        return self.network(**inputs)


def _by_structprune(model: nn.Module, inputs: dict[str, Any]) -> nn.Module:
    return sp.prune(model, inputs, sp.Budget(channels=0.5)).model


def _by_torch_pruning(model: nn.Module, inputs: dict[str, Any]) -> nn.Module:
    """The defaults as its examples use them: L2 norm, half of every layer, the layers that give the output ignored."""
    import torch_pruning as tp

    model = copy.deepcopy(model).requires_grad_(True)
    options = {"importance": tp.importance.GroupMagnitudeImportance(p=2), "pruning_ratio": 0.5}
    tp.pruner.BasePruner(model, inputs, ignored_layers=_heads(model, inputs), **options).step()
    return model


def _heads(model: nn.Module, inputs: dict[str, Any]) -> list[nn.Module]:
    """The layers whose output is an output of the model: what its examples tell torch-pruning to ignore."""
    produced: dict[int, nn.Module] = {}
    kept: list[Any] = []

    def note(module: nn.Module, _: Any, out: Any) -> None:
        if isinstance(out, torch.Tensor):
            produced[out.untyped_storage().data_ptr()] = module
            kept.append(out)

    layers = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.modules.conv._ConvNd))]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    with torch.no_grad():
        out = model(**inputs)
    for hook in hooks:
        hook.remove()
    places = {tensor.untyped_storage().data_ptr() for tensor in oracle.outputs_of(out)}
    return [module for place, module in produced.items() if place in places]


_PRUNERS = {"structprune": _by_structprune, "torch-pruning": _by_torch_pruning}


def _whole(model: nn.Module, inputs: dict[str, Any]) -> list[dict[str, Any]]:
    """The reasons for which axes are frozen, by the share of the parameters in tensors that they hold whole."""
    try:
        graph = sp.trace(model, inputs)
    except Exception:  # noqa: BLE001 - said by the row already
        return []
    numel = {name: p.numel() for name, p in model.named_parameters()}
    found: dict[str, dict[str, set[str]]] = {}
    for group in graph.groups:
        if group.frozen is not None:
            entry = found.setdefault(str(group.frozen), {"tensors": set(), "groups": set()})
            entry["tensors"] |= {member.tensor for member in group.members}
            entry["groups"].add(f"{group.name}:{group.size}")
    total = max(1, sum(numel.values()))
    rows = [
        {
            "reason": reason,
            "share": round(sum(numel.get(name, 0) for name in entry["tensors"]) / total, 3),
            "groups": sorted(entry["groups"])[:_SHOWN],
        }
        for reason, entry in found.items()
    ]
    return sorted(rows, key=lambda row: -float(str(row["share"])))[:_SHOWN]


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _trace(error: BaseException) -> list[str]:
    """The last frames of the error and of what caused it, innermost last."""
    lines: list[str] = []
    chain: BaseException | None = error
    seen: set[int] = set()
    while chain is not None and id(chain) not in seen:
        seen.add(id(chain))
        frames = traceback.extract_tb(chain.__traceback__)
        own = [f for f in frames if not f.filename.endswith(("nn/modules/module.py", "coverage_worker.py"))]
        lines.append(f"{type(chain).__name__}: {str(chain)[:400]}")
        lines += [f"  {_short(frame.filename)}:{frame.lineno} {frame.line}" for frame in own[-_SHOWN:]]
        chain = chain.__cause__ or chain.__context__
    return lines


def _short(path: str) -> str:
    return os.sep.join(Path(path).parts[-3:])
