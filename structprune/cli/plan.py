"""`structprune plan`: what to keep of a network that need not fit in memory, as a file for `structprune apply`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

import structprune as sp
from structprune.archive import write_text
from structprune.cli.idle import require_effect
from structprune.cli.models import empty_model
from structprune.cli.options import (
    ChannelsOption,
    CriterionOption,
    DebugOption,
    FileSizeOption,
    InputOption,
    JsonOption,
    KeepOption,
    MacsOption,
    ModelArgument,
    MultipleOption,
    OnlyOption,
    ParamsOption,
    PeakMemoryOption,
    RaggedOption,
    ScopeOption,
    SeedOption,
    draws,
    reads_weights,
    the_budget,
)
from structprune.cli.output import session
from structprune.destinations import require_apart, require_file

__all__ = ["plan"]


def plan(
    context: typer.Context,
    model: ModelArgument,
    inputs: InputOption,
    path: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The plan.json to write.")],
    weights: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Score these safetensors; without them only --criterion random can."
        ),
    ] = None,
    macs: MacsOption = None,
    params: ParamsOption = None,
    channels: ChannelsOption = None,
    peak_memory: PeakMemoryOption = None,
    file_size: FileSizeOption = None,
    criterion: CriterionOption = "l2",
    scope: ScopeOption = None,
    multiple_of: MultipleOption = None,
    ragged: RaggedOption = True,
    keep: KeepOption = None,
    only: OnlyOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Plan a cut without the network in memory: parameters are never made, weights are read from their files.

    Give one or several of --macs, --params, --channels, --peak-memory and --file-size, all of which hold. Nothing is
    proven here, since nothing is computed.
    """
    with session(as_json, debug) as out:
        require_file(path, "plan.json")
        require_apart({"--weights": weights, "--out": path})
        require_effect(
            context, reads_weights(criterion), "a --criterion that reads weights, such as l2", "weights"
        )
        with out.steps(4) as step:
            budget = the_budget(
                channels=channels, params=params, macs=macs, peak_memory=peak_memory, file_size=file_size
            )
            step("building the model without its weights")
            empty = empty_model(model)
            example = sp.parse_inputs(inputs, seed)
            step("tracing")
            graph = sp.trace(empty, example)
            step("scoring")
            options: dict[str, Any] = {"seed": seed} if draws(criterion) else {}
            scores = sp.score(empty, graph, criterion, weights=weights, **options)
            step("selecting")
            chosen = sp.select(
                graph,
                scores,
                budget,
                scope,
                multiple_of,
                keep=keep or (),
                only=only or (),
                criterion=criterion,
                ragged=ragged,
            )
        write_text(path, chosen.to_json())
        shares = {name: round(share, 6) for name, share in sorted(chosen.remaining.items())}
        out.show(*(f"{name}: {share:.1%} remain" for name, share in shares.items()), f"wrote {path}")
        widths = {group.name: [group.size, len(group.keep)] for group in chosen.groups}
        out.result({"model": model, "remaining": shares, "widths": widths, "files": {"plan": str(path)}})
