"""Models that are timed by turns: each ready on the runtime for as long as its context lasts."""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from structprune.inputs import batch_size, normalize_inputs
from structprune.runtime_settings import Runtime
from structprune.runtimes import (
    Measurement,
    TimedCall,
    describe_environment,
    flushed_for,
    inputs_for,
    prepare,
    require_known,
)

__all__ = ["Bench", "Ready"]

_MAX_ROUNDS = 10_000


@dataclass(frozen=True)
class Ready:
    """A model that can be timed, and how many of its weights were subnormal."""

    call: TimedCall
    subnormal_weights: int


class Bench:
    """One runtime with its settings, and the inputs that all models on it take.

    Raises:
        InputError: for an unknown or absent runtime.
    """

    def __init__(self, example_inputs: Any, on: Runtime) -> None:
        require_known(on)
        self._on = on
        self._args, self._kwargs = inputs_for(on, *normalize_inputs(example_inputs))
        self._environment = describe_environment()

    @contextmanager
    def ready(self, model: nn.Module) -> Iterator[Ready]:
        """The model, ready to be timed; on a runtime that converts, converted once.

        Raises:
            ExportError: where the runtime needs a conversion that fails.
        """
        subject, count = flushed_for(self._on, model)
        with prepare(self._on, subject, self._args, self._kwargs) as call:
            yield Ready(call, count)

    def time(
        self, models: Sequence[Ready], *, warmup: int = 5, repeats: int, min_time: float, seed: int = 0
    ) -> list[Measurement]:
        """The measurements of the models, of one session: every round runs all of them once, in a new order."""
        calls = [model.call for model in models]
        rounds = _interleave(calls, warmup, repeats, min_time, random.Random(seed))
        session = uuid.uuid4().hex
        return [
            Measurement(
                times_ms=tuple(times),
                runtime=self._on.name,
                threads=self._on.threads,
                batch=batch_size((self._args, self._kwargs)),
                dtype=self._on.dtype,
                provider_options=self._on.options,
                subnormal_weights=model.subnormal_weights,
                environment=self._environment,
                session=session,
            )
            for model, times in zip(models, rounds, strict=True)
        ]


def _interleave(
    calls: Sequence[TimedCall], warmup: int, repeats: int, min_time: float, order: random.Random
) -> list[list[float]]:
    """The times of each call, in milliseconds."""
    times: list[list[float]] = [[] for _ in calls]
    spent = [0.0] * len(calls)
    turn = list(range(len(calls)))
    done = -warmup
    while done < repeats or (min(spent) < min_time * 1e3 and done < _MAX_ROUNDS):
        order.shuffle(turn)
        for position in turn:
            elapsed = calls[position]()
            if done >= 0:
                times[position].append(elapsed)
                spent[position] += elapsed
        done += 1
    return times
