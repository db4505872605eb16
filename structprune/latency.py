"""Latency: how long one inference takes on a named runtime, with the uncertainty of that figure.

Several models are timed in one call by turns: every round runs each model once, in a new random order, so
that a machine that slows down slows all of them. `ratio` then compares two of them round by round. Times are
kept raw; the figure is their median, since a disturbed machine only ever adds to a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, overload

from torch import nn

from structprune.arguments import typed
from structprune.errors import InputError
from structprune.interleaved import Bench
from structprune.runtime_settings import Runtime
from structprune.runtimes import Measurement, Ratio, ratio

__all__ = ["Measurement", "Ratio", "measure_latency", "ratio"]


@overload
def measure_latency(
    models: nn.Module,
    example_inputs: Any,
    *,
    runtime: str | Runtime = ...,
    threads: int | None = ...,
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
    runtime: str | Runtime = ...,
    threads: int | None = ...,
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
    runtime: str | Runtime = ...,
    threads: int | None = ...,
    batch: int | None = ...,
    warmup: int = ...,
    repeats: int = ...,
    min_time: float = ...,
    seed: int = ...,
) -> tuple[Measurement, ...]: ...


@typed
def measure_latency(
    models: nn.Module | Mapping[str, nn.Module] | Sequence[nn.Module],
    example_inputs: Any,
    *,
    runtime: str | Runtime = "onnxruntime",
    threads: int | None = None,
    batch: int | None = None,
    warmup: int = 5,
    repeats: int = 50,
    min_time: float = 0.5,
    seed: int = 0,
) -> Measurement | dict[str, Measurement] | tuple[Measurement, ...]:
    """The latency of a model, or of several interleaved: a dict gives a dict, a tuple a tuple.

    Models run in eval mode without gradients, and their flags and torch's threads are as before afterwards.
    On onnxruntime the batch size is fixed in the converted file. A model with subnormal weights is timed as a copy in
    which they are zero; its measurement says how many they were, and a warning does.

    Args:
        models: one module, or several that take the same inputs.
        example_inputs: one tensor, a tuple of arguments or a dict of keyword arguments.
        runtime: "onnxruntime", "torch", "torch-compile", each also with "-cuda", one that was registered, or a
            `Runtime` with the settings it is to have.
        threads: the threads that one inference may use, 1 if left out.
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
    on = Runtime.of(runtime, threads, batch)
    bench = Bench(example_inputs, on)
    with ExitStack() as stack:
        ready = [stack.enter_context(bench.ready(model)) for model in named.values()]
        found = bench.time(ready, warmup=warmup, repeats=repeats, min_time=min_time, seed=seed)
    measured = dict(zip(named, found, strict=True))
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
