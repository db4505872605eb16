"""How well the forecast of a plan's loss ranks plans, and what widths chosen by it keep: networks trained on digits.

Usage:
    python -m benchmarks.sensitivity --out runs/sensitivity.json
    python -m benchmarks.sensitivity --network vgg --seeds 1 --plans 30  # a look within a minute

A ResNet, a VGG and a ViT kind are trained on scikit-learn's digits. `structprune.sensitivity` measures each on 256
training images (`--loss`, without labels by default). Then random plans are forecast, made, and measured on the test
images, which had no part in the forecast: "varied" ones keep 30 % of every group to all, groups alike or far from
each other; others all cost about the same share of the MACs, so that a forecast has more to do than to count channels.
Plain torch measures: Spearman's rank correlation is with the divergence of the outputs from the dense network's (KL)
and with the cross entropy; that of the MACs alone stands beside it. With "norms" batch norms were estimated anew in
every network, in the forecast and in the truth; "as cut" measures what the cut leaves.

The second table has the test accuracy at equal MACs, without training, of widths chosen by the scores' scopes and by
sensitivity: with batch norms estimated anew, and after a refit (`calibration=`).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import structprune as sp
from benchmarks.command_line import parser_of, write
from benchmarks.digits_networks import SmallVGG, SmallViT
from benchmarks.environment import environment
from structprune.data import digits
from structprune.demo import ResNet20
from structprune.runtimes import torch_threads
from structprune.train import evaluate, finetune

__all__ = ["main", "of_network"]

_ADAMW: dict[str, Any] = {"epochs": 12, "lr": 2e-3, "optimizer": "adamw", "weight_decay": 0.05}
_SGD: dict[str, Any] = {"epochs": 8, "lr": 0.05}
_NETWORKS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "resnet": (lambda: ResNet20(16), _SGD),
    "vgg": (SmallVGG, _SGD),
    "vit": (SmallViT, _ADAMW),
}
_WAYS = {"norms": True, "as cut": False}
_SCOPES: tuple[str | None, ...] = ("layer", "global", "value", None)  # None: by sensitivity
_LEAST = 0.3  # of a group's channels, in random plans

Ints = NDArray[np.int64]
Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Prints both tables and writes the rows with all plans; the exit status."""
    options = _parser().parse_args(argv)
    console = Console() if sys.stdout.isatty() else Console(width=150)
    ranks, choices = list[Row](), list[Row]()
    with torch_threads(options.threads):
        for name in options.network or _NETWORKS:
            for seed in range(options.first_seed, options.first_seed + options.seeds):
                found = of_network(name, seed, options)
                ranks, choices = [*ranks, *found[0]], [*choices, *found[1]]
                print(f"{name}, seed {seed}", file=sys.stderr, flush=True)
    console.print(_rank_table(ranks), _choice_table(choices), sep="\n")
    document = {"environment": environment(options.threads), "ranks": ranks, "choices": choices}
    write(options.out, document)
    return 0


def of_network(name: str, seed: int, options: argparse.Namespace) -> tuple[list[Row], list[Row]]:
    """Of one trained network: a row for each kind of plans and way to measure, and one for each way to choose."""
    train, test = digits(options.image_size, test_share=0.5, seed=seed)
    build, recipe = _NETWORKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build()
    finetune(model, train, seed=seed, batch_size=32, schedule="onecycle", label_smoothing=0.1, **recipe)
    case = _Case(model.eval(), train, test, options)
    ranks, choices = [], []
    for way, norms in _WAYS.items():
        if norms or any(isinstance(one, nn.BatchNorm2d) for one in model.modules()):
            start = time.perf_counter()
            found = case.sensitivity(norms)
            seconds = time.perf_counter() - start
            about = {"network": name, "seed": seed, "way": way, "seconds": seconds, "dense": case.dense}
            ranks += [about | case.ranked(found, kind, seed) for kind in ("varied", *options.equal)]
            if norms:
                choices = [{"network": name, "seed": seed} | row for row in case.chosen(found)]
    return ranks, choices


