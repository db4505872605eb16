"""Accuracy at equal measured latency, and latency at equal MACs, against torch-pruning: networks trained on digits.

Usage:
    python -m benchmarks.latency_accuracy --out runs/latency_accuracy.json
    python -m benchmarks.latency_accuracy --network resnet --seeds 1 --share 0.4 --epochs 2  # a look within a minute

For each seed (of the split, the weights and the order of the data) a ResNet and a MobileNetV2 kind are trained on
scikit-learn's digits. torch-pruning cuts them, uniform and global, widths rounded to 8 and 16, as near to each share of
the dense latency as it comes; each cut is measured beside the dense network. `prune` then cuts the same network to the
latency that was measured. Criterion (the L2 norm of a group), fine-tuning, seed and order of the data are the same for
all. structprune's cut is tuned twice: as it is, so that the choice of widths alone makes the difference, and as
`calibration=` leaves it, refitted on some of the training inputs. Fine-tuning is short, since on digits all cuts end
alike after a long one: accuracy is shown after the cut and after each epoch.

Differences are paired within seeds: mean, standard deviation, 95 % interval by Student's t, and in how many seeds the
sign is which. "not told apart" is an interval that holds 0. At equal MACs: of structprune's choices by latency the
fastest that has at least as many MACs as torch-pruning's network, both measured in the same call.

Rows are added to the file after each seed, and seeds that are there are not run again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn
from torch.utils.data import TensorDataset

import structprune as sp
from benchmarks.command_line import parser_of, write
from benchmarks.digits_networks import DIGITS_NETWORKS
from benchmarks.environment import environment
from benchmarks.latency_accuracy_table import sentences, statistics, tables
from benchmarks.pairs import Candidate, Pair, Workbench
from structprune.data import digits
from structprune.runtimes import torch_threads
from structprune.train import evaluate, finetune

__all__ = ["main", "of_network"]

_TEST_SHARE = 0.6
_RECIPE: dict[str, Any] = {"batch_size": 32, "schedule": "onecycle", "label_smoothing": 0.1}


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the tables and writes the rows with all raw figures; the exit status."""
    options = _parser().parse_args(argv)
    console = Console() if sys.stdout.isatty() else Console(width=180)  # a log has no width of its own
    rows = _written(options)
    there = {(row["network"], row["seed"]) for row in rows}
    for seed in range(options.seeds):
        for name in options.network or list(DIGITS_NETWORKS):
            if (name, seed) not in there:
                found = of_network(name, seed, options)
                rows += found
                _write(options, rows)
                console.print(f"{name}, seed {seed}: dense accuracy {100 * found[0]['dense_accuracy']:.2f} %")
    figures = statistics(rows)
    console.print(*tables(figures), *sentences(figures), sep="\n\n")
    return 0


def _written(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of an earlier run with the same options."""
    if options.out is None or not options.out.exists():
        return []
    document = json.loads(options.out.read_text(encoding="utf-8"))
    if _fixed(document["options"]) != _fixed(_plain(options)):
        raise SystemExit(f"{options.out} was written with other options: give another --out")
    rows: list[dict[str, Any]] = document["rows"]
    return rows


def _write(options: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    document = {"environment": environment(options.threads), "options": _plain(options)}
    write(options.out, document | {"figures": statistics(rows), "rows": rows})


def _fixed(options: dict[str, Any]) -> dict[str, Any]:
    """The options that every row depends on."""
    return {name: value for name, value in options.items() if name not in ("network", "seeds", "out")}


def of_network(name: str, seed: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each share and each of torch-pruning's modes: all figures of the pair, as plain data."""
    train, test = digits(options.image_size, test_share=_TEST_SHARE, seed=seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = DIGITS_NETWORKS[name]()
    with torch_threads(options.train_threads):
        finetune(model, train, epochs=options.epochs, lr=0.05, seed=seed, **_RECIPE)
        dense = evaluate(model, test)
    x = test.tensors[0][: options.batch].clone()
    runtime = sp.Runtime(options.runtime, options.threads)
    bench = Workbench(model, x, runtime, options.repeats, options.min_time)
    pairs = bench.pairs(options.share or [0.3, 0.2])
    calibration = train.tensors[0][: options.calibration]
    with torch_threads(options.train_threads):
        for candidate in {id(c): c for p in pairs for c in (p.theirs, p.ours) if c is not None}.values():
            candidate.accuracy = _tuned(candidate.model, train, test, options, seed)
        for candidate in {id(p.ours): p.ours for p in pairs if p.ours is not None}.values():
            small = sp.apply_plan(model, candidate.plan)
            sp.refit(model, small, candidate.plan, calibration)
            candidate.refitted = _tuned(small, train, test, options, seed)
    return [{"network": name, "seed": seed, "dense_accuracy": dense, **_row(pair)} for pair in pairs]


def _tuned(
    model: nn.Module, train: TensorDataset, test: TensorDataset, options: argparse.Namespace, seed: int
) -> list[float]:
    """Accuracy after the cut and after each epoch of fine-tuning."""
    cut = evaluate(model, test)
    settings = {"epochs": options.finetune_epochs, "lr": options.finetune_lr, "seed": seed}
    history = finetune(model, train, validation=test, **settings, **_RECIPE)
    return [cut, *(epoch["accuracy"] for epoch in history)]


def _row(pair: Pair) -> dict[str, Any]:
    parts = {"theirs": pair.theirs, "ours": pair.ours, "equal_macs": pair.equal_macs}
    plain = {role: None if one is None else _figures(one) for role, one in parts.items()}
    return {"mode": pair.mode, "share": pair.share, **plain}


def _figures(candidate: Candidate) -> dict[str, Any]:
    return {
        "macs": candidate.macs,
        "importance": candidate.importance,
        "latency": candidate.latency,
        "accuracy": candidate.accuracy,
        "refitted": candidate.refitted,
        "widths": {group.name: group.count for group in candidate.plan.groups},
    }


def _plain(options: argparse.Namespace) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("latency_accuracy", __doc__)
    add = parser.add_argument
    add("--network", action="append", choices=list(DIGITS_NETWORKS), help="repeatable; both if left out")
    add("--seeds", type=int, default=5, help="how many, from 0")
    add("--share", action="append", type=float, help="of the latency; repeatable; 0.3 and 0.2 if left out")
    add("--runtime", default="onnxruntime")
    add("--threads", type=int, default=1, help="of one inference")
    add("--train-threads", type=int, default=2)
    add("--batch", type=int, default=16, help="of the inference that is timed")
    add("--image-size", type=int, default=12)
    add("--epochs", type=int, default=8, help="of the dense network's training")
    add("--finetune-epochs", type=int, default=2)
    add("--finetune-lr", type=float, default=0.02)
    add(
        "--calibration", type=int, default=256, help="training inputs that structprune's cuts are refitted on"
    )
    add("--repeats", type=int, default=50, help="rounds at least")
    add("--min-time", type=float, default=0.5, help="seconds of timed inferences for each network at least")
    add("--out", type=Path, metavar="FILE", help="write all figures, raw times and the environment as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
