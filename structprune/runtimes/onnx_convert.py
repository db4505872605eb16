"""torch to ONNX: the raw conversion that timing and export share. It neither checks nor times.

The module is wrapped so that it takes and returns flat tensors; so keyword arguments, nested inputs, and
outputs in dicts or dataclasses need no care later, and every name in the file is chosen here. A structural
copy is converted (tensors shared, nothing else), in which parametrized weights are computed once and stored
plain.
"""

from __future__ import annotations

import copy
import inspect
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from structprune.errors import ExportError
from structprune.inputs import batch_size, map_tensors, named_tensors, tensors_in
from structprune.interrupts import interrupts_kept
from structprune.runtimes.flags import inference_mode
from structprune.subnormals import without_subnormals

__all__ = ["Converted", "convert", "save_model", "weight_bytes"]

INLINE_LIMIT = 2**31 - 2**24  # protobuf refuses 2 GiB; the graph itself needs some of it
_WRAPPED = "wrapped"
_NOISY = ("torch.onnx", "torch.export", "torch._dynamo", "onnxscript", "onnx_ir")


@dataclass(frozen=True)
class Converted:
    """A converted module: the ONNX model in memory, and the tensors it was converted with, in input order."""

    model: ir.Model
    inputs: tuple[Tensor, ...]
    subnormal_weights: int = 0
    """How many weights were subnormal, most often by folding a norm into them, and are zero in the model."""

    @property
    def input_names(self) -> tuple[str, ...]:
        return tuple(str(value.name) for value in self.model.graph.inputs)

    @property
    def output_names(self) -> tuple[str, ...]:
        return tuple(str(value.name) for value in self.model.graph.outputs)

    @property
    def opset(self) -> int:
        return self.model.opset_imports[""]


def convert(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    opset: int | None = None,
    dynamic_batch: bool = False,
) -> Converted:
    """The module as an ONNX model, by torch's exporter, silently; the module stays as it was.

    Inputs are named after the parameters of `forward`, outputs after the keys or fields of what it returns.
    With `dynamic_batch`, dim 0 of every input that has the batch's size there is symbolic, named "batch".

    Raises:
        ExportError: where torch cannot convert the module, or fixes a size that was to be dynamic.
    """
    wrapper = _FlatModule(_plain_copy(model), args, dict(kwargs))
    inputs = tuple(tensors_in((args, dict(kwargs))))
    batch = batch_size(inputs)
    dims = tuple({0: "batch"} if t.ndim and t.shape[0] == batch else None for t in inputs)
    input_names = _input_names(model, args, kwargs)
    with interrupts_kept(), inference_mode(model), inference_mode(wrapper), _quiet():
        try:
            returned = wrapper.call(*args, **kwargs)
        except Exception as error:
            raise ExportError(f"{type(model).__name__}.forward fails on these inputs: {error}") from error
        output_names = _output_names(returned, input_names)
        try:
            program = torch.onnx.export(
                wrapper,
                inputs,
                dynamo=True,
                verbose=False,
                opset_version=opset,
                input_names=input_names,
                output_names=output_names,
                dynamic_shapes=(dims,) if dynamic_batch else None,
            )
        except Exception as error:
            raise ExportError(
                f"{type(model).__name__} could not be converted to ONNX: {_root_cause(error)}"
            ) from error
    if program is None:
        raise ExportError(f"{type(model).__name__}: torch's ONNX exporter returned nothing")
    _tidy(program.model)
    converted = Converted(program.model, inputs, _flush(program.model))
    if opset not in (None, converted.opset):
        raise ExportError(
            f"{type(model).__name__}: {opset=} was asked for and torch's exporter could only give "
            f"{converted.opset}; leave opset out, or ask for {converted.opset} or above"
        )
    return converted


