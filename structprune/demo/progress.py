"""What the demo shows while it works: a bar per step on a terminal, a line per finished step elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

__all__ = ["Advance", "Steps"]

Advance = Callable[[int, int], None]


class Steps:
    """The live display; `with steps(label) as advance` is one step, `advance(done, of)` moves its bar."""

    def __init__(self, console: Console) -> None:
        self._console = console
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), TimeElapsedColumn())
        self._progress = Progress(*columns, console=console, disable=not console.is_terminal)

    def __enter__(self) -> Steps:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    @contextmanager
    def __call__(self, label: str) -> Iterator[Advance]:
        started = time.perf_counter()
        task = self._progress.add_task(label, total=None)
        yield lambda done, of: self._progress.update(task, completed=done, total=of)
        self._progress.update(task, completed=1, total=1)
        self._progress.stop_task(task)
        if self._progress.disable:
            self._console.print(f"{label}: {time.perf_counter() - started:.0f} s", highlight=False)
