"""A language model pruned on disk: seconds and memory from shards of random weights to the shards of the smaller one.

Usage:
    python -m benchmarks.streaming --folder runs/streaming
    python -m benchmarks.streaming --network llama-3-8b --folder runs/streaming --shard-gb 5 --out runs/streaming.json

The weights (bfloat16, 2.5 or 16 GB) are written first, as the hub lays them out. Three processes follow, so that each
has a peak memory of its own: one scores the files by L2 and selects half the parameters, one cuts the files, one loads
the result. Memory counts pages of mapped files, which the system takes back where it needs them. Both folders of
weights are removed at the end.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file
from torch import nn

import structprune as sp
from benchmarks.command_line import parser_of, write
from benchmarks.environment import environment
from benchmarks.full_size import Clock, peak_bytes

__all__ = ["main"]

SHAPES: dict[str, dict[str, Any]] = {
    "llama-3.2-1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "head_dim": 64},
    "llama-3-8b": {
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "head_dim": 128,
    },
}


def build(name: str) -> nn.Module:
    """The model without its parameters, in eval mode."""
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=128_256,
        num_attention_heads=32,
        num_key_value_heads=8,
        tie_word_embeddings=name == "llama-3.2-1b",
        **SHAPES[name],
    )
    with sp.empty_weights():
        model: nn.Module = transformers.LlamaForCausalLM(config)
    model.train(False)
    return model


def write_weights(name: str, folder: Path, shard_bytes: float) -> None:
    """Shards of random weights and their index."""
    folder.mkdir(parents=True)
    shards: list[dict[str, nn.Parameter]] = [{}]
    for key, parameter in build(name).named_parameters():
        if shards[-1] and 2 * sum(p.numel() for p in (*shards[-1].values(), parameter)) > shard_bytes:
            shards.append({})
        shards[-1][key] = parameter
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        places |= dict.fromkeys(shard, file)
        values = {
            key: torch.empty(p.shape, dtype=torch.bfloat16).normal_(0, 0.02) for key, p in shard.items()
        }
        save_file(values, folder / file, {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def planned(name: str, source: Path, path: Path) -> dict[str, Any]:
    clock = Clock()
    model = build(name)
    row = {"build_s": clock.lap()}
    graph = sp.trace(model, {"input_ids": torch.zeros(1, 128, dtype=torch.long), "use_cache": False})
    row["trace_s"] = clock.lap()
    scores = sp.score(model, graph, "l2", weights=source)
    row["score_s"] = clock.lap()
    plan = sp.select(graph, scores, sp.Budget(params=0.5), criterion="l2")
    path.write_text(plan.to_json())
    return {**row, "select_s": clock.lap(), "peak_bytes": peak_bytes()}


def cut(source: Path, path: Path, target: Path) -> dict[str, Any]:
    clock = Clock()
    report = sp.apply_plan_to_files(source, sp.PruningPlan.from_json(path.read_bytes()), target)
    row = {"cut_s": clock.lap(), "peak_bytes": peak_bytes()}
    return {**row, "bytes_before": report.bytes_before, "bytes_after": report.bytes_after}


def loaded(name: str, target: Path) -> dict[str, Any]:
    clock = Clock()
    small = sp.load(target, lambda: build(name))
    largest = max(float(p.detach().max()) for p in small.parameters())  # reads every value
    return {"load_s": clock.lap(), "peak_bytes": peak_bytes(), "largest": largest}


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a table and writes it as JSON; the exit status."""
    options = _parser().parse_args(argv)
    source, target = (options.folder / f"{options.network}{end}" for end in ("", "-half"))
    path = options.folder / f"{options.network}-plan.json"
    try:
        _alone(options.threads, write_weights, options.network, source, options.shard_gb * 1e9)
        steps = {
            "plan": _alone(options.threads, planned, options.network, source, path),
            "cut": _alone(options.threads, cut, source, path, target),
            "load": _alone(options.threads, loaded, options.network, target),
        }
    finally:
        for folder in (source, target):
            shutil.rmtree(folder, ignore_errors=True)
    console = Console() if sys.stdout.isatty() else Console(width=140)  # a log has no width of its own
    console.print(_table(options.network, steps))
    document = {"environment": environment(options.threads), "network": options.network, "steps": steps}
    write(options.out, document)
    return 0


def _alone(threads: int, function: Callable[..., Any], *arguments: Any) -> Any:
    """What the function returns in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        1, mp_context=context, initializer=torch.set_num_threads, initargs=(threads,)
    ) as alone:
        return alone.submit(function, *arguments).result()


def _table(network: str, steps: dict[str, dict[str, Any]]) -> Table:
    sizes = " -> ".join(f"{steps['cut'][key] / 1e9:.2f}" for key in ("bytes_before", "bytes_after"))
    table = Table(
        title=f"{network}, bfloat16, {sizes} GB", title_justify="left", pad_edge=False, show_edge=False
    )
    for column in ("step", "seconds", "peak memory GB"):
        table.add_column(column, justify="right" if table.columns else "left")
    for step, row in steps.items():
        seconds = ", ".join(f"{key[:-2]} {value:.1f}" for key, value in row.items() if key.endswith("_s"))
        table.add_row(step, seconds, f"{row['peak_bytes'] / 1e9:.2f}")
    return table


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("streaming", __doc__)
    add = parser.add_argument
    add("--network", choices=SHAPES, default="llama-3.2-1b", help="the smaller one if left out")
    add("--folder", type=Path, required=True, help="where the weights go; it needs 4 or 25 GB")
    add("--shard-gb", type=float, default=1.0, help="size of a shard, 1 GB if left out")
    add("--threads", type=int, default=1, help="torch's threads, 1 if left out")
    add("--out", type=Path, help="where the figures go as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
