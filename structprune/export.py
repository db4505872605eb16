"""ONNX export that refuses to leave a file which computes something else than the module.

The file is made in a hidden folder beside its destination, checked there (onnx's checker, then onnxruntime
against the module on several batches) and moved into place last; so whatever fails or interrupts, the
destination is as it was. Weights above protobuf's 2 GiB go into a second file, named afresh for every export,
so that the old pair stays whole until the new model file replaces the old one.
"""

from __future__ import annotations

import glob
import os
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import onnx
import onnx_ir as ir
from torch import nn

from structprune.arguments import typed
from structprune.destinations import require_file
from structprune.errors import ExportError, InputError
from structprune.inputs import batch_size, normalize_inputs, random_like, repeat_batch
from structprune.interrupts import interrupts_kept
from structprune.plan import PruningPlan, plan_digest
from structprune.runtime_settings import Runtime
from structprune.runtimes.onnx_check import largest_difference, module_outputs
from structprune.runtimes.onnx_convert import Converted, convert, save_model
from structprune.runtimes.ort import open_session
from structprune.strict_json import own_version
from structprune.tensors import require_module

__all__ = ["ExportReport", "export_onnx"]

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
Plans = PruningPlan | Sequence[PruningPlan] | None


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how near onnxruntime came to the module."""

    path: Path
    bytes: int
    """Of the model file and, where there is one, the weight file beside it."""
    opset: int
    dynamic_batch: bool
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    errors: Mapping[int, float]
    """Batch size -> largest difference over all outputs, relative to the largest value of its output."""
    skipped: Mapping[int, str] = field(default_factory=dict)
    """Batch size -> why the module itself does not take it."""
    data_path: Path | None = None
    subnormal_weights: int = 0
    """How many weights are zero in the file since they would be subnormal, as folding a norm may make them."""
    note: str = ""
    """Why the batch size is fixed, where it was left to the export."""

    def __str__(self) -> str:
        worst = max(self.errors.values())
        batches = ", ".join(map(str, self.errors))
        text = (
            f"{self.path}: {self.bytes} bytes, opset {self.opset}, error {worst:.1e} on batches of {batches}"
        )
        if self.subnormal_weights:
            text += f", {self.subnormal_weights} subnormal weights written as zero"
        return f"{text}; {self.note}" if self.note else text


class _NotDynamicError(ExportError):
    """The model computes what it should at the example's batch size, and not, or not surely, at another."""


@typed
def export_onnx(
    model: nn.Module,
    example_inputs: Any,
    path: str | os.PathLike[str],
    *,
    opset: int | None = None,
    dynamic_batch: bool | Literal["auto"] = "auto",
    plan: Plans = None,
    metadata: Mapping[str, str] | None = None,
    rtol: float = 1e-4,
    atol: float = 1e-5,
    check_batches: Sequence[int] = (1, 2, 3),
    seed: int = 0,
) -> ExportReport:
    """Writes `model` as an ONNX file that was checked against it in onnxruntime, and says how near it came.

    The model is exported in eval mode and left as it was. Parametrized weights (masks) are stored computed,
    and weights that are subnormal, or become so where a norm is folded into them, as zero.
    Checked are the example itself and random inputs of its kind: floats as noise of its mean and spread,
    integers from the range that the example shows.

    Args:
        model: the module to export.
        example_inputs: one tensor, a tuple of arguments or a dict of keyword arguments.
        path: the file to write; an older one is replaced once the new one has passed. Its folder is made.
        opset: the ONNX opset; torch's choice if left out.
        dynamic_batch: True leaves dim 0 open (for all inputs with the size of the first), False keeps
            the example's sizes, "auto" leaves it open where the model allows it, and says so if not.
        plan: the plan (or plans, in order) that the model was cut by; named in the file's metadata.
        metadata: more keys and values for the file's metadata.
        rtol: the difference allowed, relative to the largest absolute value of the output.
        atol: the difference allowed in any case.
        check_batches: the batch sizes to check, beside the example's own; those the module itself refuses
            are listed in the report.
        seed: of the random inputs.

    Raises:
        ExportError: where the model cannot be converted, gives other outputs in onnxruntime, or fixes the
            batch though `dynamic_batch=True`. No file is left and an older one is untouched.
        InputError: for arguments out of range, and a path that cannot be written.
    """
    require_module(model)
    inputs = normalize_inputs(example_inputs)
    if not check_batches or min(check_batches) < 1:
        raise InputError(f"{check_batches=}: give at least one batch size, each at least 1")
    if dynamic_batch not in (True, False, "auto"):
        raise InputError(f'{dynamic_batch=}: it is True, False or "auto"')
    destination = require_file(path)
    properties = _properties(model, plan, metadata)
    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{destination.name}.", dir=destination.parent) as folder:
        staged = _Staging(model, inputs, Path(folder) / destination.name, properties, opset, rtol, atol, seed)
        with interrupts_kept():
            report = staged.write(dynamic_batch, check_batches)
        return _move(report, destination)


