"""Latency: how long one inference takes on a named runtime, with the uncertainty of that figure.

Several models are timed in one call by turns: every round runs each model once, in a new random order, so
that a machine that slows down slows all of them. `ratio` then compares two of them round by round. Times are
kept raw; the figure is their median, since a disturbed machine only ever adds to a time.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any, overload

import numpy as np
import torch
from scipy.special import bdtr
from torch import nn

from structprune.errors import InputError
from structprune.inputs import batch_size, normalize_inputs, repeat_batch
from structprune.runtimes import TimedCall, describe_environment, prepare

__all__ = ["Measurement", "Ratio", "count_subnormals", "measure_latency", "ratio"]

_UNSTABLE_SPREAD = 0.1
_FEW_ROUNDS = 6  # below it no interval of order statistics reaches 95 %
_MAX_ROUNDS = 10_000


@dataclass(frozen=True)
class Measurement:
    """The times of one model on one runtime, in milliseconds, in the order of the rounds."""

    times_ms: tuple[float, ...]
    runtime: str
    threads: int
    batch: int
    subnormal_weights: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)
    session: str = ""
    """Measurements of one session were interleaved: their rounds are pairs."""

    @property
    def median_ms(self) -> float:
        """The median of all rounds."""
        return float(np.median(self.times_ms))

    @property
    def interval_ms(self) -> tuple[float, float]:
        """The 95 % confidence interval of the median, by order statistics; all there is below 6 rounds."""
        low = _median_rank(len(self.times_ms))
        ordered = sorted(self.times_ms)
        return ordered[low], ordered[len(ordered) - 1 - low]

    @property
    def iqr_ms(self) -> float:
        """The interquartile range: the spread of single times, not the uncertainty of the median."""
        low, high = np.percentile(self.times_ms, [25, 75])
        return float(high - low)

    @property
    def unstable(self) -> bool:
        """Whether the figure should not be trusted: few rounds, or a spread above a tenth of the median."""
        return len(self.times_ms) < _FEW_ROUNDS or self.iqr_ms > _UNSTABLE_SPREAD * self.median_ms

    def to_dict(self) -> dict[str, Any]:
        """All fields and figures as plain data, for JSON."""
        figures = {
            "median_ms": self.median_ms,
            "interval_ms": list(self.interval_ms),
            "iqr_ms": self.iqr_ms,
            "unstable": self.unstable,
        }
        return {**figures, **asdict(self), "times_ms": [round(t, 6) for t in self.times_ms]}

    def __str__(self) -> str:
        low, high = self.interval_ms
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        text = (
            f"{self.median_ms:.3f} ms [{low:.3f}, {high:.3f}], {self.runtime}, {threads}, batch {self.batch}"
        )
        if self.subnormal_weights:
            text += f", {self.subnormal_weights} subnormal weights"
        return text + (", unstable" if self.unstable else "")


@dataclass(frozen=True)
class Ratio:
    """One median over another with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float
    paired: bool

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@overload
def measure_latency(
    models: nn.Module,
    example_inputs: Any,
    *,
    runtime: str = ...,
    threads: int = ...,
    batch: int | None = ...,
    warmup: int = ...,
    repeats: int = ...,
    min_time: float = ...,
    seed: int = ...,
) -> Measurement: ...


@overload
def measure_latency(
    models: Mapping[str, nn.Module],
    example_inputs: Any,
    *,
    runtime: str = ...,
    threads: int = ...,
    batch: int | None = ...,
    warmup: int = ...,
    repeats: int = ...,
    min_time: float = ...,
    seed: int = ...,
) -> dict[str, Measurement]: ...


@overload
def measure_latency(
    models: Sequence[nn.Module],
    example_inputs: Any,
    *,
    runtime: str = ...,
    threads: int = ...,
    batch: int | None = ...,
    warmup: int = ...,
    repeats: int = ...,
    min_time: float = ...,
    seed: int = ...,
) -> tuple[Measurement, ...]: ...


