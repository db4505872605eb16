"""`structprune sensitivity`: the loss against the width of each group, to be looked at and to choose widths by."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any

import typer

import structprune as sp
from structprune.cli.files import require_writable
from structprune.cli.models import build_data, build_loss, build_model
from structprune.cli.options import (
    CriterionOption,
    DebugOption,
    EngineOption,
    InputOption,
    JsonOption,
    KeepOption,
    ModelArgument,
    OnlyOption,
    RewriteOption,
    SeedOption,
    draws,
)
from structprune.cli.output import session
from structprune.destinations import require_apart
from structprune.report import require_plots, save_plot, sensitivity_plot, sensitivity_table
from structprune.sensitivity import LOSSES

__all__ = ["sensitivity"]


def sensitivity(
    model: ModelArgument,
    inputs: InputOption,
    data: Annotated[
        str,
        typer.Option(
            "--data",
            metavar="DATA",
            help="What is measured on: package.module:batches or file.py:batches, an iterable of inputs or of "
            "(inputs, target), or a function that returns one.",
            show_default=False,
        ),
    ],
    path: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="Write it here, for `prune --sensitivity`."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Plot to this .svg, .png or .pdf file.")
    ] = None,
    loss: Annotated[
        str,
        typer.Option(
            "--loss",
            metavar="LOSS",
            help="outputs (their relative squared error) or kl, which need no targets; cross_entropy; or "
            "file.py:loss, a function of (output, target).",
        ),
    ] = "outputs",
    criterion: CriterionOption = "l2",
    widths: Annotated[
        str, typer.Option("--widths", metavar="SHARES", help="Of each group's channels, with commas between.")
    ] = "0.9,0.75,0.5,0.25,0.1",
    joint: Annotated[
        int,
        typer.Option("--joint", help="Random plans over all groups, from which follows how losses combine."),
    ] = 12,
    norms: Annotated[
        bool,
        typer.Option(
            "--norms/--as-cut", help="Estimate batch norms anew in each network before it is measured."
        ),
    ] = True,
    keep: KeepOption = None,
    only: OnlyOption = None,
    engine: EngineOption = "structprune",
    rewrite: RewriteOption = False,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Measure what each group costs: the loss with fewer of its channels, everything else whole.

    Groups that must keep the same number of channels are one. The model is only read.
    """
    with session(as_json, debug) as out:
        require_apart({"--out": path, "--plot": plot})
        if plot is not None:
            require_plots(plot)
        if path is not None:
            require_writable(file=path)
        with out.steps(3) as step:
            step("building the model")
            batches = build_data(data)
            example = sp.parse_inputs(inputs, seed)
            network = build_model(model, None, seed, example if rewrite else None)
            step("tracing and scoring")
            task = loss if loss in LOSSES else build_loss(loss)
            graph = sp.trace(network, example, engine)
            options: dict[str, Any] = {"seed": seed} if draws(criterion) else {}
            if callable(task):
                options["loss"] = task
            scores = sp.score(network, graph, criterion, data=batches, **options)
            step("measuring")
            found = sp.sensitivity(
                network,
                graph,
                scores,
                batches or (),
                loss=task or "outputs",
                widths=_shares(widths),
                joint=joint,
                norms=norms,
                criterion=criterion,
                keep=keep or (),
                only=only or (),
                seed=seed,
                progress=step.part,
            )
        files = _written(found, path, plot)
        out.show(
            f"{found.loss} {found.whole:.4g} on {found.samples} samples; by how much it rises at shares of a group's "
            "channels:",
            *([] if plot else [sensitivity_table(found)]),
            *_agreement(found),
            *(f"wrote {file}" for file in files.values()),
        )
        fitted = None if math.isnan(found.agreement) else found.agreement
        out.result({"model": model, **json.loads(found.to_json()), "agreement": fitted, "files": files})


def _written(found: sp.Sensitivity, path: Path | None, plot: Path | None) -> dict[str, str]:
    files = {}
    if path is not None:
        found.save(path)
        files["sensitivity"] = str(path)
    if plot is not None:
        files["plot"] = str(save_plot(sensitivity_plot(found), plot))
    return files


def _agreement(found: sp.Sensitivity) -> list[str]:
    if math.isnan(found.agreement):
        return []
    plans = f"{len(found.joint)} random plans over all groups"
    return [f"rank correlation of forecast and measured loss, {plans}: {found.agreement:.2f}"]


def _shares(text: str) -> list[float]:
    try:
        return [float(one) for one in text.split(",")]
    except ValueError:
        raise sp.InputError(f"--widths {text!r}: expected numbers with commas between, as 0.75,0.5") from None
