"""`structprune staircase`: how latency goes with a group's width, and where it jumps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text
from torch import nn

import structprune as sp
from structprune.cli.idle import require_effect
from structprune.cli.models import build_model
from structprune.cli.options import (
    BatchOption,
    DebugOption,
    DtypeOption,
    FolderOption,
    InputOption,
    JsonOption,
    ModelArgument,
    ProviderOption,
    RewriteOption,
    RuntimeOption,
    SeedOption,
    ThreadsOption,
    provider_options,
)
from structprune.cli.output import Steps, session
from structprune.report import require_plots, save_plot, staircase_document, staircase_plot, staircase_table
from structprune.staircase import busiest

__all__ = ["staircase"]


def staircase(
    context: typer.Context,
    model: ModelArgument,
    inputs: InputOption,
    groups: Annotated[
        list[str] | None,
        typer.Option(
            "--group",
            "--layer",
            metavar="NAME",
            help="A group, or a layer that produces one. Repeatable. Default: list the groups by latency.",
        ),
    ] = None,
    top: Annotated[
        int | None,
        typer.Option(
            "--top",
            min=1,
            help="Without --group: measure this many of the busiest groups. Default: list them only.",
        ),
    ] = None,
    measurements: Annotated[
        int, typer.Option("--measurements", help="The most profiles that are taken of one group.")
    ] = 160,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Plot to this .svg, .png or .pdf file.")
    ] = None,
    runtime: RuntimeOption = "onnxruntime",
    threads: ThreadsOption = 1,
    batch: BatchOption = None,
    dtype: DtypeOption = None,
    options: ProviderOption = None,
    folder: FolderOption = None,
    rewrite: RewriteOption = False,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Find the stairs of a group: the widths at which the runtime is fast, with few measurements.

    Latency is that of the kernels whose sizes follow the group's width, from the runtime's own profiler.
    """
    with session(as_json, debug) as out:
        require_effect(context, not groups, "no --group: it measures the busiest ones", "top")
        first = top or 0
        measured = bool(groups or first)
        require_effect(
            context, measured, "a group: name a --group, or ask for --top 3", "measurements", "plot"
        )
        if plot is not None:
            require_plots(plot)
        on = sp.Runtime(runtime, threads, batch, dtype, provider_options(options))
        with out.steps(1 + len(groups or ()) + (first + 1) * (not groups)) as step:
            step("building the model")
            example = sp.parse_inputs(inputs, seed)
            network = build_model(model, folder, seed, example if rewrite else None)
            times: dict[str, float] = {}
            if not groups:
                step("profiling")
                times = busiest(sp.forecast_latency(network, example, runtime=on, progress=step.part))
                if not times:
                    raise sp.InputError("no group of this model is free: `structprune inspect` says why")
            chosen = groups or list(times)[:first]
            found = [_found(network, example, name, on, measurements, step) for name in chosen]
        if not groups:
            out.show("the kernels that each group governs, of those that are free", _by_latency(times))
        for one in found:
            out.show(str(one), staircase_table(one))
        if plot is not None:
            out.show(f"wrote {save_plot(staircase_plot(found), plot)}")
        document = {"model": model, "staircases": [staircase_document(one) for one in found]}
        out.result({**document, **({} if groups else {"groups_ms": times})})


def _found(
    network: nn.Module, example: Any, name: str, on: sp.Runtime, measurements: int, step: Steps
) -> sp.Staircase:
    step(f"finding the stairs of {name}")
    return sp.staircase(network, example, name, runtime=on, measurements=measurements, progress=step.part)


def _by_latency(times: dict[str, float]) -> Table:
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("group")
    table.add_column("ms", justify="right", no_wrap=True)
    for name, ms in times.items():
        table.add_row(Text(name), f"{ms:.3f}")
    return table
