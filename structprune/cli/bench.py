"""`structprune bench`: latency of a model, and of its pruned twin beside it, timed by turns."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from torch import nn

import structprune as sp
from structprune.cli.idle import require_effect
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
_BASE = "original"


def bench(
    context: typer.Context,
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
    times: Annotated[
        bool, typer.Option("--times", help="With --json: the time of every round, beside the figures.")
    ] = False,
    rewrite: RewriteOption = False,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Measure latency: median and 95 % interval, models interleaved; one table for each runtime and batch size.

    With --folder the original is timed twice: how far the second is from the first is the noise. In every table shares
    are of MODEL, as its factory builds it, on the same runtime and batch.
    """
    sizes: list[int | None] = [*batches] if batches else [None]
    with session(as_json, debug) as out:
        require_effect(context, bool(folders), "a --folder of a network that was rewritten", "rewrite")
        require_effect(context, as_json, "--json", "times")
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
        for rows in tables:
            out.show(_setting(rows), _table(rows), "")
        documents = [_document(name, row, rows, times) for rows in tables for name, row in rows.items()]
        environment = dict(next(iter(tables[0].values())).environment)
        out.result({"model": model, "environment": environment, "measurements": documents})


def _models(name: str, folders: list[Path], seed: int, rewrite_for: Any) -> dict[str, nn.Module]:
    original = build_model(name, None, seed)
    models = {_BASE: original, **({f"{_BASE} again": original} if folders else {})}
    for folder in folders:
        if str(folder) in models:
            raise sp.InputError(
                f"--folder {folder}: there is a row of this name already; write its whole path"
            )
        models[str(folder)] = build_model(name, folder, seed, rewrite_for)
    return models


def _setting(rows: Rows) -> str:
    """What a table's rows have in common, and what their shares are shares of."""
    base = rows[_BASE]
    options = tuple(base.provider_options.items())
    on = sp.Runtime(base.runtime, base.threads, base.batch, base.dtype, options)
    return f"{on}: share of the median of {_BASE!r}, in the same rounds"


def _table(rows: Rows) -> Table:
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("network", no_wrap=True)
    for column in ("median ms", "95 % interval", f"share of {_BASE!r}"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("note")
    for name, row in rows.items():
        low, high = row.interval_ms
        share = "1" if name == _BASE else str(sp.ratio(row, rows[_BASE]))
        table.add_row(name, f"{row.median_ms:.3f}", f"{low:.3f} - {high:.3f}", share, _note(row))
    return table


def _note(row: sp.Measurement) -> str:
    notes = ["unstable"] if row.unstable else []
    if row.subnormal_weights:
        notes.append(f"{row.subnormal_weights} subnormal weights, timed as zero")
    return "; ".join(notes)


def _document(name: str, row: sp.Measurement, rows: Rows, times: bool) -> dict[str, Any]:
    document: dict[str, Any] = {"network": name, **row.to_dict(times=times)}
    for already_said in ("environment", "session"):
        document.pop(already_said)
    if name != _BASE:
        compared = sp.ratio(row, rows[_BASE])
        document["to_original"] = {"value": compared.value, "low": compared.low, "high": compared.high}
    return document
