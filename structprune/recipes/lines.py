"""A run's metrics as JSON lines: one for each epoch of its trainings, in their order, each once, however often the run
was stopped."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from structprune.archive import write_text
from structprune.errors import StorageError
from structprune.train import Hook, Run
from structprune.train.hooks import Metrics

__all__ = ["EpochLines", "MetricLines"]


class MetricLines:
    """The file of them. It is written anew for each line: it is whole at any moment, and what a run that is taken up
    again does once more takes the place of what it did before."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, number: int, name: str, gradual_step: int | None, metrics: Mapping[str, float]) -> None:
        """Writes the metrics of an epoch of step `number`, from 1, and drops what was written of later ones."""
        told = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        within = {} if gradual_step is None else {"gradual_step": gradual_step}
        line = {"step": number, "name": name, **within, **told}
        before = _place(line)
        self._keep(lambda other: _place(other) < before, line)

    def drop_after(self, steps: int) -> None:
        """Drops the lines of all steps but the first `steps`."""
        if self.path.exists():
            self._keep(lambda line: line["step"] <= steps)

    def _keep(self, wanted: Callable[[Mapping[str, Any]], bool], *more: Mapping[str, Any]) -> None:
        try:
            text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
            kept = [line for line in map(json.loads, text.splitlines()) if wanted(line)]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise StorageError(
                f"{self.path} has lines that no run has written ({error}): move it away"
            ) from error
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in [*kept, *more]))


class EpochLines(Hook):
    """Writes each epoch's metrics, with what the hooks before it have added."""

    def __init__(self, lines: MetricLines, number: int, name: str) -> None:
        self.lines, self.number, self.name = lines, number, name

    def after_epoch(self, run: Run, metrics: Metrics) -> None:
        self.lines.add(self.number, self.name, run.gradual_step, metrics)


def _place(line: Mapping[str, Any]) -> tuple[float, ...]:
    return line["step"], line.get("gradual_step", 0), line["epoch"]
