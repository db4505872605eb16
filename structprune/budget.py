"""What may remain of a network: one quantity, or several at once, as shares of the original's or as figures."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real

from structprune.errors import InputError
from structprune.runtime_settings import Runtime

__all__ = ["QUANTITIES", "Budget", "Limit"]

QUANTITIES = (
    "channels",
    "params",
    "macs",
    "latency",
    "latency_ms",
    "throughput",
    "peak_memory",
    "file_size",
)
"""What a `Budget` can bound."""

_TIMED = ("latency", "latency_ms", "throughput")
_FIGURES = {"latency_ms": "milliseconds", "throughput": "samples per second"}


@dataclass(frozen=True)
class Limit:
    """One bound of a budget: the quantity, and the share of the original's that may remain, in (0, 1].

    For ``latency_ms`` the value is milliseconds, and for ``throughput`` samples per second, at least.
    """

    quantity: str
    value: float

    def __str__(self) -> str:
        return f"{self.quantity}={self.value:g}"


@dataclass(frozen=True)
class Budget:
    """What may remain: a fraction in (0, 1] of the original network's channels, params, MACs, latency, peak memory of
    activations or bytes of weights, or several of these, all of which hold.

    `latency` is a fraction of the latency that the network has on `runtime`, measured; `latency_ms` is that latency
    itself in milliseconds, and `throughput` the samples per second that it comes to, at least. These three exclude
    each other. `runtime` is a name, with `threads` beside it, or a `Runtime`, and is a `Runtime` once the budget
    exists. For a model that was pruned before, shares are of the one it began as, but a latency is of the model that is
    given: it is measured. Raises InputError for no quantity, for two that are timed, and for a number out of range.

    >>> budget = Budget(macs=0.5)
    >>> budget.quantity, budget.fraction
    ('macs', 0.5)
    >>> [str(limit) for limit in Budget(params=0.6, peak_memory=0.7).limits]
    ['params=0.6', 'peak_memory=0.7']
    """

    channels: float | None = None
    params: float | None = None
    macs: float | None = None
    latency: float | None = None
    latency_ms: float | None = None
    runtime: str | Runtime = "onnxruntime"
    threads: int | None = None
    throughput: float | None = None
    peak_memory: float | None = None
    file_size: float | None = None

    def __post_init__(self) -> None:
        given = {name: getattr(self, name) for name in QUANTITIES}
        for name, value in given.items():
            if value is not None:
                object.__setattr__(self, name, _checked(name, value))
        if not self.limits:
            names = ", ".join(f"{name}=" for name in QUANTITIES)
            raise InputError(f"Budget takes one or several of {names}; got none")
        timed = [str(limit) for limit in self.limits if limit.quantity in _TIMED]
        if len(timed) > 1:
            raise InputError(
                f"Budget takes one of {', '.join(f'{name}=' for name in _TIMED)}, which say the same thing in other "
                f"units; got {', '.join(timed)}"
            )
        runtime = Runtime.of(self.runtime, self.threads)
        object.__setattr__(self, "runtime", runtime)
        object.__setattr__(self, "threads", runtime.threads)

    @property
    def limits(self) -> tuple[Limit, ...]:
        """Every quantity that is bounded, with its value."""
        given = ((name, getattr(self, name)) for name in QUANTITIES)
        return tuple(Limit(name, value) for name, value in given if value is not None)

    @property
    def quantity(self) -> str:
        """The name of the one quantity that is bounded; raises InputError where there are several (`limits`)."""
        return self._one.quantity

    @property
    def fraction(self) -> float:
        """The share of the original's quantity that may remain, in (0, 1], or the figure where it is one; raises
        InputError where several are bounded (`limits`).
        """
        return self._one.value

    @property
    def timed(self) -> bool:
        """Whether one of the quantities is measured on a runtime."""
        return self.time is not None

    @property
    def time(self) -> Limit | None:
        """The bound that is measured on a runtime: "latency", "latency_ms" or "throughput"."""
        return next((limit for limit in self.limits if limit.quantity in _TIMED), None)

    @property
    def _one(self) -> Limit:
        if len(self.limits) > 1:
            raise InputError(f"{self}: several quantities are bounded, and limits has them all")
        return self.limits[0]

    def __str__(self) -> str:
        text = ", ".join(map(str, self.limits))
        return f"{text} on {self.runtime}" if self.timed else text


def _checked(name: str, value: object) -> float:
    try:
        number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    except OverflowError:
        number = math.inf
    if name in _FIGURES:
        if not 0 < number < math.inf:
            raise InputError(f"Budget({name}={value!r}): expected {_FIGURES[name]}, more than 0")
    elif not 0 < number <= 1:
        raise InputError(
            f"Budget({name}={value!r}): expected a fraction in (0, 1] of the original network's {name}"
        )
    return number