def measure_latency(
    models: nn.Module | Mapping[str, nn.Module] | Sequence[nn.Module],
    example_inputs: Any,
    *,
    runtime: str = "onnxruntime",
    threads: int = 1,
    batch: int | None = None,
    warmup: int = 5,
    repeats: int = 50,
    min_time: float = 0.5,
    seed: int = 0,
) -> Measurement | dict[str, Measurement] | tuple[Measurement, ...]:
    """The latency of a model, or of several interleaved: a dict gives a dict, a tuple a tuple.

    Models run in eval mode without gradients, and their flags and torch's threads are as before afterwards.
    On onnxruntime the batch size is fixed in the converted file.

    Args:
        models: one module, or several that take the same inputs.
        example_inputs: one tensor, a tuple of arguments or a dict of keyword arguments.
        runtime: "onnxruntime", "onnxruntime-cuda", "torch", "torch-cuda", or one that was registered.
        threads: the threads that one inference may use.
        batch: another batch size than the example's; its rows are repeated or dropped.
        warmup: rounds that are run first and not counted.
        repeats: the least number of rounds that are counted.
        min_time: seconds of counted time that each model gets at least (at most 10,000 rounds are run).
        seed: of the order within the rounds.

    Raises:
        InputError: for an unknown or absent runtime, or a number out of range.
        ExportError: where the runtime needs a conversion that fails.
    """
    if warmup < 0 or repeats < 1 or min_time < 0:
        raise InputError(f"{warmup=}, {repeats=}, {min_time=}: at least 0, 1 and 0 are needed")
    named = _named(models)
    args, kwargs = normalize_inputs(example_inputs)
    if batch is not None:
        args, kwargs = repeat_batch((args, kwargs), batch)
    with ExitStack() as stack:
        calls = [stack.enter_context(prepare(runtime, m, args, kwargs, threads)) for m in named.values()]
        rounds = _interleave(calls, warmup, repeats, min_time, random.Random(seed))
    session, environment = uuid.uuid4().hex, describe_environment()
    measured = {
        name: Measurement(
            times_ms=tuple(times),
            runtime=runtime,
            threads=threads,
            batch=batch_size((args, kwargs)),
            subnormal_weights=count_subnormals(model),
            environment=environment,
            session=session,
        )
        for (name, model), times in zip(named.items(), rounds, strict=True)
    }
    if isinstance(models, nn.Module):
        return measured["0"]
    return measured if isinstance(models, Mapping) else tuple(measured.values())


def _named(models: Any) -> dict[str, nn.Module]:
    if isinstance(models, nn.Module):
        return {"0": models}
    if isinstance(models, Mapping):
        named = dict(models)
    elif isinstance(models, Sequence):
        named = {str(position): model for position, model in enumerate(models)}
    else:
        raise InputError(
            f"models is a {type(models).__name__}: give one module, or a dict or tuple of modules"
        )
    wrong = [name for name, model in named.items() if not isinstance(model, nn.Module)]
    if wrong or not named:
        raise InputError(f"models must hold at least one module and nothing else; no module: {wrong}")
    return named


def _interleave(
    calls: Sequence[TimedCall], warmup: int, repeats: int, min_time: float, order: random.Random
) -> list[list[float]]:
    """The times of each call, in milliseconds; every round runs all of them once, in a new order."""
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


def _median_rank(count: int) -> int:
    """The position k such that, of `count` sorted values, the k-th from either end enclose the median at 95
    %.
    """
    below = bdtr(np.arange(count), count, 0.5)  # P(at most j of the values lie below the median)
    return max(int((below <= 0.025).sum()) - 1, 0)


def ratio(measured: Measurement, baseline: Measurement, *, resamples: int = 1000, seed: int = 0) -> Ratio:
    """How many times as long `measured` takes as `baseline`, by medians, with a 95 % bootstrap interval.

    Measurements of one call are resampled round by round, in blocks of neighbouring rounds: what disturbed
    both cancels, and disturbances that outlast a round count. Others are resampled independently (`paired` is
    False).

    >>> fast, slow = (Measurement((t, t, t), "torch", 1, 1, session="s") for t in (1.0, 2.0))
    >>> str(ratio(fast, slow))
    '0.500 [0.500, 0.500]'
    """
    if resamples < 1:
        raise InputError(f"{resamples=}: at least 1 is needed")
    paired = bool(measured.session) and measured.session == baseline.session
    rng = np.random.default_rng(seed)
    above, below = np.asarray(measured.times_ms), np.asarray(baseline.times_ms)
    values = np.empty(resamples)
    for position in range(resamples):
        rows = _block_sample(len(above), rng)
        columns = rows if paired else _block_sample(len(below), rng)
        values[position] = np.median(above[rows]) / np.median(below[columns])
    low, high = np.percentile(values, [2.5, 97.5])
    return Ratio(measured.median_ms / baseline.median_ms, float(low), float(high), paired)


def _block_sample(count: int, rng: np.random.Generator) -> Any:
    """As many positions as there are rounds: random blocks of about the cube root of their number, wrapped
    around.
    """
    length = max(round(count ** (1 / 3)), 1)
    starts = rng.integers(0, count, size=-(-count // length))
    return ((starts[:, None] + np.arange(length)) % count).ravel()[:count]


def count_subnormals(model: nn.Module) -> int:
    """How many weights are subnormal: not zero, but below the smallest normal number of their dtype.

    CPUs compute with them several times slower, so that a count above zero explains a latency.

    >>> layer = nn.Linear(2, 1, bias=False)
    >>> _ = layer.weight.data.copy_(torch.tensor([[1e-40, 1.0]]))
    >>> count_subnormals(layer)
    1
    """
    total = 0
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point() and not tensor.is_meta:
            size = tensor.detach().abs()
            total += int(((size > 0) & (size < torch.finfo(tensor.dtype).tiny)).sum())
    return total
