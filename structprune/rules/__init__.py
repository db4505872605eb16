"""One rule per operation: how axes flow through it. One file per family; `rule` registers one."""

from structprune.rules import (
    attention,
    contractions,
    custom,
    factories,
    joins,
    lookups,
    matrices,
    norms,
    pointwise,
    reductions,
    spatial,
    views,
)
from structprune.rules.call import Call
from structprune.rules.context import Context, FunctionCall, Site, Uncovered
from structprune.rules.registry import (
    KnownRule,
    function_rule,
    known_rules,
    lookup,
    lookup_function,
    rule,
    source,
)

__all__ = [
    "Call",
    "Context",
    "FunctionCall",
    "KnownRule",
    "Site",
    "Uncovered",
    "attention",
    "contractions",
    "custom",
    "factories",
    "function_rule",
    "joins",
    "known_rules",
    "lookup",
    "lookup_function",
    "lookups",
    "matrices",
    "norms",
    "pointwise",
    "reductions",
    "rule",
    "source",
    "spatial",
    "views",
]
