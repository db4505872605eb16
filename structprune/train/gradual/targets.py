"""What a gradual run is asked for, looked at before its first training."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from torch import nn

from structprune.budget import Budget
from structprune.engines import trace
from structprune.errors import InputError
from structprune.importance import score
from structprune.select import select

__all__ = ["require_options", "require_reachable"]

_TRACING = ("engine", "engine_options", "outputs")
_WIDTHS = ("scope", "multiple_of", "min_channels", "keep", "only", "ragged")
_TIMED = ("latency", "latency_ms", "throughput")


def require_reachable(model: nn.Module, inputs: Any, budget: Budget, options: Mapping[str, Any]) -> None:
    """Raises BudgetError, with the range that can be reached, where cuts by `prune` with these options, however many,
    do not lead to the budget.

    `max_pruned` bounds each cut and not their sum, and a latency is found by cutting: neither is looked at.
    """
    if all(limit.quantity in _TIMED for limit in budget.limits):
        return
    counted = dataclasses.replace(budget, **dict.fromkeys(_TIMED))  # type: ignore[arg-type]
    graph = trace(model, inputs, **_among(options, _TRACING))
    widths = _among(options, _WIDTHS)
    if options.get("sensitivity"):
        widths["scope"] = "value"
    select(
        graph, score(model, graph, "l2"), counted, **widths
    )  # how far groups may be cut is no matter of scores


def require_options(
    given: Mapping[str, Any], name: str, function: Callable[..., Any], said: Iterable[str]
) -> None:
    """Raises InputError where `name={...}` has what `function` does not take, or what is `said` elsewhere."""
    known = [option for option in inspect.signature(function).parameters if option not in set(said)]
    for option in given:
        if option not in known:
            near = get_close_matches(option, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(known)}"
            raise InputError(
                f"{name}={{{option!r}: ...}}: no option of {function.__name__} that is given here; {hint}"
            )


def _among(options: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: options[name] for name in names if name in options}
