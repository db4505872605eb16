"""What scoring from data costs in time, beside torch-pruning's same criteria; and what only structprune has.

Usage:
    python -m benchmarks.scoring_time --out runs/scoring_time.json
    python -m benchmarks.scoring_time --network mobilenet --rounds 3

Both tools have the network's dependency graph already, and score all of its channels once from the same images of
scikit-learn's digits, by turns; shown are medians of the CPU time, which other work disturbs less than the clock's.
torch-pruning's Taylor takes the gradient of the mean loss, which is our "snip", where our "taylor" takes each sample's.
Its Hessian is a Fisher diagonal, from the backward pass of each sample through the whole batch's graph, as its
documentation has it (slow: `--samples 64`). Its activation criterion is the nearest to "wanda".
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch_pruning as tp
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

import structprune as sp
from benchmarks.command_line import parser_of, write
from benchmarks.digits_networks import SmallMobileNet, SmallResNet, SmallVGG
from benchmarks.environment import environment
from structprune.data import digits
from structprune.runtimes import torch_threads

__all__ = ["NETWORKS", "PAIRS", "Theirs", "main"]

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet": SmallResNet,
    "vgg": SmallVGG,
    "mobilenet": SmallMobileNet,
}
PAIRS = {
    **{name: name for name in ("l2", "fpgm", "lamp", "taylor")},
    "snip": "taylor",
    "wanda": "activation",
    "fisher": "hessian",
}
"""Our criteria that torch-pruning has something like, by its name."""
ALONE = ("obs", "hessian")
Batches = list[tuple[Tensor, Tensor]]


class Theirs:
    """A network and torch-pruning's graph of it, ready to be scored."""

    def __init__(self, model: nn.Module, batches: Batches) -> None:
        self.model, self.batches = copy.deepcopy(model).eval(), batches
        layers = [one for one in self.model.modules() if isinstance(one, nn.Linear | nn.Conv2d)]
        self.pruner = tp.pruner.BasePruner(
            self.model, batches[0][0][:1], tp.importance.RandomImportance(), ignored_layers=layers[-1:]
        )

    def score(self, criterion: str) -> list[Tensor]:
        """The importance of every group's channels."""
        self.model.zero_grad()
        importance: Any = getattr(self, f"_{criterion}")()
        groups = self.pruner.DG.get_all_groups(
            ignored_layers=self.pruner.ignored_layers, root_module_types=self.pruner.root_module_types
        )
        return [found for group in groups if (found := importance(group)) is not None]

    def _l2(self) -> Any:
        return tp.importance.GroupMagnitudeImportance(p=2)

    def _fpgm(self) -> Any:
        return tp.importance.FPGMImportance()

    def _lamp(self) -> Any:
        return tp.importance.LAMPImportance()

    def _activation(self) -> Any:
        importance = tp.importance.ActivationImportance()
        with importance.compute_importance(self.model), torch.no_grad():
            for inputs, _ in self.batches:
                self.model(inputs)
        return importance

    def _taylor(self) -> Any:
        for inputs, targets in self.batches:
            torch.autograd.backward(F.cross_entropy(self.model(inputs), targets))
        return tp.importance.GroupTaylorImportance()

    def _hessian(self) -> Any:
        importance = tp.importance.GroupHessianImportance()
        importance.zero_grad()
        for inputs, targets in self.batches:
            for loss in F.cross_entropy(self.model(inputs), targets, reduction="none"):
                self.model.zero_grad()
                torch.autograd.backward(loss, retain_graph=True)
                importance.accumulate_grad(self.model)
        return importance


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table and writes all times; the exit status."""
    options = _parser().parse_args(argv)
    rows = []
    with torch_threads(options.threads), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in options.network or NETWORKS:
            rows += _of_network(name, options)
    (Console() if sys.stdout.isatty() else Console(width=120)).print(_table(rows))
    write(options.out, {"environment": environment(options.threads), "rows": rows})
    return 0


def _of_network(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    images, labels = digits(options.image_size, seed=0)[0].tensors
    parts = (torch.split(tensor[: options.samples], options.batch) for tensor in (images, labels))
    batches = list(zip(*parts, strict=True))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = NETWORKS[name]().eval()
    graph, theirs = sp.trace(model, images[:1]), Theirs(model, batches)
    wanted = options.criterion or (*PAIRS, *ALONE)
    times: dict[tuple[str, str], list[float]] = {}
    for round_number in range(options.rounds + 1):  # the first one warms up
        for criterion in wanted:
            more: dict[str, Any] = {"seed": 0} if criterion == "hessian" else {}
            own = partial(sp.score, model, graph, criterion, data=batches, **more)
            _timed(times.setdefault((criterion, "ours"), []), own)
            if criterion in PAIRS:
                other = partial(theirs.score, PAIRS[criterion])
                _timed(times.setdefault((criterion, "theirs"), []), other)
        if not round_number:
            times.clear()
    return [
        {
            "network": name,
            "criterion": criterion,
            **{role: times.get((criterion, role)) for role in ("ours", "theirs")},
        }
        for criterion in wanted
    ]


def _timed(times: list[float], action: Callable[[], object]) -> None:
    start = time.process_time()
    action()
    times.append(time.process_time() - start)


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    made = Table(title="CPU seconds to score all channels (medians)", title_justify="left", show_edge=False)
    for column in ("network", "criterion", "structprune", "torch-pruning", "ratio"):
        made.add_column(column, no_wrap=True)
    for row in rows:
        ours, theirs = (row[role] and statistics.median(row[role]) for role in ("ours", "theirs"))
        ratio = "" if theirs is None else f"{ours / theirs:.2f}"
        made.add_row(
            row["network"], row["criterion"], f"{ours:.3f}", "" if theirs is None else f"{theirs:.3f}", ratio
        )
    return made


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("scoring_time", __doc__)
    add = parser.add_argument
    add("--network", action="append", choices=list(NETWORKS), help="repeatable; all if left out")
    add("--criterion", action="append", choices=(*PAIRS, *ALONE), help="repeatable; all if left out")
    add("--samples", type=int, default=256)
    add("--batch", type=int, default=64)
    add("--image-size", type=int, default=16)
    add("--rounds", type=int, default=5)
    add("--threads", type=int, default=1)
    add("--out", type=Path, metavar="FILE", help="write all times and the environment as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
