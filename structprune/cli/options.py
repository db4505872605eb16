"""The arguments and options that several commands share, declared once so that they read the same."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

import structprune as sp
from structprune.importance import CRITERIA, draws, needs_of, options_of

__all__ = [
    "BatchOption",
    "CalibrationOption",
    "ChannelsOption",
    "CriterionOption",
    "DataOption",
    "DebugOption",
    "DtypeOption",
    "EngineOption",
    "FileSizeOption",
    "FolderOption",
    "InputOption",
    "JsonOption",
    "KeepOption",
    "LatencyMsOption",
    "LatencyOption",
    "LossOption",
    "MacsOption",
    "ModelArgument",
    "MultipleOption",
    "OnlyOption",
    "OnnxOption",
    "OutOption",
    "ParamsOption",
    "PeakMemoryOption",
    "ProviderOption",
    "RaggedOption",
    "RewriteOption",
    "RuntimeOption",
    "ScopeOption",
    "SeedOption",
    "SensitivityOption",
    "ThreadsOption",
    "ThroughputOption",
    "draws",
    "provider_options",
    "reads_data",
    "reads_weights",
    "takes_a_loss",
    "the_budget",
]

ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="package.module:factory or file.py:factory, which returns the nn.Module (or is it).",
        show_default=False,
    ),
]
InputOption = Annotated[
    list[str],
    typer.Option(
        "--input",
        "-i",
        metavar="SIZES",
        help="An input, as 1x3x224x224 or ids=1x16:int64:30522 (name=sizes:dtype:bound). Repeatable.",
        show_default=False,
    ),
]
FolderOption = Annotated[
    Path | None,
    typer.Option(
        "--folder",
        metavar="DIR",
        help="Take the pruned network that `prune --out` saved here; MODEL builds the original.",
        show_default=False,
    ),
]
EngineOption = Annotated[
    str, typer.Option(help="Who says which channels belong together: structprune or torch-pruning.")
]
OutOption = Annotated[
    Path | None,
    typer.Option(
        "--out", "-o", metavar="DIR", help="Write plan.json and model.safetensors here.", show_default=False
    ),
]
OnnxOption = Annotated[
    Path | None, typer.Option("--onnx", metavar="FILE", help="Export to this ONNX file too, checked.")
]
RewriteOption = Annotated[
    bool,
    typer.Option(
        "--rewrite", help="Make MODEL a graph first, in which widths that only its code ties are free."
    ),
]
RaggedOption = Annotated[
    bool,
    typer.Option(
        "--ragged/--no-ragged",
        help="Each head, and each group of a convolution, keeps channels of its own; or all of them the same.",
    ),
]
SeedOption = Annotated[int, typer.Option("--seed", help="Seed of the random weights and inputs.")]
SensitivityOption = Annotated[
    Path | None,
    typer.Option(
        "--sensitivity",
        metavar="FILE",
        help="Choose the widths of least forecast loss: what `structprune sensitivity --out` wrote, by --criterion.",
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="One JSON document on stdout and nothing else there.")
]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]

MacsOption = Annotated[
    float | None, typer.Option("--macs", metavar="SHARE", help="Keep at most this share of the MACs.")
]
ParamsOption = Annotated[
    float | None, typer.Option("--params", metavar="SHARE", help="Keep at most this share of the parameters.")
]
ChannelsOption = Annotated[
    float | None,
    typer.Option("--channels", metavar="SHARE", help="Keep this share of every group's channels."),
]
PeakMemoryOption = Annotated[
    float | None,
    typer.Option("--peak-memory", metavar="SHARE", help="Keep at most this share of the activations' peak."),
]
FileSizeOption = Annotated[
    float | None,
    typer.Option("--file-size", metavar="SHARE", help="Keep at most this share of the weights' bytes."),
]
CriterionOption = Annotated[
    str,
    typer.Option(
        "--criterion",
        help="A channel's importance, by weights: l1, l2, linf, bn_scale, fpgm, lamp; by chance: random; by --data: "
        "wanda, obs (inputs), taylor, snip, fisher, hessian (inputs and targets).",
    ),
]
DataOption = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="DATA",
        help="What --criterion is worked out on: package.module:batches or file.py:batches, an iterable of (inputs, "
        "target) or a function that returns one.",
    ),
]
CalibrationOption = Annotated[
    str | None,
    typer.Option(
        "--calibration",
        metavar="DATA",
        help="Refit what is left to the original on these inputs: package.module:batches or file.py:batches, as for "
        "--data, without targets.",
    ),
]
LossOption = Annotated[
    str | None,
    typer.Option(
        "--loss", metavar="LOSS", help="file.py:loss, a function of (output, target). Default: cross entropy."
    ),
]
ScopeOption = Annotated[
    str | None,
    typer.Option(
        "--scope",
        help="Rank per layer, global or isomorphic, or value: the most importance for the price. Default: layer for "
        "--channels, global for --params, --macs and --file-size, value for others and for several.",
    ),
]
MultipleOption = Annotated[
    int | None,
    typer.Option(
        "--multiple-of",
        help="Keep widths that are multiples of this. Default: 1; with --latency what suits the runtime, measured.",
    ),
]
LatencyOption = Annotated[
    float | None,
    typer.Option(
        "--latency", metavar="SHARE", help="Take at most this share of the latency, measured on --runtime."
    ),
]
LatencyMsOption = Annotated[
    float | None,
    typer.Option(
        "--latency-ms", metavar="MS", help="Take at most these milliseconds, measured on --runtime."
    ),
]
ThroughputOption = Annotated[
    float | None,
    typer.Option(
        "--throughput", metavar="N", help="Reach at least N samples per second, measured on --runtime."
    ),
]
RuntimeOption = Annotated[
    str, typer.Option("--runtime", help="Where latency is measured: onnxruntime, torch or torch-compile.")
]
ThreadsOption = Annotated[int, typer.Option("--threads", help="Threads of one inference.")]
BatchOption = Annotated[
    int | None, typer.Option("--batch", help="Batch size that is timed. Default: the input's.")
]
DtypeOption = Annotated[
    str | None,
    typer.Option(
        "--dtype", help="Time a copy in float16, bfloat16, float32 or float64. Default: the model's own."
    ),
]
ProviderOption = Annotated[
    list[str] | None,
    typer.Option(
        "--provider-option",
        metavar="KEY=VALUE",
        help="An option of onnxruntime's provider or, with a dot in KEY, of its session. Repeatable.",
    ),
]
KeepOption = Annotated[
    list[str] | None,
    typer.Option(
        "--keep",
        metavar="NAME",
        help="Leave this layer, group, glob or kind (heads, mlp, ...) whole. Repeatable.",
    ),
]
OnlyOption = Annotated[
    list[str] | None,
    typer.Option(
        "--only",
        metavar="NAME",
        help="Cut only this layer, group, glob or kind (heads, mlp, ...). Repeatable.",
    ),
]


def provider_options(given: list[str] | None) -> dict[str, str]:
    """The options written as KEY=VALUE; raises InputError for another form, and for a key given twice."""
    options: dict[str, str] = {}
    for text in given or ():
        key, equals, value = text.partition("=")
        if not key or not equals or key in options:
            raise sp.InputError(f"--provider-option {text!r}: expected KEY=VALUE, and each KEY once")
        options[key] = value
    return options


def the_budget(runtime: sp.Runtime | None = None, **limits: float | None) -> sp.Budget:
    """The budget of the options that are given; raises InputError for none, and for two that are timed."""
    given: dict[str, Any] = {quantity: value for quantity, value in limits.items() if value is not None}
    if not given:
        named = [f"--{quantity.replace('_', '-')}" for quantity in limits]
        raise sp.InputError(f"give at least one of {', '.join(named[:-1])} and {named[-1]}")
    return sp.Budget(**given, runtime=runtime or sp.Runtime())


def reads_data(criterion: str) -> bool:
    """Whether a criterion of this name is worked out on data; True for an unknown name, which `score` refuses."""
    if criterion not in CRITERIA:
        return True
    function = CRITERIA[criterion]
    return needs_of(function) is not None or "data" in options_of(function)[0]


def takes_a_loss(criterion: str) -> bool:
    """Whether a criterion of this name is worked out on a loss; True for an unknown name, which `score` refuses."""
    if criterion not in CRITERIA:
        return True
    function = CRITERIA[criterion]
    needs = needs_of(function)
    return (needs is not None and needs.labels) or "loss" in options_of(function)[0]


def reads_weights(criterion: str) -> bool:
    """Whether a criterion of this name reads weights: all do but chance, which draws and reads nothing."""
    return reads_data(criterion) or not draws(criterion)
