"""One line about what each step did, from its record."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["told"]

Record = Mapping[str, Any]


def told(record: Record) -> str:
    """What the step did, in a line.

    >>> told({"step": "evaluate", "data": "test", "accuracy": 0.9822})
    'evaluate: accuracy 98.2 % (test)'
    """
    return f"{record['step']}: {_TOLD[record['step']](record)}"


def _train(record: Record) -> str:
    first, last = record["epochs"][0], record["epochs"][-1]
    text = f"{len(record['epochs'])} epochs, loss {first['loss']:.3f} -> {last['loss']:.3f}"
    text += f", accuracy {100 * last['accuracy']:.1f} % (validation)" if "accuracy" in last else ""
    text += f", metric {last['metric']:.4g} (validation)" if "metric" in last else ""
    return text + (f", epoch {record['best_epoch']} the best" if "best_epoch" in record else "")


def _prune(record: Record) -> str:
    params, macs = (f"{before:,} -> {after:,}" for before, after in (record["params"], record["macs"]))
    proof = "not proven" if record["proof"] is None else f"proven to {record['proof']:.1e}"
    left = record["remaining"].get("macs")
    share = "" if left is None else f" ({100 * left:.1f} % of the original's)"
    return f"params {params}, MACs {macs}{share}, {proof}"


def _prune_gradually(record: Record) -> str:
    last = record["cuts"][-1]
    left = ", ".join(
        f"{name} {100 * share:.1f} %" for name, share in last["remaining"].items() if name in last["asked"]
    )
    text = f"{len(record['cuts'])} cuts, {left} of the original's"
    return text if record["reached"] else f"{text}; stopped at the floor, the network before it stays"


def _sparsify(record: Record) -> str:
    return f"{record['nonzeros']:,} of {record['params']:,} parameters are not zero"


def _evaluate(record: Record) -> str:
    what = (
        f"metric {record['metric']:.4g}"
        if "metric" in record
        else f"accuracy {100 * record['accuracy']:.1f} %"
    )
    return f"{what} ({record['data']})"


def _export(record: Record) -> str:
    return f"{record['file']}, {record['bytes']:,} bytes, error {record['error']:.1e}"


def _measure(record: Record) -> str:
    text = f"{record['now']['median_ms']:.3f} ms"
    if "ratio" in record:
        ratio, dense = record["ratio"], record["dense"]["median_ms"]
        interval = f"[{ratio['low']:.2f}, {ratio['high']:.2f}]"
        text += f", {ratio['value']:.2f} {interval} of the dense network's {dense:.3f} ms"
    return text


_TOLD: dict[str, Callable[[Record], str]] = {
    "train": _train,
    "finetune": _train,
    "prune": _prune,
    "prune_gradually": _prune_gradually,
    "sparsify": _sparsify,
    "evaluate": _evaluate,
    "export": _export,
    "measure": _measure,
}
