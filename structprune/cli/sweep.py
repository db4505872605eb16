"""`structprune sweep`: what many budgets would keep and cost, before one is chosen."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

import structprune as sp
from structprune.cli.idle import require_effect
from structprune.cli.models import build_model
from structprune.cli.options import (
    BatchOption,
    CriterionOption,
    DebugOption,
    DtypeOption,
    EngineOption,
    InputOption,
    JsonOption,
    KeepOption,
    ModelArgument,
    MultipleOption,
    OnlyOption,
    ProviderOption,
    RaggedOption,
    RewriteOption,
    ScopeOption,
    SeedOption,
    SensitivityOption,
    ThreadsOption,
    provider_options,
)
from structprune.cli.output import session
from structprune.destinations import require_apart
from structprune.report.plots import require_plots
from structprune.report.sweep import plot_sweep, sweep_table

__all__ = ["sweep"]

_TIMED = "a latency to forecast: --quantity latency, --runtime or --measure"


def sweep(
    context: typer.Context,
    model: ModelArgument,
    inputs: InputOption,
    quantities: Annotated[
        list[str] | None,
        typer.Option(
            "--quantity",
            metavar="NAME",
            help="channels, params, macs (default), latency, latency_ms, throughput, peak_memory or file_size. "
            "Repeatable: each is swept by itself.",
        ),
    ] = None,
    at: Annotated[
        str, typer.Option("--at", metavar="VALUES", help="The values, with commas between.")
    ] = "0.9,0.75,0.5,0.33",
    runtime: Annotated[
        str | None,
        typer.Option(
            "--runtime",
            help="Forecast latencies here: onnxruntime (default where a latency is needed) or torch.",
        ),
    ] = None,
    threads: ThreadsOption = 1,
    batch: BatchOption = None,
    dtype: DtypeOption = None,
    options: ProviderOption = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Cut every network and time all by turns with the dense one.")
    ] = False,
    criterion: CriterionOption = "l2",
    scope: ScopeOption = None,
    losses: SensitivityOption = None,
    multiple_of: MultipleOption = None,
    ragged: RaggedOption = True,
    keep: KeepOption = None,
    only: OnlyOption = None,
    engine: EngineOption = "structprune",
    rewrite: RewriteOption = False,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot", metavar="FILE", help="Draw importance against MACs and latency (.png, .svg, .pdf)."
        ),
    ] = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Choose widths for many budgets in one go, and print what each keeps and costs.

    The model is traced, scored and profiled once; nothing is proven or written. `structprune prune` does that for the
    budget that is chosen. Budgets that cannot be met are listed with the reason; where none can, that is an error.
    """
    with session(as_json, debug) as out:
        require_apart({"--sensitivity": losses, "--plot": plot})
        if plot is not None:
            require_plots(plot)
        with out.steps(2) as step:
            on = sp.Runtime(runtime or "onnxruntime", threads, batch, dtype, provider_options(options))
            budgets = [_budget(name, value, on) for name in quantities or ["macs"] for value in _values(at)]
            used = measure or runtime is not None or any(budget.timed for budget in budgets)
            require_effect(context, used, _TIMED, "threads", "batch", "dtype", "options")
            measured = None if losses is None else sp.Sensitivity.load(losses)
            step("building the model")
            example = sp.parse_inputs(inputs, seed)
            built = build_model(model, None, seed, example if rewrite else None)
            step("tracing, scoring, selecting")
            points = sp.sweep(
                built,
                example,
                budgets,
                criterion,
                runtime=None if runtime is None and not measure else on,
                measure=measure,
                scope=scope,
                sensitivity=measured,
                multiple_of=multiple_of,
                ragged=ragged,
                keep=keep or (),
                only=only or (),
                seed=seed if criterion == "random" else None,
                engine=engine,
                progress=step.part,
            )
        missed = [_reason(point) for point in points if point.plan is None]
        if len(missed) == len(points):
            raise sp.BudgetError("\n".join(["no budget of the sweep can be met", *missed]))
        files = {} if plot is None else {"plot": str(plot_sweep(points, plot))}
        out.show(sweep_table(points), *missed, *(f"wrote {file}" for file in files.values()))
        out.result(_document(model, points, files))


def _values(text: str) -> list[float]:
    try:
        return [float(one) for one in text.split(",")]
    except ValueError:
        raise sp.InputError(f"--at {text!r}: expected numbers with commas between, as 0.75,0.5") from None


def _budget(quantity: str, value: float, runtime: sp.Runtime) -> sp.Budget:
    name = quantity.replace("-", "_")
    if name not in sp.QUANTITIES:
        raise sp.InputError(f"--quantity {quantity!r}: expected one of {', '.join(sp.QUANTITIES)}")
    limits: dict[str, Any] = {name: value}
    return sp.Budget(**limits, runtime=runtime)


def _reason(point: sp.SweepPoint) -> str:
    """Which budget is not met, and what can be reached."""
    return f"{point.budget}: {point.unreachable.removeprefix(f'{point.budget} cannot be met: ')}"


def _document(model: str, points: tuple[sp.SweepPoint, ...], files: dict[str, str]) -> dict[str, Any]:
    return {"model": model, "points": [point.to_dict() for point in points], "files": files}
