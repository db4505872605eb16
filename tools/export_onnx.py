"""Exports a model to an ONNX file that was checked against it in onnxruntime.

Usage:
    python tools/export_onnx.py package.module:factory --input 1x3x32x32 --out model.onnx
    python tools/export_onnx.py package.module:factory --input ids=1x16:int64:99 --out m.onnx --folder saved

`factory` is a function without arguments that returns the module. With `--folder`, a folder that
`sp.save` wrote, it returns the original architecture, and the pruned network of that folder is exported, its
plan named in the file's metadata. Inputs are `[name=]SIZES[:dtype[:high]]`; named ones are keyword arguments.
A file is written only if onnxruntime computes what the module computes; the exit status is 1 otherwise.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

import structprune as sp
from structprune.errors import InputError, StructpruneError
from structprune.inputs import parse_inputs
from structprune.storage import load_plans

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Exports what the command line names; the exit status."""
    options = _parser().parse_args(argv)
    try:
        factory = _factory(options.model)
        model = factory() if options.folder is None else sp.load(options.folder, factory)
        report = sp.export_onnx(
            model,
            parse_inputs(options.input),
            options.out,
            opset=options.opset,
            dynamic_batch=False if options.fixed_batch else "auto",
            plan=None if options.folder is None else load_plans(options.folder),
        )
    except StructpruneError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(report)
    return 0


def _parser() -> argparse.ArgumentParser:
    summary, _, details = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="package.module:factory")
    parser.add_argument(
        "--input", action="append", required=True, metavar="SPEC", help="1x3x224x224; repeatable"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the ONNX file to write")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="a folder that sp.save wrote")
    parser.add_argument("--opset", type=int, help="the ONNX opset; torch's choice if left out")
    parser.add_argument("--fixed-batch", action="store_true", help="fix the batch size at the input's")
    return parser


def _factory(name: str) -> Callable[[], nn.Module]:
    module_name, _, attribute = name.partition(":")
    if str(Path.cwd()) not in sys.path:  # a script's folder is on the path, the caller's is not
        sys.path.insert(0, str(Path.cwd()))
    try:
        factory: Any = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"model {name!r} is not found ({error}): write package.module:factory") from error
    if not callable(factory):
        raise InputError(
            f"model {name!r} is a {type(factory).__name__}, and a function that builds it is needed"
        )

    def build() -> nn.Module:
        model = factory()
        if not isinstance(model, nn.Module):
            raise InputError(f"{name}() gives a {type(model).__name__}, no torch module")
        return model

    return build


if __name__ == "__main__":
    sys.exit(main())
