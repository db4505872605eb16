"""`structprune inspect`: what can be cut, what cannot, and why."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

import structprune as sp
from structprune.cli.models import build_model
from structprune.cli.options import (
    DebugOption,
    EngineOption,
    FolderOption,
    InputOption,
    JsonOption,
    ModelArgument,
    RewriteOption,
    SeedOption,
)
from structprune.cli.output import session
from structprune.report import coverage, fvcore_figure, fvcore_line, graph_document, graph_table, types_table

__all__ = ["inspect"]


def inspect(
    model: ModelArgument,
    inputs: InputOption,
    folder: FolderOption = None,
    engine: EngineOption = "structprune",
    types: Annotated[
        bool, typer.Option("--types", help="Print each tensor's inferred type as well.")
    ] = False,
    rewrite: RewriteOption = False,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Show the channel groups of a model: size, members, params, MACs, free or the reason with its line."""
    with session(as_json, debug) as out:
        with out.steps(3) as step:
            step("building the model")
            example = sp.parse_inputs(inputs, seed)
            network = build_model(model, folder, seed, example if rewrite else None)
            step("tracing")
            graph = sp.trace(network, example, engine)
            step("counting with fvcore")
            figure = fvcore_figure(network, example)
        if types:
            out.show(types_table(graph))
        out.show(graph_table(graph), str(coverage(graph)), fvcore_line(figure, coverage(graph).macs))
        document = {"model": model, **graph_document(graph), "fvcore": figure.document()}
        if types:
            document["types"] = [asdict(layer) for layer in graph.types()]
        out.result(document)