class _Case:
    """One trained network with its graph, its scores and the images to measure on."""

    def __init__(
        self, model: nn.Module, train: TensorDataset, test: TensorDataset, options: argparse.Namespace
    ) -> None:
        self.model, self.test, self.options = model, test, options
        self.images, self.targets = (one[: options.samples] for one in train.tensors)
        parts = torch.split(self.images, 64), torch.split(self.targets, 64)
        self.batches = list(zip(*parts, strict=True))
        self.graph = sp.trace(model, self.images[:2])
        self.scores = sp.score(model, self.graph, options.criterion, data=self.batches)
        self.dense = evaluate(model, test)
        with torch.no_grad():
            self.wanted = model(test.tensors[0]).log_softmax(1)
        named = enumerate(self.graph.groups)
        self.places = [n for n, group in named if group.frozen is None and group.primary]
        self.groups = [self.graph.groups[n] for n in self.places]
        self.sizes = np.array([group.size for group in self.groups], dtype=np.int64)

    def sensitivity(self, norms: bool) -> sp.Sensitivity:
        return sp.sensitivity(
            self.model, self.graph, self.scores, self.batches, loss=self.options.loss, norms=norms
        )

    def ranked(self, found: sp.Sensitivity, kind: str | float, seed: int) -> Row:
        """Forecast and truth of random plans, and how alike they rank them."""
        drawn = list(self._plans(kind, np.random.default_rng(1000 + seed)))
        start = time.perf_counter()
        forecasts = [found.forecast(plan) for plan in drawn]
        seconds = time.perf_counter() - start
        truths = [self._truth(self._cut(plan, found.norms)) for plan in drawn]
        row: Row = {"plans": kind, "forecast_ms": 1e3 * seconds / len(drawn)}
        row["macs"] = [plan.remaining["macs"] for plan in drawn]
        row["forecast"] = forecasts
        for name, values in zip(("kl", "cross_entropy", "accuracy"), zip(*truths, strict=True), strict=True):
            row[name] = list(values)
        row["rank_kl"] = float(spearmanr(forecasts, row["kl"]).statistic)
        row["rank_cross_entropy"] = float(spearmanr(forecasts, row["cross_entropy"]).statistic)
        row["rank_macs"] = float(-spearmanr(row["macs"], row["kl"]).statistic)
        return row

    def chosen(self, found: sp.Sensitivity) -> Iterator[Row]:
        """The test accuracy of what each way to choose widths keeps under the same budgets."""
        for share in self.options.budget:
            for scope in _SCOPES:
                choice: dict[str, Any] = {"sensitivity": found} if scope is None else {"scope": scope}
                plan = sp.select(self.graph, self.scores, sp.Budget(macs=share), **choice)
                small = self._cut(plan, norms=True)
                refitted = sp.apply_plan(self.model, plan)
                sp.refit(self.model, refitted, plan, [one for one, _ in self.batches])
                yield {
                    "budget": share,
                    "by": scope or "sensitivity",
                    "macs": plan.remaining["macs"],
                    "forecast": found.forecast(plan),
                    "kl": self._truth(small)[0],
                    "accuracy": evaluate(small, self.test),
                    "refitted": evaluate(refitted, self.test),
                }

    def _plans(self, kind: str | float, rng: np.random.Generator) -> Iterator[sp.PruningPlan]:
        for _ in range(self.options.plans):
            spread = rng.choice([0.0, 0.1, 0.25, 0.5]) if kind == "varied" else rng.choice([0.1, 0.25, 0.5])
            apart = spread * rng.uniform(-1, 1, len(self.groups))
            kept = self._kept(rng.uniform(_LEAST, 1.0), apart)
            yield self._plan(kept if isinstance(kind, str) else self._at(kind, apart))

    def _kept(self, centre: float, apart: NDArray[np.float64]) -> Ints:
        return np.maximum(np.round(self.sizes * np.clip(centre + apart, 0.1, 1.0)), 1).astype(np.int64)

    def _at(self, share: float, apart: NDArray[np.float64]) -> Ints:
        """The counts that come nearest to a share of the MACs from below, the groups this far from each other."""
        low, high = -0.5, 1.5
        for _ in range(25):
            middle = (low + high) / 2
            fits = self._macs(self._kept(middle, apart)) <= share
            low, high = (middle, high) if fits else (low, middle)
        return self._kept(low, apart)

    def _macs(self, kept: Ints) -> float:
        counts, whole = self.graph.sizes(), self.graph.sizes()
        counts[self.places] = kept
        return self.graph.price("macs", counts) / self.graph.price("macs", whole)

    def _plan(self, kept: Ints) -> sp.PruningPlan:
        """Each group keeps so many of its best channels (in each row, where rows choose by themselves)."""
        keep = {}
        for group, count in zip(self.groups, kept.tolist(), strict=True):
            order = np.sort(
                np.argsort(-self.scores[group.name], axis=-1, kind="stable")[..., :count], axis=-1
            )
            keep[group.name] = order.tolist()
        return self.graph.plan(keep)

    def _cut(self, plan: sp.PruningPlan, norms: bool) -> nn.Module:
        small = sp.apply_plan(self.model, plan).eval()
        found = [one for one in small.modules() if isinstance(one, nn.BatchNorm2d)] if norms else []
        for one in found:
            one.reset_running_stats()
            one.momentum = None
            one.train()
        with torch.no_grad():
            small(self.images)
        return small.eval()

    @torch.no_grad()
    def _truth(self, small: nn.Module) -> tuple[float, float, float]:
        """On the test images: KL divergence from the dense network, cross entropy, accuracy."""
        images, targets = self.test.tensors
        given: Tensor = small(images).log_softmax(1)
        divergence = F.kl_div(given, self.wanted, reduction="batchmean", log_target=True)
        accuracy = (given.argmax(1) == targets).float().mean()
        return divergence.item(), F.nll_loss(given, targets).item(), accuracy.item()


