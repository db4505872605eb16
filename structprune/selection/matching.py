"""Which groups a word means: a name or glob, by the group's own name or by the modules and tensors that it cuts; else
a kind. A layer of the user's that is called like a kind comes first: ``"kind:mlp"`` is the kind all the same.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import TypeVar

from structprune.errors import InputError
from structprune.kinds import FAMILIES, KINDS, PREFIX, means_kind
from structprune.selection.contract import GroupLike

__all__ = ["kept_groups", "only_groups", "per_group"]

Value = TypeVar("Value", int, float)


def kept_groups(groups: Sequence[GroupLike], keep: str | Iterable[str]) -> set[int]:
    """Positions of the groups that `keep` holds whole: named so, with *any* member in a module named so, or of
    a kind named so.

    Any member, so that a kept layer keeps its inputs and its outputs. Raises InputError where a pattern
    matches nothing.
    """
    return {position for pattern in _patterns("keep", keep) for position in _matches("keep", pattern, groups)}


def only_groups(groups: Sequence[GroupLike], only: str | Iterable[str], argument: str = "only") -> set[int]:
    """Positions of the groups that may be cut: all primary ones where `only` is empty; errors speak of `argument`.

    A pattern means the groups named so, and those that a module named so *produces* (its inputs belong to the
    layer before it). It reaches a non-primary group only where it matches no primary one, so "*" stays with
    the defaults and the group's own name asks for it. A kind reaches every free group of it; where two of
    these are factors of one dimension, one is cut. Raises InputError where a pattern matches nothing.
    """
    patterns = _patterns(argument, only)
    if not patterns:
        return {position for position, group in enumerate(groups) if group.primary}
    chosen: set[int] = set()
    for pattern in patterns:
        named = _named(pattern, groups, produced=True)
        matched = named or _matches(argument, pattern, groups, produced=True)
        exact = {position for position in matched if groups[position].name == pattern}
        primary = {position for position in matched if groups[position].primary}
        chosen |= exact | (primary or matched) if named else _one_of_each(matched, groups)
    return chosen


def _one_of_each(matched: Iterable[int], groups: Sequence[GroupLike]) -> set[int]:
    """The free groups among `matched` without those whose rival is chosen: whole KV groups before the queries in
    each, then the default, then the wider.
    """
    order = list(KINDS)

    def preference(position: int) -> tuple[int, bool, int, int]:
        group = groups[position]
        return order.index(group.kind), not group.primary, -group.size, position

    chosen: dict[str, int] = {}
    for position in sorted((n for n in matched if groups[n].frozen is None), key=preference):
        if not any(rival in chosen for rival in groups[position].rivals):
            chosen[groups[position].name] = position
    return set(chosen.values())


def per_group(
    argument: str, value: Value | Mapping[str, Value], groups: Sequence[GroupLike], default: Value
) -> list[Value]:
    """One value per group: the same for all, or from a mapping of names and globs (a later entry wins).

    Raises InputError where a name matches nothing.
    """
    if not isinstance(value, Mapping):
        return [value] * len(groups)
    values = [default] * len(groups)
    for pattern, entry in value.items():
        for position in _matches(argument, pattern, groups, produced=True):
            values[position] = entry
    return values


def _patterns(argument: str, patterns: str | Iterable[str]) -> tuple[str, ...]:
    listed = (patterns,) if isinstance(patterns, str) else tuple(patterns)
    for pattern in listed:
        if not isinstance(pattern, str):
            raise InputError(
                f"{argument}= takes names and globs, got {pattern!r} of type {type(pattern).__name__}"
            )
    return listed


def _matches(argument: str, pattern: str, groups: Sequence[GroupLike], *, produced: bool = False) -> set[int]:
    matched = _named(pattern, groups, produced=produced) or _of_kind(argument, pattern, groups)
    if matched:
        return matched
    known = {name for group in groups for name in _names(group, produced=produced)}
    raise InputError(
        f"{argument}={pattern!r} matches no group and no module that a group cuts, and is no kind"
        f"{_hint(pattern, known | {*KINDS, *FAMILIES})}"
    )


def _named(pattern: str, groups: Sequence[GroupLike], *, produced: bool) -> set[int]:
    return {n for n, group in enumerate(groups) if _means(pattern, group, produced=produced)}


def _of_kind(argument: str, pattern: str, groups: Sequence[GroupLike]) -> set[int]:
    """Positions of the groups of a kind; none where the pattern is no kind."""
    kind = pattern.removeprefix(PREFIX)
    if kind not in KINDS and kind not in FAMILIES:
        return set()
    matched = {position for position, group in enumerate(groups) if means_kind(kind, group.kind)}
    if not matched:
        found = dict.fromkeys(group.kind for group in groups if group.frozen is None)
        raise InputError(
            f"{argument}={pattern!r}: no group is of this kind; the free ones are {', '.join(found)}"
        )
    return matched


def _means(pattern: str, group: GroupLike, *, produced: bool) -> bool:
    return any(name == pattern or fnmatchcase(name, pattern) for name in _names(group, produced=produced))


def _names(group: GroupLike, *, produced: bool) -> Iterator[str]:
    """The group's name, its tensors' names, and every module around those tensors."""
    yield group.name
    contracted_only = all(member.role == "in" for member in group.members)
    seen: set[str] = set()
    for member in group.members:
        if produced and member.role == "in" and not contracted_only:
            continue
        name = member.tensor
        while name and name not in seen:
            seen.add(name)
            yield name
            name = name.rpartition(".")[0]


def _hint(pattern: str, known: Collection[str]) -> str:
    close = get_close_matches(pattern, sorted(known), n=3, cutoff=0.5)
    if close:
        return f"; close names: {', '.join(close)}"
    return f"; names are like {', '.join(sorted(known)[:5])}" if known else "; the graph has no groups"
