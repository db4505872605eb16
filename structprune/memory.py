"""The peak of activation memory at any widths: which storages are live together, from the order of the operations.

Counted are the inputs, by their elements, which the caller holds throughout, and each storage that an operation makes,
from that operation to the last one that is given it or a view of it; the outputs stay to the end. While an operation
runs, what it reads and what it makes are live together. Not counted are the weights, the work space inside a kernel,
and what Python holds on to longer than it is used (a local variable of a caller): a runtime that plans its memory needs
this much, and torch's eager mode at least this much. Operations are those of the trace: where eager mode has one kernel
for several of them (recurrent layers, the encoder's fast path), it may take less.

Only those moments matter that hold all that is live just before or just after: where storages have been made since
any was dropped. The live bytes at each of them are a polynomial of the channel counts, and the peak is the largest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from structprune.axes import Atom, Expr
from structprune.cost import Terms, product_terms
from structprune.records import Held
from structprune.trace import Run

__all__ = ["Peaks", "compile_peaks"]


class Peaks:
    """The live bytes at every moment that may be the peak, for many counts at once."""

    def __init__(self, moments: Sequence[Terms], variables: int) -> None:
        columns = {
            key: column for column, key in enumerate(dict.fromkeys(key for row in moments for key in row))
        }
        width = max(map(len, columns), default=1) or 1
        self._index = np.full((len(columns), width), variables, dtype=np.int64)
        for key, column in columns.items():
            self._index[column, : len(key)] = key
        entries = [
            (row, columns[key], value) for row, terms in enumerate(moments) for key, value in terms.items()
        ]
        rows, places, values = (
            (np.array(one) for one in zip(*entries, strict=True)) if entries else ([], [], [])
        )
        self._moments = csr_array(
            (values, (rows, places)), shape=(len(moments), len(columns)), dtype=np.float64
        )

    def __call__(self, counts: np.ndarray) -> np.ndarray:
        """Return the live bytes, float64 ``[choices, moments]``, for counts ``[choices, variables]``."""
        extended = np.hstack([np.asarray(counts, dtype=np.float64), np.ones((len(counts), 1))])
        products = extended[:, self._index].prod(axis=2)
        levels: np.ndarray = (self._moments @ products.T).T
        return levels


def compile_peaks(run: Run, variables: Mapping[Atom, int], count: int) -> Peaks:
    """Return the live bytes of a traced run as polynomials; atoms that are no variable count with their full size."""
    known: dict[int, tuple[Expr, Terms]] = {}
    live: Terms = {}

    sizes: dict[int, Terms] = {}

    def bytes_of(held: Held) -> Terms:
        if held.place not in sizes:
            terms = product_terms(held.dims, variables, known)
            sizes[held.place] = {key: value * held.itemsize for key, value in terms.items()}
        return sizes[held.place]

    moments: dict[tuple[tuple[tuple[int, ...], float], ...], None] = {}
    for made, dropped in _changes(_lives(run)):
        _add(live, map(bytes_of, made), 1.0)
        moments[tuple(sorted(live.items()))] = None
        _add(live, map(bytes_of, dropped), -1.0)
    return Peaks([dict(terms) for terms in moments] or [{(): 0.0}], count)


def _add(total: Terms, terms: Iterable[Terms], sign: float) -> None:
    for one in terms:
        for key, value in one.items():
            total[key] = total.get(key, 0.0) + sign * value
            if not total[key]:
                del total[key]


@dataclass(slots=True)
class _Life:
    held: Held
    born: int
    last: int


def _lives(run: Run) -> list[_Life]:
    """Every storage of the run but the weights, with the operations that make it and last touch it."""
    end = max(len(run.records) - 1, 0)
    lives = {held.place: _Life(held, 0, end) for held in run.given}
    others: set[int] = set()  # the model's own
    for now, record in enumerate(run.records):
        others.update(place for place in record.reads if place not in lives)
        for held in record.writes:
            if held.place not in others:
                lives.setdefault(held.place, _Life(held, now, now))
        for place in (*record.reads, *(held.place for held in record.writes)):
            if place in lives:
                lives[place].last = max(lives[place].last, now)
    for place in run.returned & lives.keys():
        lives[place].last = end
    return list(lives.values())


def _changes(lives: Iterable[_Life]) -> Iterator[tuple[list[Held], list[Held]]]:
    """Yield what has been made since anything was dropped, and what is dropped then: the peak lies between the two."""
    born: dict[int, list[Held]] = {}
    ended: dict[int, list[Held]] = {}
    for life in lives:
        born.setdefault(life.born, []).append(life.held)
        ended.setdefault(life.last, []).append(life.held)
    made: list[Held] = []
    dropped: list[Held] = []
    for now in sorted(born.keys() | ended.keys()):
        if now in born and dropped:
            yield made, dropped
            made, dropped = [], []
        made += born.get(now, [])
        dropped += ended.get(now, [])
    yield made, dropped
