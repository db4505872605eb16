"""`structprune prune`: a smaller network under a budget, proven, and written where asked."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import RenderableType

import structprune as sp
from structprune.cli.files import require_writable, write_files
from structprune.cli.idle import require_effect
from structprune.cli.models import build_data, build_loss, build_model
from structprune.cli.options import (
    BatchOption,
    CalibrationOption,
    ChannelsOption,
    CriterionOption,
    DataOption,
    DebugOption,
    DtypeOption,
    EngineOption,
    FileSizeOption,
    InputOption,
    JsonOption,
    KeepOption,
    LatencyMsOption,
    LatencyOption,
    LossOption,
    MacsOption,
    ModelArgument,
    MultipleOption,
    OnlyOption,
    OnnxOption,
    OutOption,
    ParamsOption,
    PeakMemoryOption,
    ProviderOption,
    RaggedOption,
    RewriteOption,
    RuntimeOption,
    ScopeOption,
    SeedOption,
    SensitivityOption,
    ThreadsOption,
    ThroughputOption,
    draws,
    provider_options,
    reads_data,
    takes_a_loss,
    the_budget,
)
from structprune.cli.output import session
from structprune.destinations import require_apart
from structprune.report import NetworkSize, comparison_document, comparison_table, layers_table, network_size

__all__ = ["prune"]

_TIMED = "a latency to reach: --latency, --latency-ms or --throughput"
_OF_A_LATENCY = ("runtime", "threads", "batch", "dtype", "options", "layers")
_ON_DATA = "a --criterion that is worked out on data, such as taylor"
_ON_A_LOSS = "a --criterion that is worked out on a loss, such as taylor"


def prune(
    context: typer.Context,
    model: ModelArgument,
    inputs: InputOption,
    macs: MacsOption = None,
    params: ParamsOption = None,
    channels: ChannelsOption = None,
    latency: LatencyOption = None,
    latency_ms: LatencyMsOption = None,
    throughput: ThroughputOption = None,
    peak_memory: PeakMemoryOption = None,
    file_size: FileSizeOption = None,
    runtime: RuntimeOption = "onnxruntime",
    threads: ThreadsOption = 1,
    batch: BatchOption = None,
    dtype: DtypeOption = None,
    options: ProviderOption = None,
    criterion: CriterionOption = "l2",
    data: DataOption = None,
    loss: LossOption = None,
    calibration: CalibrationOption = None,
    scope: ScopeOption = None,
    losses: SensitivityOption = None,
    multiple_of: MultipleOption = None,
    ragged: RaggedOption = True,
    keep: KeepOption = None,
    only: OnlyOption = None,
    engine: EngineOption = "structprune",
    verify: Annotated[bool, typer.Option(help="Prove the result against the masked original.")] = True,
    folder: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Cut the network saved here further; shares stay those of MODEL."),
    ] = None,
    layers: Annotated[
        bool, typer.Option("--layers", help="Print the latency kernel by kernel: dense, forecast, measured.")
    ] = False,
    out_folder: OutOption = None,
    onnx: OnnxOption = None,
    rewrite: RewriteOption = False,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Prune a model to a budget, prove the result, and print it before and after.

    Give one or several of --macs, --params, --channels, --peak-memory, --file-size and --latency, shares in (0, 1] of
    the original network; or --latency-ms or --throughput in place of --latency. All of them hold in the result. A
    latency is measured beside the network that is pruned.
    """
    with session(as_json, debug) as out:
        require_writable(out_folder, onnx)
        require_apart({"--sensitivity": losses, "--onnx": onnx})
        with out.steps(5) as step:
            budget = the_budget(
                sp.Runtime(runtime, threads, batch, dtype, provider_options(options)),
                macs=macs,
                params=params,
                channels=channels,
                latency=latency,
                latency_ms=latency_ms,
                throughput=throughput,
                peak_memory=peak_memory,
                file_size=file_size,
            )
            require_effect(context, budget.timed, _TIMED, *_OF_A_LATENCY)
            require_effect(context, reads_data(criterion), _ON_DATA, "data", "loss")
            require_effect(context, takes_a_loss(criterion), _ON_A_LOSS, "loss")
            measured = None if losses is None else sp.Sensitivity.load(losses)
            step("building the model")
            batches, for_refit = build_data(data), build_data(calibration, "--calibration")
            original = build_model(model, None, seed)
            example = sp.parse_inputs(inputs, seed)
            plain = folder is None and not rewrite
            start = original if plain else build_model(model, folder, seed, example if rewrite else None)
            step("tracing, selecting, cutting, proving")
            result = sp.prune(
                start,
                example,
                budget,
                criterion,
                data=batches,
                loss=build_loss(loss),
                calibration=for_refit,
                scope=scope,
                sensitivity=measured or False,
                multiple_of=multiple_of,
                ragged=ragged,
                keep=keep or (),
                only=only or (),
                seed=seed if draws(criterion) else None,
                verify=verify,
                engine=engine,
                progress=step.part,
            )
            step("counting")
            sizes = network_size(original, example), network_size(result.model, example)
            step("writing")
            plans = (*(() if folder is None else sp.load_plans(folder)), result.plan)
            files = write_files(result.model, plans, example, out_folder, onnx)
        out.show(
            comparison_table(*sizes),
            *map(str, result.report.quantities),
            _kept(result),
            _proof(result),
            *([] if result.report.forecast is None else [str(result.report.forecast)]),
            *([] if result.report.refit is None else [str(result.report.refit)]),
            *_latency(result.report.latency, layers),
            *(f"wrote {name}" for name in files.values()),
        )
        out.result(_document(model, budget, sizes, result, files))


def latency_document(latency: sp.LatencyReport) -> dict[str, Any]:
    """The evidence of a latency budget as plain data, without the time of every round."""
    turns = [{"forecast": turn.forecast, "measured": asdict(turn.measured)} for turn in latency.turns]
    return {
        "dense": latency.dense.to_dict(times=False),
        "pruned": latency.pruned.to_dict(times=False),
        "ratio": asdict(latency.ratio),
        "turns": turns,
        "forecast_error": latency.forecast_error,
        "layers": {
            name: {key: None if math.isnan(ms) else ms for key, ms in asdict(layer).items()}
            for name, layer in latency.layers.items()
        },
    }


def _latency(report: sp.LatencyReport | None, layers: bool) -> list[RenderableType]:
    if report is None:
        return []
    return [str(report), *([layers_table(report)] if layers else [])]


def _kept(result: sp.PruneResult) -> str:
    return "kept " + ("; ".join(map(str, result.report.kinds)) or "everything")


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
        "budget": {limit.quantity: limit.value for limit in budget.limits},
        "quantities": [asdict(cut) for cut in result.report.quantities],
        "latency": None if result.report.latency is None else latency_document(result.report.latency),
        "criterion": result.plan.criterion,
        "scope": result.plan.scope,
        **comparison_document(*sizes),
        "widths": {group.name: [group.size, group.count] for group in result.plan.groups},
        "kinds": [asdict(kind) for kind in result.report.kinds],
        "changes": [asdict(change) for change in result.report.changes],
        "frozen": [{"group": name, "reason": reason} for name, reason in result.report.frozen],
        "proof": None if proof is None else asdict(proof),
        "forecast": None if result.report.forecast is None else asdict(result.report.forecast),
        "refit": None if result.report.refit is None else asdict(result.report.refit),
        "files": files,
    }
