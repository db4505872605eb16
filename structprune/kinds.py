"""What people call the channels of a group, and what asking for one of these words means."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

__all__ = ["FAMILIES", "KINDS", "PREFIX", "means_kind"]


class _Kinds(dict[str, str]):
    """Every kind a group can be of, with what it means; in the order in which factors of one dimension are preferred.

    >>> KINDS["heads"]
    'the heads of an attention'
    """


KINDS: Mapping[str, str] = _Kinds(
    {
        "heads": "the heads of an attention",
        "kv groups": "attention in which several query heads share a key head: the key heads, each with its queries",
        "queries per group": "the query heads of each key head",
        "qk width": "what a head's queries and keys are compared over",
        "v width": "what a head's values hold",
        "head_dim": "a width that queries, keys and values share",
        "residual": "what several layers add into",
        "rnn": "the state of a recurrent layer",
        "experts": "how many weights are stacked in one tensor: experts, blocks",
        "embedding": "the width of look-up tables, before a layer contracts it",
        "conv": "between convolutions",
        "mlp": "between linear layers; the two of a gated pair count as one",
        "hidden": "made by layers, and contracted otherwise than by one",
        "input": "what a layer contracts and none makes: the model's input",
        "output": "what a layer makes and none contracts: the model's output",
        "positions": "no channels: positions, rows of tables, constants",
    }
)

FAMILIES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "heads": ("heads", "kv groups", "queries per group"),
        "head_dim": ("qk width", "v width", "head_dim"),
    }
)
"""Words that mean several kinds."""

PREFIX = "kind:"
"""``"kind:mlp"`` is the kind also where a layer is called mlp."""


def means_kind(word: str, kind: str) -> bool:
    """Return whether asking for ``word`` asks for groups of ``kind``.

    >>> [kind for kind in KINDS if means_kind("heads", kind)]
    ['heads', 'kv groups', 'queries per group']
    """
    return kind in FAMILIES.get(word, (word,))