class _FlatModule(nn.Module):
    """A module between flat tensors and a tree of arguments."""

    def __init__(self, wrapped: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__()
        setattr(self, _WRAPPED, wrapped)
        self._tree = (args, kwargs)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        source = iter(tensors)
        args, kwargs = map_tensors(self._tree, lambda _: next(source))
        return tuple(tensors_in(self.call(*args, **kwargs)))

    def call(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self, _WRAPPED)(*args, **kwargs)


def _plain_copy(model: nn.Module) -> nn.Module:
    """A copy that shares every tensor with `model`, its parametrized weights computed and stored plain."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    try:
        clone: nn.Module = copy.deepcopy(model, memo=dict(shared))
    except (TypeError, RuntimeError, NotImplementedError):  # holds what cannot be copied, a lock or a stream
        return model
    with inference_mode(clone):
        for module in clone.modules():
            if parametrize.is_parametrized(module):
                _unparametrize(module)
    return clone


def _unparametrize(module: nn.Module) -> None:
    names = [name for name, _ in module.get_submodule("parametrizations").named_children()]
    plain = {name: getattr(module, name).detach() for name in names}
    module.__class__ = type(module).__bases__[0]
    del module.parametrizations
    for name, tensor in plain.items():
        setattr(module, name, nn.Parameter(tensor, requires_grad=False))  # recurrent layers listen to setattr


def _input_names(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[str]:
    try:
        bound = inspect.signature(model.forward).bind(*args, **kwargs).arguments
    except (TypeError, ValueError) as error:
        raise ExportError(f"{type(model).__name__}.forward does not take these inputs: {error}") from error
    names: list[str] = []
    kinds = inspect.signature(model.forward).parameters
    positional = {k: v for k, v in bound.items() if kinds[k].kind != inspect.Parameter.VAR_KEYWORD}
    # the flat order is that of the caller's args, then of the caller's kwargs
    by_position = {k: v for k, v in positional.items() if k not in kwargs}
    for name, _ in (*named_tensors(by_position), *named_tensors(dict(kwargs))):
        names.append(_unused(name, names))
    return names


def _output_names(outputs: Any, taken: list[str]) -> list[str]:
    names: list[str] = []
    for name, _ in named_tensors(outputs):
        plain = name or "output"
        names.append(_unused(f"output_{plain}" if plain[0].isdigit() else plain, [*taken, *names]))
    return names


def _unused(name: str, taken: list[str]) -> str:
    candidate, count = name, 1
    while candidate in taken:
        count += 1
        candidate = f"{name}_{count}"
    return candidate


def _root_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
    return f"{type(error).__name__}: {text[:1500]}"


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter without its log lines and warnings, and with attention in the form it can convert."""
    levels = {name: logging.getLogger(name).level for name in _NOISY}
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        for name in _NOISY:
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _tidy(model: ir.Model) -> None:
    """Weights under the module's own names, and no stack traces: they would carry this machine's paths."""
    model.graph.doc_string = None
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        node.metadata_props.clear()
        node.doc_string = None
    for function in model.functions.values():
        for node in function:
            node.metadata_props.clear()
    for value in list(model.graph.initializers.values()):
        value.metadata_props.clear()
        if value.name is not None and value.name.startswith(f"{_WRAPPED}."):
            value.name = value.name.removeprefix(f"{_WRAPPED}.")


def _flush(model: ir.Model) -> int:
    """Sets subnormal weights to zero, and returns how many there were; the module's own tensors stay as they are."""
    found = 0
    for value in model.graph.initializers.values():
        if value.const_value is not None and value.const_value.dtype.is_floating_point():
            array, count = without_subnormals(value.const_value.numpy())
            if count:
                value.const_value = ir.tensor(array, dtype=value.const_value.dtype, name=value.name)
            found += count
    return found


def weight_bytes(model: ir.Model) -> int:
    """The bytes of all weights that the model holds."""
    values = model.graph.initializers.values()
    return sum(value.const_value.nbytes for value in values if value.const_value is not None)


def save_model(model: ir.Model, path: Path, data_name: str | None = None) -> Path | None:
    """Writes the model to `path`; above what protobuf holds (2 GiB), weights go to a file beside it.

    Returns:
        The path of that second file (`data_name`, or the model's name and ".data"), None where one file is
        enough.
    """
    if weight_bytes(model) < INLINE_LIMIT:
        ir.save(model, path)
        return None
    name = data_name or f"{path.name}.data"
    ir.save(model, path, external_data=name)
    return path.with_name(name)
