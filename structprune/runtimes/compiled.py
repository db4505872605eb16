"""torch.compile: a copy of the module, compiled by inductor for the shapes of its inputs before it is timed.

What is compiled stays in torch's caches as long as the code does that it was compiled from, and a class's `forward` is
shared by all its modules. So the copy is called from a function of its own, whose code is made anew for each; the
caches of what else was compiled on the way (after a graph break) are emptied at the end, except where the user's own
functions were compiled from the same code before.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from structprune.errors import InputError
from structprune.inputs import map_tensors
from structprune.interrupts import interrupts_kept
from structprune.runtime_settings import Runtime
from structprune.runtimes.eager import device_of, on_cuda, timed_call
from structprune.runtimes.flags import inference_mode, subnormals_as_zero, torch_threads
from structprune.runtimes.registry import TimedCall, register_runtime

__all__ = ["torch_compile", "torch_compile_cuda"]

_MOST_FORMS = 256  # of one code: torch would run the module eagerly beyond its limit


@register_runtime("torch-compile")
@contextmanager
def torch_compile(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], runtime: Runtime
) -> Iterator[TimedCall]:
    """Times a copy of the module under torch.compile, on the device of its parameters, with static shapes."""
    with _compiled(copy.deepcopy(model), args, kwargs, runtime) as timed:
        yield timed


@register_runtime("torch-compile-cuda", kernels_of="torch-cuda")
@contextmanager
def torch_compile_cuda(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], runtime: Runtime
) -> Iterator[TimedCall]:
    """Times a copy of the module under torch.compile on the current CUDA device with CUDA events."""
    with _compiled(on_cuda(model, runtime), args, kwargs, runtime) as timed:
        yield timed


@contextmanager
def _compiled(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], runtime: Runtime
) -> Iterator[TimedCall]:
    device = device_of(model)
    args, kwargs = map_tensors((args, dict(kwargs)), lambda tensor: tensor.to(device))
    call = torch.compile(_own_code(model), dynamic=False)
    with torch_threads(runtime.threads), inference_mode(model), _emptied(), subnormals_as_zero():
        model(*args, **kwargs)  # an error of the model's own is raised as it is
        if not _compile(lambda: call(*args, **kwargs), runtime):
            raise InputError(
                f"runtime={runtime.name!r}: torch.compile compiles nothing of {type(model).__name__}. Either its "
                "forward computes nothing or is TorchScript, or compiling is switched off: by "
                "TORCH_COMPILE_DISABLE, torch._dynamo.config.disable or torch.compiler.set_stance"
            )
        yield timed_call(call, args, kwargs, device)


def _own_code(model: nn.Module) -> Callable[..., Any]:
    """A function that calls the module, with a code object that no other function has."""

    def run(*args: Any, **kwargs: Any) -> Any:
        return model(*args, **kwargs)

    run.__code__ = run.__code__.replace()
    return run


@contextmanager
def _emptied() -> Iterator[None]:
    """The caches of code that is compiled in the meantime are emptied afterwards."""
    from torch._C._dynamo.eval_frame import reset_code
    from torch._dynamo import convert_frame, eval_frame

    codes: list[types.CodeType] = []

    def note(code: types.CodeType, compiled: types.CodeType) -> None:
        if any(code is known for known in codes) or not eval_frame._debug_get_cache_entry_list(code):
            codes.append(code)

    handle = convert_frame.register_bytecode_hook(note)  # type: ignore[arg-type]
    try:
        yield
    finally:
        handle.remove()
        for code in {id(code): code for code in codes}.values():
            reset_code(code)


def _compile(call: Callable[[], Any], runtime: Runtime) -> int:
    """How many graphs the first calls compile: one call that compiles, and one that shows that it need not again.

    Raises:
        InputError: where torch.compile fails; with what to install where a compiler is missing.
    """
    from torch._dynamo import config as dynamo
    from torch._dynamo import exc
    from torch._dynamo.utils import counters
    from torch._inductor import config as inductor

    before = counters["stats"]["unique_graphs"]
    limit = (
        "recompile_limit" if hasattr(dynamo, "recompile_limit") else "cache_size_limit"
    )  # before torch 2.7
    try:
        with (
            interrupts_kept(),
            dynamo.patch({"suppress_errors": False, limit: _MOST_FORMS}),
            inductor.patch({"cpp.threads": runtime.threads}),
        ):
            call()
            call()
    except exc.TorchDynamoException as error:
        raise InputError(f"runtime={runtime.name!r}: {_reason(error)}") from error
    return int(counters["stats"]["unique_graphs"]) - before


def _reason(error: BaseException) -> str:
    from torch._inductor.exc import InvalidCxxCompiler, TritonMissing

    causes = list(_causes(error))
    if any(isinstance(cause, InvalidCxxCompiler) for cause in causes):
        return (
            "torch.compile needs a C++ compiler and finds none: install g++ or clang (the system's package "
            "g++, or build-essential), or name one in the environment variable CXX"
        )
    if any(isinstance(cause, TritonMissing) for cause in causes):
        return "torch.compile needs triton on CUDA and does not find it: pip install triton"
    return f"torch.compile fails: {str(causes[-1]).strip()[:1500]}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = getattr(error, "inner_exception", None) or error.__cause__
