"""`structprune sparsify`: single weights set to zero, the unstructured mode."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import structprune as sp
from structprune.cli.files import require_writable, write_files
from structprune.cli.idle import require_effect
from structprune.cli.models import build_model
from structprune.cli.options import (
    DebugOption,
    InputOption,
    JsonOption,
    ModelArgument,
    OnnxOption,
    OutOption,
    SeedOption,
)
from structprune.cli.output import session
from structprune.report import comparison_document, comparison_table, network_size

__all__ = ["sparsify"]


def sparsify(
    context: typer.Context,
    model: ModelArgument,
    inputs: InputOption,
    sparsity: Annotated[
        float | None, typer.Option(metavar="SHARE", help="Set this share of the weights to zero, in [0, 1).")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Set to zero every weight that scores below this.")
    ] = None,
    scope: Annotated[
        str, typer.Option(help="The share holds in every layer, or global: over all together.")
    ] = "layer",
    criterion: Annotated[str, typer.Option(help="A weight's importance: l1, l2 or random.")] = "l1",
    keep: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Leave this layer or glob alone. Repeatable.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Take only this layer or glob. Repeatable.")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Take the network that `prune --out` saved here.")
    ] = None,
    out_folder: OutOption = None,
    onnx: OnnxOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Set single weights to zero (unstructured); tensors keep their shapes, so dense runtimes gain nothing.

    Give exactly one of --sparsity and --threshold. Fine-tuning with the masks held is done in Python.
    """
    with session(as_json, debug) as out:
        require_writable(out_folder, onnx)
        require_effect(context, sparsity is not None, "a --sparsity, which is shared out", "scope")
        with out.steps(4) as step:
            step("building the model")
            dense = build_model(model, folder, seed)
            example = sp.parse_inputs(inputs, seed)
            step("masking")
            masked = sp.sparsify(
                dense,
                sparsity,
                threshold=threshold,
                scope=scope,
                criterion=criterion,
                keep=keep or (),
                only=only or (),
                seed=seed,
            )
            plain = sp.finalize(masked)
            step("counting")
            sizes = network_size(dense, example), network_size(plain, example)
            step("writing")
            plans = (sp.trace(dense, example).plan({}),) if folder is None else sp.load_plans(folder)
            files = write_files(plain, plans, example, out_folder, onnx)
        out.show(comparison_table(*sizes), *(f"wrote {name}" for name in files.values()))
        out.result({"model": model, **comparison_document(*sizes), "files": files})
