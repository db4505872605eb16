"""`structprune bench`: latency of a model, and of its pruned twin beside it, timed by turns."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from torch import nn

import structprune as sp
from structprune.cli.models import build_model
from structprune.cli.options import (
    DebugOption,
    DtypeOption,
    InputOption,
    JsonOption,
    ModelArgument,
    ProviderOption,
    RewriteOption,
    SeedOption,
    ThreadsOption,
    provider_options,
)
from structprune.cli.output import session

__all__ = ["bench"]

Rows = Mapping[str, sp.Measurement]


def bench(
    model: ModelArgument,
    inputs: InputOption,
    folders: Annotated[
        list[Path] | None,
        typer.Option("--folder", metavar="DIR", help="Time the network that was saved here too. Repeatable."),
    ] = None,
    runtimes: Annotated[
        list[str] | None,
        typer.Option(
            "--runtime", help="onnxruntime (default), torch, torch-compile; each also with -cuda. Repeatable."
        ),
    ] = None,
    batches: Annotated[
        list[int] | None, typer.Option("--batch", help="Batch size instead of the input's. Repeatable.")
    ] = None,
    threads: ThreadsOption = 1,
    dtype: DtypeOption = None,
    options: ProviderOption = None,
    repeats: Annotated[int, typer.Option("--repeats", help="Least number of timed rounds.")] = 50,
    rewrite: RewriteOption = False,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Measure latency: median and 95 % interval, models interleaved.

    With --folder the original is timed twice: how far the second is from the first is the noise.
    """
    sizes: list[int | None] = [*batches] if batches else [None]
    with session(as_json, debug) as out:
        sweep = [
            sp.Runtime(runtime, threads, batch, dtype, provider_options(options))
            for runtime in runtimes or ["onnxruntime"]
            for batch in sizes
        ]
        with out.steps(1 + len(sweep)) as step:
            step("building the model")
            example = sp.parse_inputs(inputs, seed)
            models = _models(model, folders or [], seed, example if rewrite else None)
            tables: list[Rows] = []
            for runtime in sweep:
                step(f"timing on {runtime}")
                tables.append(
                    sp.measure_latency(models, example, runtime=runtime, repeats=repeats, seed=seed)
                )
        out.show(_table(tables))
        rows = [_document(name, row, rows) for rows in tables for name, row in rows.items()]
        environment = dict(next(iter(tables[0].values())).environment)
        out.result({"model": model, "environment": environment, "measurements": rows})


def _models(name: str, folders: list[Path], seed: int, rewrite_for: Any) -> dict[str, nn.Module]:
    original = build_model(name, None, seed)
    if not folders:
        return {"original": original}
    saved = {str(folder): build_model(name, folder, seed, rewrite_for) for folder in folders}
    return {"original": original, "original again": original, **saved}


def _table(tables: list[Rows]) -> Table:
    table = Table(show_edge=False, pad_edge=False)
    for column in ("runtime", "batch", "network"):
        table.add_column(column, no_wrap=True)
    for column in ("median ms", "95 % interval", "to original"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("note")
    for rows in tables:
        for name, row in rows.items():
            low, high = row.interval_ms
            compared = "" if name == "original" else str(sp.ratio(row, rows["original"]))
            cells = (row.runtime, str(row.batch), name, f"{row.median_ms:.3f}", f"{low:.3f} - {high:.3f}")
            table.add_row(*cells, compared, _note(row))
    return table


def _note(row: sp.Measurement) -> str:
    notes = ["unstable"] if row.unstable else []
    if row.subnormal_weights:
        notes.append(f"{row.subnormal_weights} subnormal weights, timed as zero")
    return "; ".join(notes)


def _document(name: str, row: sp.Measurement, rows: Rows) -> dict[str, Any]:
    document: dict[str, Any] = {"network": name, **row.to_dict()}
    for already_said in ("environment", "session"):
        document.pop(already_said)
    if name != "original":
        compared = sp.ratio(row, rows["original"])
        document["to_original"] = {"value": compared.value, "low": compared.low, "high": compared.high}
    return document