@dataclass(frozen=True)
class _Staging:
    """One export on its way: the file in its hidden folder, written and checked."""

    model: nn.Module
    inputs: Inputs
    path: Path
    properties: Mapping[str, str]
    opset: int | None
    rtol: float
    atol: float
    seed: int

    def write(self, dynamic_batch: bool | Literal["auto"], batches: Sequence[int]) -> ExportReport:
        if dynamic_batch is False:
            return self._fixed()
        try:
            return self._dynamic(batches)
        except _NotDynamicError as error:
            if dynamic_batch is True:
                raise ExportError(
                    f"{error}\nLeave dynamic_batch out for a file with a fixed batch."
                ) from error
            return self._fixed(f"the batch is fixed at {batch_size(self.inputs)}: {error}")

    def _fixed(self, note: str = "") -> ExportReport:
        converted = convert(self.model, *self.inputs, opset=self.opset)
        data_path = self._save(converted)
        errors, _ = self._check({batch_size(self.inputs)})
        return self._report(converted, data_path, errors, {}, dynamic=False, note=note)

    def _dynamic(self, batches: Sequence[int]) -> ExportReport:
        # torch takes a size of 1 for a broadcast and would fix it, so two rows are converted at least
        rows = max(batch_size(self.inputs), 2)
        args, kwargs = repeat_batch(self.inputs, rows)
        try:
            converted = convert(self.model, args, kwargs, opset=self.opset, dynamic_batch=True)
        except Exception as error:
            raise _NotDynamicError(
                f"another batch size could not be converted: {_first_line(error)}"
            ) from error
        fixed = [str(value.name) for value in converted.model.graph.inputs if _is_fixed(value, converted)]
        if fixed:
            raise _NotDynamicError(f"the converted model has a fixed size in dim 0 of {', '.join(fixed)}")
        data_path = self._save(converted)
        errors, _ = self._check({rows})
        try:
            others, skipped = self._check({batch_size(self.inputs), *batches} - {rows})
        except ExportError as error:
            raise _NotDynamicError(f"converted with {rows} rows, another number fails: {error}") from error
        errors = dict(sorted({**errors, **others}.items()))
        return self._report(converted, data_path, errors, skipped, dynamic=True)

    def _save(self, converted: Converted) -> Path | None:
        converted.model.metadata_props.update(self.properties)
        data_path = save_model(converted.model, self.path, f"{self.path.name}.{uuid.uuid4().hex[:8]}.data")
        try:
            onnx.checker.check_model(str(self.path))
        except onnx.checker.ValidationError as error:
            raise ExportError(
                f"{type(self.model).__name__}: onnx's checker refuses the file: {error}"
            ) from error
        return data_path

    def _check(self, batches: set[int]) -> tuple[dict[int, float], dict[int, str]]:
        session = open_session(self.path, Runtime())
        errors: dict[int, float] = {}
        skipped: dict[int, str] = {}
        for batch in sorted(batches):
            own = batch == batch_size(self.inputs)
            cases = [self.inputs] if own else []
            cases.append(random_like(self.inputs, batch=batch, seed=self.seed + batch))
            for case in cases:
                try:
                    expected = module_outputs(self.model, case)
                except Exception as error:
                    if own:
                        raise ExportError(f"the module itself fails: {_first_line(error)}") from error
                    skipped[batch] = _first_line(error)
                    continue
                worst = largest_difference(session, case, expected, self.rtol, self.atol)
                errors[batch] = max(errors.get(batch, 0.0), worst)
        return errors, skipped

    def _report(
        self,
        converted: Converted,
        data_path: Path | None,
        errors: dict[int, float],
        skipped: dict[int, str],
        *,
        dynamic: bool,
        note: str = "",
    ) -> ExportReport:
        written = [self.path] if data_path is None else [self.path, data_path]
        return ExportReport(
            path=self.path,
            bytes=sum(file.stat().st_size for file in written),
            opset=converted.opset,
            dynamic_batch=dynamic,
            input_names=converted.input_names,
            output_names=converted.output_names,
            errors=errors,
            skipped=skipped,
            data_path=data_path,
            subnormal_weights=converted.subnormal_weights,
            note=note,
        )


