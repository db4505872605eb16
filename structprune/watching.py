"""A tracer's eyes: the modes of torch's through which it sees operations and functions. No other file knows them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from structprune.tracer import Tracer

__all__ = ["watching"]


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, tracer: Tracer) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tracer = tracer

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled in here, and the guard would import the compiler and cost each operation

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return self.tracer.dispatch(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return self.tracer.function(func, args, kwargs or {})


@contextmanager
def watching(tracer: Tracer) -> Iterator[None]:
    """Let ``tracer`` see every operation and every function of torch's that this thread calls."""
    with _Operations(tracer), _Functions(tracer):
        yield
