"""One cut, several or a gradual one, with and without sparsity training, refit and distillation: an eighth of the MACs.

Usage:
    python -m benchmarks.schedules --network resnet --seed 0 --out runs/schedules.jsonl  # a minute or two
    python -m benchmarks.schedules --table runs/schedules.jsonl

The networks, tasks and seeds are those of `benchmarks.accuracy`. Every way has the same number of epochs after the
dense training, and the same largest learning rate; those in which a group lasso draws channels to zero first are among
them. Channels are ranked by their L2 norm, but for the ways "by chance" and "by wanda". 128 training images are what
wanda reads, and the `calibration=` of the "refitted" ones; "distilled" ones learn from the dense network's logits as
well (`Distillation`, its defaults). The strength of the lasso is the best of 1e-4, 3e-4, 1e-3, ..., 0.1 on seeds 10 and
11, which are not shown (`--strength`). Differences are paired within seeds, against the one cut. Rows are appended;
what is there is not run again.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

import structprune as sp
from benchmarks.accuracy import NETWORKS, trained
from benchmarks.accuracy_cuts import Bench
from benchmarks.command_line import append, appended, parser_of
from benchmarks.latency_accuracy_table import paired
from structprune.runtimes import torch_threads
from structprune.train import (
    Cubic,
    Distillation,
    GroupLasso,
    Iterative,
    OneShot,
    Schedule,
    TrainOptions,
    evaluate,
    finetune,
    prune_gradually,
)

__all__ = ["WAYS", "Way", "accuracy", "main"]

EPOCHS, STEPS, SPARSE = 6, 3, 2
STRENGTHS = {"resnet": 1e-3, "vgg": 1e-3, "vit": 3e-2}


@dataclass(frozen=True)
class Way:
    """How a network comes to its size, in `EPOCHS` epochs."""

    schedule: Schedule
    lasso: bool = False
    refitted: bool = False
    distilled: bool = False
    criterion: str = "l2"


def _ways() -> Iterator[tuple[str, Way]]:
    starts = {
        "one cut": Way(OneShot()),
        "one cut, by chance": Way(OneShot(), criterion="random"),
        "several": Way(Iterative(steps=STEPS)),
        "several, by wanda": Way(Iterative(steps=STEPS), criterion="wanda"),
        "gradual": Way(Cubic(STEPS)),
        "one cut after group lasso": Way(OneShot(), lasso=True),
    }
    for (title, way), refitted, distilled in itertools.product(starts.items(), (False, True), (False, True)):
        said = [title, *["refitted"] * refitted, *["distilled"] * distilled]
        yield ", ".join(said), replace(way, refitted=refitted, distilled=distilled)


WAYS = dict(_ways())
_FIRST = "one cut"


def accuracy(bench: Bench, way: Way, share: float, strength: float) -> float:
    """The accuracy at the end of one way; ``strength`` is the group lasso's."""
    recipe = dict(bench.recipe or {})
    model, left = copy.deepcopy(bench.model), EPOCHS
    if way.lasso:
        hooks = [GroupLasso(bench.graph, strength)]
        finetune(model, bench.train, seed=bench.seed, hooks=hooks, **recipe | {"epochs": SPARSE})
        left -= SPARSE
    steps = len(way.schedule.shares(1.0, share))
    result = prune_gradually(
        model.eval(),
        bench.example,
        sp.Budget(macs=share),
        bench.train,
        TrainOptions(seed=bench.seed, **recipe | {"epochs": left // steps}),
        schedule=way.schedule,
        criterion=way.criterion,
        data=bench.calibration if way.criterion == "wanda" else None,
        calibration=[inputs for inputs, _ in bench.calibration] if way.refitted else None,
        hooks=[Distillation(bench.model)] if way.distilled else (),
    )
    return evaluate(result.model, bench.test)


def main(argv: Sequence[str] | None = None) -> int:
    """Appends the rows and prints the table; the exit status."""
    options = _parser().parse_args(argv)
    rows = appended(options.table or options.out)
    wanted = {*(options.way or WAYS)}
    for name in () if options.table else options.network or ("resnet", "vgg", "vit"):
        for seed in options.seed or range(5):
            place = {"network": name, "seed": seed, "share": options.share}
            there = {row["way"] for row in rows if place.items() <= row.items()}
            if there >= wanted:
                continue
            with torch_threads(options.threads):
                bench = trained(NETWORKS[name], seed)
                for title, way in WAYS.items():
                    if title in wanted - there:
                        strength = options.strength or STRENGTHS[name]
                        row = place | {
                            "way": title,
                            "accuracy": accuracy(bench, way, options.share, strength),
                        }
                        rows.append(row)
                        append(options.out, row)
    (Console() if sys.stdout.isatty() else Console(width=140)).print(_table(rows))
    return 0


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    made = Table(title=f"Accuracy in % after {EPOCHS} epochs", title_justify="left", show_edge=False)
    for column in ("network", "MACs", "way", "accuracy", f"against {_FIRST!r} [95 %]", "seeds"):
        made.add_column(column, no_wrap=True)
    values: dict[tuple[str, float], dict[str, dict[int, float]]] = {}
    for row in rows:
        ways = values.setdefault((row["network"], row["share"]), {})
        ways.setdefault(row["way"], {})[row["seed"]] = row["accuracy"]
    for (network, share), ways in values.items():
        for title, own in ways.items():
            mean = f"{100 * statistics.fmean(own.values()):.1f}"
            gap = "" if title == _FIRST else escape(_gap(own, ways.get(_FIRST, {})))
            made.add_row(network, f"{share:.3g}", title, mean, gap, str(len(own)))
    return made


def _gap(own: Mapping[int, float], first: Mapping[int, float]) -> str:
    """By how many points of per cent the one is ahead of the other, over the seeds that both have."""
    seeds = sorted(own.keys() & first.keys())
    if not seeds:
        return ""
    found = paired([own[seed] for seed in seeds], [first[seed] for seed in seeds])
    low, high = found["interval"] or (float("nan"),) * 2
    return f"{100 * found['difference']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}] {found['verdict']}"


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("schedules", __doc__)
    add = parser.add_argument
    add("--network", action="append", choices=("resnet", "vgg", "vit"), help="repeatable; all if left out")
    add("--seed", action="append", type=int, help="repeatable; 0 to 4 if left out")
    add("--share", type=float, default=1 / 8, help="of the MACs")
    add("--way", action="append", choices=list(WAYS), metavar="WAY", help="repeatable; all if left out")
    add("--strength", type=float, help="of the group lasso; the network's own if left out")
    add("--threads", type=int, default=1)
    add("--out", type=Path, metavar="FILE", help="append rows as JSON lines")
    add("--table", type=Path, metavar="FILE", help="run nothing: print what the rows of this file say")
    return parser


if __name__ == "__main__":
    sys.exit(main())