def _is_fixed(value: ir.Value, converted: Converted) -> bool:
    example = converted.inputs[converted.input_names.index(str(value.name))]
    if not example.ndim or example.shape[0] != batch_size(converted.inputs):
        return False
    return value.shape is None or not isinstance(value.shape[0], ir.SymbolicDim)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{lines[0][:300]}" if lines else type(error).__name__


def _move(report: ExportReport, destination: Path) -> ExportReport:
    """The staged files in their place, the model file last; earlier exports' weight files are removed."""
    data_path = None
    if report.data_path is not None:
        data_path = destination.with_name(report.data_path.name)
        os.replace(report.data_path, data_path)
    try:
        os.replace(report.path, destination)
    except BaseException:
        if data_path is not None:
            data_path.unlink()
        raise
    for old in destination.parent.glob(f"{glob.escape(destination.name)}.????????.data"):
        if old != data_path:
            old.unlink()
    return replace(report, path=destination, data_path=data_path)


def _properties(model: nn.Module, plan: Plans, metadata: Mapping[str, str] | None) -> dict[str, str]:
    """What the file's metadata will say: the caller's words, the plan's, and the version of this package."""
    properties = {str(key): str(value) for key, value in (metadata or {}).items()}
    properties["structprune.version"] = own_version()
    plans = () if plan is None else (plan,) if isinstance(plan, PruningPlan) else tuple(plan)
    if not plans:
        return properties
    _check_plan(model, plans[-1])
    budgets = [str(limit) for p in plans if p.budget is not None for limit in p.budget.limits]
    properties["structprune.fingerprint"] = plans[0].fingerprint
    properties["structprune.plan_sha256"] = plan_digest(plans)
    properties["structprune.budget"] = ", ".join(budgets)
    properties["structprune.criterion"] = ", ".join(dict.fromkeys(p.criterion for p in plans))
    properties["structprune.scope"] = ", ".join(dict.fromkeys(p.scope for p in plans))
    return properties


def _check_plan(model: nn.Module, plan: PruningPlan) -> None:
    shapes = {name: tuple(t.shape) for name, t in (*model.named_parameters(), *model.named_buffers())}
    for name in plan.tensors:
        if shapes.get(name, plan.new_shape(name)) != plan.new_shape(name):
            raise ExportError(
                f"the plan is not this model's: {name!r} has shape {list(shapes[name])}, and the plan leaves "
                f"{list(plan.new_shape(name))}; give the plan that the model was cut by, or none"
            )
