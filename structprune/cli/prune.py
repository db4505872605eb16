"""`structprune prune`: a smaller network under a budget, proven, and written where asked."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

import structprune as sp
from structprune.cli.files import require_writable, write_files
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
from structprune.report import NetworkSize, comparison_document, comparison_table, network_size

__all__ = ["prune"]


def prune(
    model: ModelArgument,
    inputs: InputOption,
    macs: Annotated[
        float | None, typer.Option(metavar="SHARE", help="Keep at most this share of the MACs.")
    ] = None,
    params: Annotated[
        float | None, typer.Option(metavar="SHARE", help="Keep at most this share of the parameters.")
    ] = None,
    channels: Annotated[
        float | None, typer.Option(metavar="SHARE", help="Keep this share of every group's channels.")
    ] = None,
    criterion: Annotated[
        str, typer.Option(help="A channel's importance: l1, l2, linf, bn_scale or random.")
    ] = "l2",
    scope: Annotated[
        str | None,
        typer.Option(
            help="Rank per layer, global or isomorphic. Default: layer for --channels, else global."
        ),
    ] = None,
    multiple_of: Annotated[int, typer.Option(help="Keep widths that are multiples of this.")] = 1,
    keep: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Leave this layer, group or glob whole. Repeatable."),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Cut only this layer, group or glob. Repeatable.")
    ] = None,
    verify: Annotated[bool, typer.Option(help="Prove the result against the masked original.")] = True,
    folder: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Cut the network saved here further; shares stay those of MODEL."),
    ] = None,
    out_folder: OutOption = None,
    onnx: OnnxOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Prune a model to a budget, prove the result, and print it before and after.

    Give exactly one of --macs, --params and --channels: a share in (0, 1] of the original network.
    """
    with session(as_json, debug) as out:
        require_writable(out_folder, onnx)
        with out.steps(5) as step:
            budget = _budget(channels=channels, params=params, macs=macs)
            step("building the model")
            original = build_model(model, None, seed)
            start = original if folder is None else build_model(model, folder, seed)
            example = sp.parse_inputs(inputs, seed)
            step("tracing, selecting, cutting, proving")
            result = sp.prune(
                start,
                example,
                budget,
                criterion,
                scope=scope,
                multiple_of=multiple_of,
                keep=keep or (),
                only=only or (),
                seed=seed if criterion == "random" else None,
                verify=verify,
            )
            step("counting")
            sizes = network_size(original, example), network_size(result.model, example)
            step("writing")
            plans = (*(() if folder is None else sp.load_plans(folder)), result.plan)
            files = write_files(result.model, plans, example, out_folder, onnx)
        out.show(comparison_table(*sizes), _proof(result), *(f"wrote {name}" for name in files.values()))
        out.result(_document(model, budget, sizes, result, files))


def _budget(**shares: float | None) -> sp.Budget:
    given = {quantity: share for quantity, share in shares.items() if share is not None}
    if len(given) != 1:
        got = ", ".join(f"--{quantity} {share}" for quantity, share in given.items()) or "none"
        raise sp.InputError(f"give exactly one of --macs, --params and --channels (got {got})")
    return sp.Budget(**given)


def _proof(result: sp.PruneResult) -> str:
    proof = result.report.verify
    return "not proven: --no-verify" if proof is None else str(proof)


def _document(
    model: str,
    budget: sp.Budget,
    sizes: tuple[NetworkSize, NetworkSize],
    result: sp.PruneResult,
    files: dict[str, str],
) -> dict[str, Any]:
    proof = result.report.verify
    return {
        "model": model,
        "budget": {budget.quantity: budget.fraction},
        "criterion": result.plan.criterion,
        "scope": result.plan.scope,
        **comparison_document(*sizes),
        "widths": {group.name: [group.size, len(group.keep)] for group in result.plan.groups},
        "frozen": [{"group": name, "reason": reason} for name, reason in result.report.frozen],
        "proof": None if proof is None else asdict(proof),
        "files": files,
    }
