"""Accuracy against MACs on digits: every criterion, after the cut, after each refit step and after fine-tuning.

Usage:
    python -m benchmarks.accuracy --network resnet --seed 0 --out runs/accuracy.jsonl  # minutes; one thread is enough
    python -m benchmarks.accuracy --network vgg --seed 0 --seed 1 --share 0.25 --out runs/accuracy.jsonl
    python -m benchmarks.accuracy --table runs/accuracy.jsonl  # what all runs so far say

For each seed (of the split, the weights and the order of data) a ResNet, a VGG and a ViT kind are trained on half of
scikit-learn's digits and cut to 1/2, 1/4 and 1/8 of their MACs: by `sp.prune` with each of its criteria and otherwise
its defaults, with some of them also to widths chosen by sensitivity, and by torch-pruning with each of its own, uniform
and global. Accuracy on the other half is taken right after the cut, with batch norms estimated anew, with constants
folded, with layers refitted ("all", what `calibration=` does by default), and after one and the same short fine-tuning,
of the cut and of the refitted network. Scores, sensitivity and refit read the same 128 training images. Rows are
appended to a file of JSON lines; what is there is not run again.

"text" is a transformer encoder that tells from which package of Python's standard library a docstring is: 1/4, 1/2 and
3/4 of its FFN neurons and of its heads go, by sensitivity as many MACs, and nothing is fine-tuned.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn
from torch.utils.data import TensorDataset

from benchmarks.accuracy_cuts import MEASURED, OURS, THEIRS, Bench
from benchmarks.accuracy_table import sentences, tables
from benchmarks.command_line import append, appended, parser_of
from benchmarks.digits_networks import SmallResNet, SmallVGG, SmallViT
from benchmarks.docstrings import TextEncoder, docstrings
from structprune.data import digits
from structprune.runtimes import torch_threads
from structprune.train import evaluate, finetune

__all__ = ["NETWORKS", "Setting", "main", "of_network", "trained"]

_COMMON: dict[str, Any] = {"batch_size": 32, "schedule": "onecycle", "label_smoothing": 0.1}
_SGD: dict[str, Any] = {"lr": 0.02}
_ADAMW: dict[str, Any] = {"optimizer": "adamw", "weight_decay": 0.05, "lr": 1e-3}
_SIZE, _TEST_SHARE, _CALIBRATION, _BATCH = 12, 0.5, 128, 32
Data = tuple[TensorDataset, TensorDataset]


def _images(seed: int) -> Data:
    return digits(_SIZE, test_share=_TEST_SHARE, seed=seed)


@dataclass(frozen=True)
class Setting:
    """A network with its task, how it is trained, how cuts of it are fine-tuned (None: they are not), and the cuts."""

    build: Callable[[], nn.Module]
    training: dict[str, Any]
    tuning: dict[str, Any] | None
    data: Callable[[int], Data] = _images
    shares: tuple[float, ...] = (1 / 2, 1 / 4, 1 / 8)
    quantity: str = "macs"
    only: tuple[str, ...] = ()

    def cuts(self) -> Iterator[dict[str, str]]:
        """The tool, criterion and mode of each; torch-pruning, which finds its modes, cuts by MACs alone."""
        for criterion in OURS:
            yield {"tool": "structprune", "criterion": criterion, "mode": "default"}
        for criterion in MEASURED:
            yield {"tool": "structprune", "criterion": criterion, "mode": "sensitivity"}
        for criterion in THEIRS if self.quantity == "macs" else ():
            yield {"tool": "torch-pruning", "criterion": criterion}


NETWORKS = {
    "resnet": Setting(SmallResNet, _SGD | {"epochs": 8, "lr": 0.05}, _SGD | {"epochs": 1}),
    "vgg": Setting(SmallVGG, _SGD | {"epochs": 8, "lr": 0.05}, _SGD | {"epochs": 1}),
    "vit": Setting(SmallViT, _ADAMW | {"epochs": 12, "lr": 2e-3}, _ADAMW | {"epochs": 1}),
    "text": Setting(
        TextEncoder,
        _ADAMW | {"epochs": 10, "lr": 2e-3},
        None,
        data=docstrings,
        shares=(3 / 4, 1 / 2, 1 / 4),
        quantity="channels",
        only=("mlp", "heads"),
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Appends the rows and prints the tables; the exit status."""
    options = _parser().parse_args(argv)
    console = Console() if sys.stdout.isatty() else Console(width=180)  # a log has no width of its own
    rows = appended(options.table or options.out)
    for name in () if options.table else options.network or NETWORKS:
        for seed in options.seed or range(5):
            start = time.perf_counter()
            with torch_threads(options.threads):
                for row in of_network(name, seed, options, rows):
                    rows.append(row)
                    append(options.out, row)
            console.print(f"{name}, seed {seed}: {time.perf_counter() - start:.0f} s")
    console.print(*tables(rows), *sentences(rows), sep="\n\n")
    return 0


def of_network(
    name: str, seed: int, options: argparse.Namespace, known: Sequence[dict[str, Any]] = ()
) -> Iterator[dict[str, Any]]:
    """Yield one row for each point, tool, criterion and mode that is not known yet."""
    there, setting = {_key(row) for row in known}, NETWORKS[name]
    asked = {share: f"{share:.3g} of the {setting.quantity}" for share in options.share or setting.shares}
    wanted: list[dict[str, Any]] = [
        {"network": name, "seed": seed, "share": share, "asked": said} | cut
        for share, said in asked.items()
        for cut in setting.cuts()
        if cut["criterion"] in (options.criterion or OURS)
    ]
    wanted = [one for one in wanted if _key(one) not in there]
    if not wanted:
        return
    bench = trained(setting, seed)
    dense = {"dense": evaluate(bench.model, bench.test)}
    for place in wanted:
        share, criterion = place["share"], place["criterion"]
        ours = place["tool"] == "structprune"
        rows = bench.ours(share, criterion, place["mode"]) if ours else bench.theirs(share, criterion)
        yield from (place | dense | row for row in rows)


def trained(setting: Setting, seed: int) -> Bench:
    """The network trained from nothing, with what cuts of it need."""
    train, test = setting.data(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = setting.build()
    finetune(model, train, seed=seed, **_COMMON | setting.training)
    parts = (torch.split(tensor[:_CALIBRATION], _BATCH) for tensor in train.tensors)
    recipe = None if setting.tuning is None else _COMMON | setting.tuning
    batches = list(zip(*parts, strict=True))
    return Bench(model.eval(), train, test, batches, recipe, seed, setting.quantity, setting.only)


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    """What is run at once: of torch-pruning, a criterion in all its modes."""
    mode = row["mode"] if row["tool"] == "structprune" else ""
    return (*(row[name] for name in ("network", "seed", "share", "tool", "criterion")), mode)


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("accuracy", __doc__)
    add = parser.add_argument
    add("--network", action="append", choices=list(NETWORKS), help="repeatable; all if left out")
    add("--seed", action="append", type=int, help="repeatable; 0 to 4 if left out")
    add(
        "--share",
        action="append",
        type=float,
        help="what a cut leaves; repeatable; the network's own if left out",
    )
    add("--criterion", action="append", choices=OURS, help="repeatable; all if left out")
    add("--threads", type=int, default=1)
    add("--out", type=Path, metavar="FILE", help="append rows as JSON lines")
    add("--table", type=Path, metavar="FILE", help="run nothing: print what the rows of this file say")
    return parser


if __name__ == "__main__":
    sys.exit(main())
