"""The folder of a run: the recipe, the state after what was done last, and what was made.

State files are numbered and whole (see `structprune.archive`). The last two are kept, so that one that the disk has
damaged does not end the run: it goes on from the one before.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from structprune.archive import read_archive, write_archive, write_text
from structprune.errors import InputError, StorageError
from structprune.recipes.lines import MetricLines
from structprune.recipes.recipe import Recipe

__all__ = ["RunFolder"]

RECIPE, RESULTS, DENSE, LOCK = "recipe.json", "results.json", "dense.safetensors", ".lock"
LINES = "metrics.jsonl"
_KEPT = 2


class RunFolder:
    """A folder in which one recipe is run; open for one process at a time."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.notes: list[str] = []
        """What was found damaged, and what was done about it."""
        self.lines = MetricLines(self.path / LINES)
        self._number = 0

    @contextmanager
    def opened(self, recipe: Recipe) -> Iterator[None]:
        """Inside, the folder is this process's, and this recipe's.

        A recipe that differs from the folder's only in steps that have not begun takes its place. Raises InputError
        where another process has the folder, where what has run was of another recipe, which is told field by field, or
        where it holds files that are of no run.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / LOCK)
            lock.acquire(timeout=0)
        except Timeout:
            raise InputError(f"{self.path} is in use: another process runs a recipe there") from None
        except OSError as error:
            raise InputError(f"{self.path} cannot be written: {error}") from error
        try:
            self._claim(recipe)
            yield
        finally:
            lock.release()

    def newest(self) -> dict[str, Any] | None:
        """The newest state that is whole; None where the run has none yet.

        Raises StorageError where all there are are damaged.
        """
        found = self._states()
        for number in sorted(found, reverse=True):
            try:
                content = read_archive(found[number])
            except StorageError as error:
                self.notes.append(f"{error}; going on from the state before it")
                continue
            self._number = number
            return dict(content)
        if found:
            raise StorageError(
                f"{self.path}: no state of the run is whole ({'; '.join(self.notes)}); remove the folder to begin anew"
            )
        return None

    def keep(self, content: Mapping[str, Any]) -> None:
        """Writes the next state, then removes those that are no longer needed."""
        self._number += 1
        write_archive(self._state(self._number), content)
        for number, path in self._states().items():
            if number <= self._number - _KEPT or number > self._number:
                path.unlink()

    def keep_dense(self, state: Mapping[str, Any]) -> None:
        """Writes the weights before the first cut."""
        write_archive(self.path / DENSE, state)

    def dense(self) -> dict[str, Any]:
        """The weights before the first cut."""
        return dict(read_archive(self.path / DENSE))

    def write_results(self, results: Mapping[str, Any]) -> None:
        """Writes what is known so far, for people and programs to read."""
        write_text(self.path / RESULTS, json.dumps(results, indent=2, ensure_ascii=False) + "\n")

    def _claim(self, recipe: Recipe) -> None:
        own = self.path / RECIPE
        if own.is_file():
            before = Recipe.load(own)
            was, given = before.model_dump(mode="json"), recipe.model_dump(mode="json")
            if was == given:
                return
            begun = self.begun(self.newest())
            self.notes.clear()  # whoever takes up the run reads it again
            changed = _differences(_first(was, begun), _first(given, begun)) if begun else []
            if changed:
                raise InputError(
                    f"{self.path} holds a run of another recipe: {'; '.join(changed[:5])}. What follows the {begun} "
                    "steps that have begun may be changed. Name another folder for the new recipe, or remove this one"
                )
            write_text(own, recipe.to_json())
            return
        others = [p.name for p in self.path.iterdir() if p.name != LOCK and not p.name.endswith(".new")]
        if others:
            raise InputError(f"{self.path} holds {others[0]} and no run of a recipe: name a new folder")
        write_text(own, recipe.to_json())

    def begun(self, state: Mapping[str, Any] | None) -> int:
        """The number of steps that are done in a state, and of the one that left something on its way."""
        done, under_way = (0, False) if state is None else (int(state["step"]), state["run"] is not None)
        return done + (under_way or self.gradual(done).exists() or self.gradual_epoch(done).exists())

    def gradual(self, step: int) -> Path:
        """Where a gradual step, by its index, keeps how far it is."""
        return self.path / f"gradual-{step + 1}.safetensors"

    def gradual_epoch(self, step: int) -> Path:
        """Where a gradual step, by its index, keeps the training after its last cut while that goes on."""
        return self.path / f"gradual-{step + 1}-epoch.safetensors"

    def end_gradual(self, step: int) -> None:
        """Removes what a gradual step has kept on its way: its end is in a state."""
        gradual = self.gradual(step)
        for path in (gradual, gradual.with_name(f"{gradual.name}.lock"), self.gradual_epoch(step)):
            path.unlink(missing_ok=True)

    def sensitivity(self, step: int) -> Path:
        """Where the sensitivity that a step, by its index, has measured is kept."""
        return self.path / f"sensitivity-{step + 1}.json"

    def _state(self, number: int) -> Path:
        return self.path / f"state-{number:06d}.safetensors"

    def _states(self) -> dict[int, Path]:
        return {int(p.stem.partition("-")[2]): p for p in self.path.glob("state-[0-9]*.safetensors")}


def _first(recipe: dict[str, Any], steps: int) -> dict[str, Any]:
    """What the first steps follow from."""
    return {**recipe, "steps": recipe["steps"][:steps]}


def _differences(before: Any, now: Any, place: str = "") -> list[str]:
    """Where two recipes differ: the place, what was, and what is."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [*before, *(key for key in now if key not in before)]
        return [
            each
            for key in keys
            for each in _differences(before.get(key), now.get(key), f"{place}.{key}".lstrip("."))
        ]
    if isinstance(before, list) and isinstance(now, list):
        if len(before) != len(now):
            return [f"{place} has {len(now)} entries, the folder's {len(before)}"]
        pairs = zip(before, now, strict=True)
        return [
            each for n, (old, new) in enumerate(pairs) for each in _differences(old, new, f"{place}[{n}]")
        ]
    return [] if before == now else [f"{place} is {now!r}, the folder's {before!r}"]
