"""`Runtime`: where and how a latency is measured, as plain data that needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral

from structprune.errors import InputError

__all__ = ["DTYPES", "Runtime"]

DTYPES = ("float16", "bfloat16", "float32", "float64")
"""What `dtype=` takes."""

_MOST_TEXT = 1000  # characters of a name, key or value: more is no setting

Options = Mapping[str, str | int | float | bool] | tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Runtime:
    """A runtime by name, with the settings that a latency depends on; accepted wherever `runtime=` takes a name.

    Attributes:
        name: "onnxruntime", "torch", "torch-compile", each also with "-cuda", or one that was registered.
        threads: the threads that one inference may use.
        batch: the batch size; None is that of the example inputs.
        dtype: "float16", "bfloat16", "float32" or "float64": a copy of the model is run in it, and the inputs are
            converted. None leaves both as they are.
        provider_options: passed on to onnxruntime. A key with a dot is a session's configuration entry
            ("session.intra_op.allow_spinning"), any other an option of the execution provider. Kept as sorted pairs of
            texts, True as "1" and False as "0".

    Raises:
        InputError: for a value that no runtime takes.

    >>> print(Runtime("onnxruntime", threads=2, dtype="float16"))
    onnxruntime, 2 threads, float16
    """

    name: str = "onnxruntime"
    threads: int = 1
    batch: int | None = None
    dtype: str | None = None
    provider_options: Options | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not 0 < len(self.name) <= _MOST_TEXT:
            raise InputError(
                f"Runtime(name={str(self.name)[:80]!r}): expected a runtime's name, such as 'torch'"
            )
        object.__setattr__(self, "threads", _count("threads", self.threads))
        if self.batch is not None:
            object.__setattr__(self, "batch", _count("batch", self.batch))
        if self.dtype is not None:
            object.__setattr__(self, "dtype", str(self.dtype).removeprefix("torch."))
            if self.dtype not in DTYPES:
                raise InputError(f"Runtime(dtype={self.dtype!r}): expected {', '.join(DTYPES)} or None")
        object.__setattr__(self, "provider_options", _pairs(self.provider_options))

    @staticmethod
    def of(runtime: str | Runtime, threads: int | None = None, batch: int | None = None) -> Runtime:
        """The runtime that `runtime=` names, with the `threads=` and `batch=` that were given beside it.

        Raises:
            InputError: where the settings contradict those of a `Runtime`.

        >>> Runtime.of("torch", threads=2) == Runtime.of(Runtime("torch", threads=2))
        True
        """
        if not isinstance(runtime, Runtime):
            return Runtime(runtime, 1 if threads is None else threads, batch)
        for name, beside, own in (("threads", threads, runtime.threads), ("batch", batch, runtime.batch)):
            if beside is not None and beside != own:
                raise InputError(
                    f"{name}={beside!r} beside a Runtime with {name}={own!r}: say it once, in the Runtime"
                )
        return runtime

    @property
    def options(self) -> dict[str, str]:
        """The provider options as a dict."""
        return dict(self.provider_options or ())  # type: ignore[arg-type]

    def settings(self) -> dict[str, object]:
        """All that is set, as plain data for JSON; what was left out is absent.

        >>> Runtime("torch", batch=8).settings()
        {'runtime': 'torch', 'threads': 1, 'batch': 8}
        """
        more = {"batch": self.batch, "dtype": self.dtype, "provider_options": self.options or None}
        set_ones = {name: value for name, value in more.items() if value is not None}
        return {"runtime": self.name, "threads": self.threads, **set_ones}

    def __str__(self) -> str:
        parts = [self.name, f"{self.threads} thread{'s' if self.threads > 1 else ''}"]
        parts += [f"batch {self.batch}"] * (self.batch is not None)
        parts += [self.dtype] * (self.dtype is not None)  # type: ignore[list-item]
        return ", ".join([*parts, *(f"{key}={value}" for key, value in self.options.items())])


def _count(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise InputError(f"{name}={value!r}: expected a whole number, at least 1")
    return int(value)


def _pairs(options: object) -> tuple[tuple[str, str], ...]:
    """The options as sorted pairs of texts."""
    if options is None:
        return ()
    try:
        given = dict(options)  # type: ignore[call-overload]
    except (TypeError, ValueError):
        raise InputError(
            f"Runtime(provider_options={options!r}): expected a dict, as {{'session.intra_op.allow_spinning': '1'}}"
        ) from None
    return tuple(sorted((_key(key), _text(key, value)) for key, value in given.items()))


def _key(key: object) -> str:
    if not isinstance(key, str) or not 0 < len(key) <= _MOST_TEXT:
        raise InputError(f"Runtime(provider_options=...): the key {str(key)[:80]!r} is not a name")
    return key


def _text(key: object, value: object) -> str:
    if isinstance(value, bool):
        return str(int(value))
    if not isinstance(value, (str, int, float)) or len(str(value)) > _MOST_TEXT:
        raise InputError(
            f"Runtime(provider_options={{{key!r}: ...}}): expected a text or a number, "
            f"got {type(value).__name__} {str(value)[:80]}"
        )
    return str(value)
