"""Plots: drawn without a screen, refused with the reason before anything is measured."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

import structprune as sp
from structprune.report import new_plot, require_plots, save_plot

pytest.importorskip("matplotlib")


@pytest.mark.parametrize(("name", "start"), [("a.svg", b"<?xml"), ("a.png", b"\x89PNG"), ("a.PDF", b"%PDF")])
def test_a_figure_becomes_a_file_of_the_kind_that_its_ending_names(
    tmp_path: Path, name: str, start: bytes
) -> None:
    contents = []
    for _ in range(2):
        figure, axes = new_plot(3)
        for one in axes:
            one.plot([1, 2], [3, 4], label="a line")
        assert save_plot(figure, tmp_path / name) == tmp_path / name
        contents.append((tmp_path / name).read_bytes())
    assert contents[0].startswith(start)
    assert contents[0] == contents[1]
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_the_caller_s_settings_stay() -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    new_plot(1)
    assert dict(mpl.rcParams) == before
    assert "matplotlib.pyplot" not in sys.modules or mpl.get_backend() == before["backend"]


def test_what_cannot_be_written_is_said_before(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (
        tmp_path / "a.gif",
        tmp_path / "plain",
        tmp_path / "file" / "a.svg",
        "svg",
        "/proc/none/a.svg",
    ):
        with pytest.raises(sp.InputError, match=r"ends in|cannot be written"):
            require_plots(path)
    (tmp_path / "b.svg").mkdir()
    with pytest.raises(sp.InputError, match="folder"):
        require_plots(tmp_path / "b.svg")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.svg", "file"]


def test_the_folder_of_a_plot_is_made(tmp_path: Path) -> None:
    figure, _ = new_plot(1)
    assert save_plot(figure, tmp_path / "new" / "a.svg").is_file()


def test_without_matplotlib_the_error_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec

    def none(name: str, *args: Any) -> Any:
        return None if name == "matplotlib" else find(name, *args)

    monkeypatch.setattr(importlib.util, "find_spec", none)
    for attempt in (require_plots, new_plot):
        with pytest.raises(sp.InputError, match=r"pip install structprune\[plot\]"):
            attempt()
