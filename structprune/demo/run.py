"""The demo from beginning to end: what is done in which order, and what is told about it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

import structprune as sp
from structprune.archive import write_text
from structprune.data import digits
from structprune.demo.networks import Candidate, Trainer, cut_channels, mask_weights, train_dense
from structprune.demo.progress import Steps
from structprune.demo.settings import Settings
from structprune.demo.table import Row, document, table
from structprune.export import ExportReport
from structprune.latency import Measurement, ratio
from structprune.runtimes import torch_threads

__all__ = ["run"]

RUNTIMES = ("torch", "onnxruntime")


def run(
    out_dir: str | os.PathLike[str] = "runs/demo",
    seed: int = 0,
    console: Console | None = None,
    settings: Settings | None = None,
) -> dict[str, Any]:
    """The demo's figures, as in the `results.json` that it writes.

    Trains a small ResNet on scikit-learn's digits, removes half of its MACs once by importance and once by
    chance, masks an unstructured twin down to the same number of weights, fine-tunes all three alike, exports
    all four networks to ONNX and measures them. Prints one table on `console`. Writes the pruned network
    (`plan.json`, `model.safetensors`), four ONNX files and `results.json` into `out_dir`, replacing older
    ones.

    Raises `InputError` where the extra `train` is not installed.
    """
    settings, console = settings or Settings(), console or Console()
    folder, started = Path(out_dir), time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(*digits(settings.image_size), settings, seed)
    with Steps(console) as steps:
        with torch_threads(
            max((os.cpu_count() or 1) // 2, 1)
        ):  # two threads on two busy cores wait for each other
            candidates = _make(trainer, steps)
        exports = _save(candidates, trainer, folder, steps)
        latency = _measure(candidates, trainer, steps)
    rows = [_row(made, trainer, exports[made.name], latency) for made in candidates]
    seconds = time.perf_counter() - started
    result = {"seed": seed, "seconds": round(seconds, 1), "networks": document(rows)}
    write_text(folder / "results.json", json.dumps(result, indent=2, allow_nan=False) + "\n")
    console.print("", table(rows), "", *_summary(rows, folder, seconds), sep="\n")
    return result


def _make(trainer: Trainer, steps: Steps) -> list[Candidate]:
    """The dense network, its two cuts and its twin: what the table shows, in that order."""
    criterion = trainer.settings.criterion
    with steps(f"training the dense network, {trainer.settings.epochs} epochs") as progress:
        dense = train_dense(trainer, progress)
    with steps(f"pruning to {trainer.settings.macs:.0%} of the MACs by {criterion}, fine-tuning") as progress:
        structured = cut_channels("structured", criterion, dense, trainer, progress)
    with steps(f"pruning to {trainer.settings.macs:.0%} of the MACs by chance, fine-tuning") as progress:
        chance = cut_channels("random", "random", dense, trainer, progress)
    with steps("masking a twin to the same number of weights, fine-tuning") as progress:
        twin = mask_weights(dense, sp.count_params(structured.model), trainer, progress)
    return [dense, structured, chance, twin]


def _save(
    candidates: Sequence[Candidate], trainer: Trainer, folder: Path, steps: Steps
) -> dict[str, ExportReport]:
    """Writes the pruned network and an ONNX file of each, and gives the export's report by name."""
    exports = {}
    with steps("saving, exporting to ONNX and checking the files in onnxruntime") as progress:
        sp.save(folder, candidates[1].model, candidates[1].plan)
        for number, made in enumerate(candidates, 1):
            exports[made.name] = sp.export_onnx(
                made.model, trainer.example(2), folder / f"{made.name}.onnx", plan=made.plan
            )
            progress(number, len(candidates))
    return exports


def _measure(
    candidates: Sequence[Candidate], trainer: Trainer, steps: Steps
) -> dict[str, dict[str, Measurement]]:
    """The latency of all networks by turns, by runtime and network."""
    models, settings = {made.name: made.model for made in candidates}, trainer.settings
    latency = {}
    with steps("measuring latency, the networks by turns") as progress:
        for number, runtime in enumerate(RUNTIMES, 1):
            latency[runtime] = sp.measure_latency(
                models,
                trainer.example(settings.batch),
                runtime=runtime,
                repeats=settings.repeats,
                min_time=settings.min_time_s,
            )
            progress(number, len(RUNTIMES))
    return latency


def _row(
    made: Candidate, trainer: Trainer, export: ExportReport, latency: dict[str, dict[str, Measurement]]
) -> Row:
    return Row(
        candidate=made,
        params=sp.count_params(made.model),
        nonzeros=sp.nonzeros(made.model),
        macs=sp.count_macs(made.model, trainer.example(1)),
        onnx_bytes=export.bytes,
        onnx_error=max(export.errors.values()),
        latency={runtime: times[made.name] for runtime, times in latency.items()},
    )


def _summary(rows: Sequence[Row], folder: Path, seconds: float) -> list[str]:
    """What the table comes to, in sentences."""
    dense, structured, _, twin = rows
    points = 100 * (structured.candidate.accuracy - dense.candidate.accuracy)
    shares = [ratio(structured.latency[runtime], dense.latency[runtime]) for runtime in RUNTIMES]
    unstructured = ratio(twin.latency["onnxruntime"], dense.latency["onnxruntime"])
    return [
        f"structured: {points:+.1f} points of accuracy against dense, at {structured.macs / dense.macs:.1%} of "
        f"its MACs; {shares[0].value:.0%} of its time in torch, {shares[1].value:.0%} in onnxruntime.",
        "unstructured: as many non-zero weights, but in tensors of full size: "
        f"{unstructured.value:.0%} of dense's time in onnxruntime, and a file as large.",
        f"Written in {seconds:.0f} s to {folder}: plan.json and model.safetensors (the structured network), "
        "four ONNX files, results.json.",
    ]
