"""Where the integers of one operation stand among those that the user's call of torch was given."""

from __future__ import annotations

from collections.abc import Sequence

from structprune.provenance import plain

__all__ = ["alignment", "match"]


def alignment(given: Sequence[int], wanted: Sequence[int]) -> int | None:
    """Return the shift under which most of ``wanted`` faces its equals in ``given``: two at least, the
    last such shift.
    """
    best, found = 1, None
    for shift in range(1 - len(wanted), len(given)):
        pairs = [(i, shift + i) for i in range(len(wanted)) if 0 <= shift + i < len(given)]
        equal = sum(plain(wanted[i]) == plain(given[j]) for i, j in pairs)
        if equal > best:
            best, found = equal, shift
        elif equal == best:
            found = None
    return found


def match(given: Sequence[int], wanted: Sequence[int]) -> int | None:
    """Return where ``wanted`` stands in ``given`` as a run; -1 on either side matches any number."""
    length = len(wanted)
    plain_given, plain_wanted = [plain(value) for value in given], [plain(value) for value in wanted]
    for start in range(len(given) - length + 1) if length else ():
        run = plain_given[start : start + length]
        if all(a == b or a == -1 or b == -1 for a, b in zip(run, plain_wanted, strict=True)):
            return start
    return None
