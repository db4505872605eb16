"""What a run tells while it goes on: a file of metrics, one line per epoch, and a progress bar."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from structprune.errors import InputError
from structprune.train.hooks import Hook, Metrics, Run

__all__ = ["JsonLines", "ProgressBar"]


class JsonLines(Hook):
    """Appends each epoch's metrics to the file at `path`, a JSON object per line, on disk before the next epoch begins.

    What is not finite becomes null. The first of several processes writes. A run that is continued from its state takes
    back the lines that were written after that state, so every epoch is there once. Hooks before this one may add to
    the metrics. Lines of a gradual run name the `gradual_step`, from 1. A missing folder is made. Raises `InputError`,
    before the first epoch, where the file cannot be written. After a line that was cut short a new one is begun.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._bytes: int | None = None  # what stays of the file where a run is continued

    def on_start(self, run: Run) -> None:
        if run.main:
            self._append("")

    def after_epoch(self, run: Run, metrics: Metrics) -> None:
        if run.main:
            told = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
            if run.gradual_step is not None:
                told = {"gradual_step": run.gradual_step, **told}
            self._append(json.dumps(told, allow_nan=False) + "\n")

    def state_dict(self) -> dict[str, Any]:
        return {"bytes": self.path.stat().st_size if self.path.exists() else 0}

    def on_end(self, run: Run) -> None:
        if run.main:
            self._append("")  # a run that was over when it was continued has written nothing

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._bytes = state["bytes"]  # the process that writes takes the rest back

    def _append(self, text: str) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a+b") as file:
                end = file.tell()
                if self._bytes is not None and end > self._bytes:
                    end = file.truncate(self._bytes)
                self._bytes = None
                file.seek(max(0, end - 1))
                broken = file.read(1) not in (b"", b"\n")  # what wrote it was killed in the middle of a line
                file.write((f"\n{text}" if broken and text else text).encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise InputError(f"metrics cannot be written to {self.path}: {error}") from error


class ProgressBar(Hook):
    """Shows the steps that are done and the last epoch's metrics; a line per epoch where there is no terminal."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self._bar: tuple[Progress, TaskID] | None = None

    def on_start(self, run: Run) -> None:
        if not (run.main and self.console.is_terminal):
            return
        columns = (BarColumn(bar_width=30), MofNCompleteColumn(), TimeRemainingColumn())
        progress = Progress(*columns, TextColumn("{task.description}"), console=self.console)
        self._bar = progress, progress.add_task("", total=run.steps or None, completed=run.step)
        progress.start()
        run.at_exit(self._end)

    def after_step(self, run: Run) -> None:
        if self._bar is not None:
            self._bar[0].update(self._bar[1], completed=run.step)

    def after_epoch(self, run: Run, metrics: Metrics) -> None:
        told = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        if self._bar is not None:
            self._bar[0].update(self._bar[1], description=told)
        elif run.main:
            self.console.print(told, highlight=False)

    def _end(self) -> None:
        if self._bar is not None:
            self._bar[0].stop()
        self._bar = None