def _rank_table(rows: Sequence[Row]) -> Table:
    """One row for each network, way to measure and kind of plans: means over the seeds, and the least."""
    table = Table(title="rank correlation of forecast and truth, mean (least)", title_justify="left")
    for column in ("network", "measured", "plans"):
        table.add_column(column)
    for column in ("with KL", "cross entropy", "MACs alone", "accuracy of the plans, %", "dense", "seconds"):
        table.add_column(column, justify="right", no_wrap=True)
    for key, several in _grouped(rows, "network", "way", "plans").items():
        kind = key[2] if isinstance(key[2], str) else f"at {key[2]:.0%} of the MACs"
        accuracies = [100 * value for row in several for value in row["accuracy"]]
        ranks = [
            _spread([row[name] for row in several]) for name in ("rank_kl", "rank_cross_entropy", "rank_macs")
        ]
        between = f"{min(accuracies):.0f} - {max(accuracies):.0f}, median {np.median(accuracies):.0f}"
        ends = (f"{100 * _mean(several, 'dense'):.1f}", f"{_mean(several, 'seconds'):.1f}")
        table.add_row(key[0], key[1], kind, *ranks, between, *ends)
    return table


def _choice_table(rows: Sequence[Row]) -> Table:
    """One row for each network and budget: the accuracy by each way to choose, normed and refitted."""
    table = Table(title="test accuracy in %, norms estimated anew / refitted", title_justify="left")
    table.add_column("network")
    for column in ("MACs", *(scope or "sensitivity" for scope in _SCOPES)):
        table.add_column(column, justify="right", no_wrap=True)
    for (network, budget), several in _grouped(rows, "network", "budget").items():
        by = _grouped(several, "by")
        cells = [
            f"{100 * _mean(of, 'accuracy'):.1f} / {100 * _mean(of, 'refitted'):.1f}"
            for of in (by[(scope or "sensitivity",)] for scope in _SCOPES)
        ]
        table.add_row(network, f"{budget:.0%}", *cells)
    return table


def _grouped(rows: Sequence[Row], *names: str) -> dict[tuple[Any, ...], list[Row]]:
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in names), []).append(row)
    return found


def _mean(rows: Sequence[Row], name: str) -> float:
    return float(np.mean([row[name] for row in rows]))


def _spread(values: Sequence[float]) -> str:
    return f"{np.mean(values):.3f} ({min(values):.3f})"


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("sensitivity", __doc__)
    add = parser.add_argument
    add("--network", action="append", choices=list(_NETWORKS), help="repeatable; all if left out")
    add("--seeds", type=int, default=3, help="how many: of the split, the weights and the plans")
    add("--first-seed", type=int, default=0)
    add("--plans", type=int, default=30, help="of each kind")
    add(
        "--equal",
        type=float,
        nargs="*",
        default=[0.75, 0.5],
        help="shares of the MACs that plans have in common",
    )
    add(
        "--budget",
        type=float,
        nargs="*",
        default=[0.5, 0.25],
        help="shares of the MACs that widths are chosen for",
    )
    add("--loss", default="kl", help="that sensitivity measures: outputs, kl or cross_entropy")
    add("--criterion", default="l2", help="which channels a group keeps")
    add("--samples", type=int, default=256, help="training images that are measured on")
    add("--image-size", type=int, default=12)
    add("--threads", type=int, default=1)
    add("--out", type=Path, metavar="FILE", help="write all plans and figures as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
