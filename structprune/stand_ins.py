"""What stands for a model's tensors and surroundings while it is traced: meta, fake or real tensors, and quiet."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

import torch
from torch import nn

from structprune.rules.context import Dims

__all__ = ["SUBSTITUTES", "IdentityMap", "random_state", "transparent_functionals"]

_FASTPATH = threading.RLock()


class IdentityMap(MutableMapping[Any, Dims]):
    """Dimensions by tensor identity; keeps the tensors, which on the meta device costs nothing."""

    def __init__(self) -> None:
        self._items: dict[int, tuple[torch.Tensor, Dims]] = {}

    def get(self, key: Any, default: Any = None) -> Any:
        found = self._items.get(id(key))
        return default if found is None else found[1]

    def __getitem__(self, key: Any) -> Dims:
        return self._items[id(key)][1]

    def __setitem__(self, key: Any, value: Dims) -> None:
        self._items[id(key)] = (key, value)

    def __delitem__(self, key: Any) -> None:
        del self._items[id(key)]

    def __contains__(self, key: object) -> bool:
        return id(key) in self._items

    def __iter__(self) -> Iterator[Any]:
        return (tensor for tensor, _ in self._items.values())

    def __len__(self) -> int:
        return len(self._items)


def _as_parameter(new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    return nn.Parameter(new, requires_grad=False) if isinstance(old, nn.Parameter) else new


def _meta() -> tuple[Callable[..., Any], Callable[..., Any], Any]:
    def empty(tensor: torch.Tensor) -> torch.Tensor:
        return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="meta")

    return lambda tensor, _kind: _as_parameter(empty(tensor), tensor), empty, contextlib.nullcontext()


def _fake() -> tuple[Callable[..., Any], Callable[..., Any], Any]:
    from torch._subclasses.fake_tensor import FakeTensorMode

    mode = FakeTensorMode(allow_non_fake_inputs=True)

    def fake(tensor: torch.Tensor) -> torch.Tensor:
        return mode.from_tensor(tensor.detach())

    return lambda tensor, _kind: _as_parameter(fake(tensor), tensor), fake, _quietly(mode)


@contextlib.contextmanager
def _quietly(mode: Any) -> Iterator[None]:
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    logger.addFilter(_no_failures)
    try:
        with mode:
            yield
    finally:
        logger.removeFilter(_no_failures)


def _no_failures(record: logging.LogRecord) -> bool:
    """A model that fake tensors cannot run is run on real ones: torch's report of the failed attempt is no news."""
    return "failed while attempting to run meta" not in record.getMessage()


def _real() -> tuple[Callable[..., Any], Callable[..., Any], Any]:
    def share(tensor: torch.Tensor, kind: str) -> torch.Tensor:
        return _as_parameter(tensor.detach() if kind == "parameter" else tensor.detach().clone(), tensor)

    return share, lambda tensor: tensor.detach().clone(), contextlib.nullcontext()


SUBSTITUTES = {"meta": _meta, "fake": _fake, "real": _real}


@contextlib.contextmanager
def transparent_functionals() -> Iterator[None]:
    """Let the Python bodies of torch.nn.functional run in the open, so that every view inside is seen with its
    integers.

    Only this thread's trace runs meanwhile. Fused kernels that hide their operations are off: attention's inference
    path, and the recurrent layers of oneDNN.
    """
    functional = torch.nn.functional
    names = [name for name in vars(functional) if name.startswith("has_torch_function")]
    with _FASTPATH:
        saved = {name: getattr(functional, name) for name in names}
        onednn = torch._C._get_mkldnn_enabled()
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            for name in names:
                setattr(functional, name, lambda *_: False)
            torch._C._set_mkldnn_enabled(False)  # the flags of torch.backends.mkldnn warn about other devices
            yield
        finally:
            for name, function in saved.items():
                setattr(functional, name, function)
            torch.backends.mha.set_fastpath_enabled(fast)
            torch._C._set_mkldnn_enabled(onednn)


@contextlib.contextmanager
def random_state(kind: str) -> Iterator[None]:
    if kind != "real":
        yield
        return
    with torch.random.fork_rng(devices=[]):
        yield
