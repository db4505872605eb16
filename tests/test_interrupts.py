"""Ctrl-C comes out as KeyboardInterrupt, whatever is under way and whatever it makes of it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import structprune as sp
from structprune.cli import app
from structprune.interrupts import interrupts_kept

X = torch.zeros(1, 4)


@pytest.fixture(autouse=True)
def heard() -> Iterator[None]:
    """Python's own handler: a process that a shell starts in the background begins with Ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def renamed() -> None:
    """An interrupt that comes back as another error, as operators do whose error is read as "not implemented"."""
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        raise TypeError("unsupported operand") from None


def lost() -> None:
    """An interrupt that nobody hears of, as in a finaliser."""
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        return


class Stopped(nn.Module):
    """Interrupted in its forward, from the run of this number on."""

    def __init__(self, stop: Callable[[], None], first: int = 1) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        self.stop, self.first, self.runs = stop, first, [0]

    def forward(self, x: Tensor) -> Tensor:
        self.runs[0] += 1
        if self.runs[0] >= self.first:
            self.stop()
        return self.layers(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("stop", [renamed, lost])
@pytest.mark.parametrize(
    "work",
    [
        lambda model, folder: sp.export_onnx(model, X, folder / "x.onnx"),
        lambda model, folder: sp.measure_latency(model, X, repeats=1, min_time=0),
        lambda model, folder: sp.trace(model, X),
        lambda model, folder: sp.prune(model, X, sp.Budget(macs=0.5)),
        lambda model, folder: sp.rewrite(model, X),
    ],
    ids=["export", "convert", "trace", "prune", "rewrite"],
)
def test_an_interrupt_that_a_library_loses_is_one_all_the_same(
    work: Callable[[nn.Module, Path], Any], stop: Callable[[], None], tmp_path: Path
) -> None:
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        work(Stopped(stop), tmp_path)
    assert signal.getsignal(signal.SIGINT) is handler
    assert not list(tmp_path.iterdir())


def test_the_export_does_not_fall_back_to_a_fixed_batch_after_one(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        sp.export_onnx(Stopped(renamed, first=2), X, tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())


def test_errors_without_an_interrupt_stay_what_they_are() -> None:
    with pytest.raises(TypeError, match="no interrupt"), interrupts_kept():
        raise TypeError("no interrupt")


def test_a_handler_that_raises_nothing_interrupts_nothing() -> None:
    heard: list[int] = []

    def later(number: int, frame: FrameType | None) -> None:
        heard.append(number)

    before = signal.signal(signal.SIGINT, later)
    try:
        with interrupts_kept():
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is later
    finally:
        signal.signal(signal.SIGINT, before)
    assert heard == [signal.SIGINT]


def test_other_threads_work_as_before() -> None:
    done: list[bool] = []

    def work() -> None:
        with interrupts_kept():
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]


@pytest.mark.parametrize("stop", ["renamed", "lost"])
def test_a_command_that_is_interrupted_is_exit_code_130(
    stop: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("stopped.py").write_text(
        "from tests.test_interrupts import Stopped, lost, renamed\n"
        f"def model():\n    return Stopped({stop}, first=4)\n"
    )
    done = CliRunner().invoke(app, ["export", "stopped.py:model", "-i", "1x4", "-o", "x.onnx"])
    assert done.exit_code == 130, done.output
    assert "interrupted" in done.output
    assert not Path("x.onnx").exists()
