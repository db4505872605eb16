"""Paths that cannot be written are refused before the work, in one way wherever they are named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner, Result

import structprune as sp
from structprune.cli import app
from structprune.destinations import require_file, require_folder

VIRTUAL = Path("/proc")  # where nothing can be made, and permissions do not say so

needs_proc = pytest.mark.skipif(not VIRTUAL.is_dir(), reason="there is no /proc on this system")


def test_what_can_be_written_passes_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "old.bin").touch()
    for path in (tmp_path / "new.bin", tmp_path / "old.bin", tmp_path / "a" / "b" / "new.bin"):
        assert require_file(path) == path
    for path in (tmp_path, tmp_path / "new", tmp_path / "a" / "b"):
        assert require_folder(str(path)) == path
    assert [path.name for path in tmp_path.iterdir()] == ["old.bin"]


def test_what_stands_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(sp.InputError, match=r"name the file, as in .*other\.txt"):
        require_file(tmp_path, "other.txt")
    for refused in (lambda p: require_file(p / "x"), require_folder, lambda p: require_folder(p / "a" / "b")):
        with pytest.raises(sp.InputError, match=r"file is a file, not a folder"):
            refused(tmp_path / "file")
    for asked in (require_file, require_folder):
        with pytest.raises(sp.InputError, match="too long"):
            asked(tmp_path / ("n" * 400))
    with pytest.raises(sp.InputError, match="no ordinary file"):
        require_file(os.devnull)


@needs_proc
def test_what_the_system_refuses_is_said_though_permissions_allow_it() -> None:
    for asked in (require_file, require_folder):
        for path in (VIRTUAL / "x", VIRTUAL / "x" / "y"):
            with pytest.raises(
                sp.InputError, match=f"{path} cannot be written: nothing can be made in /proc"
            ):
                asked(path)


@needs_proc
def test_an_export_to_such_a_path_is_no_failed_export() -> None:
    with pytest.raises(sp.InputError, match="cannot be written"):
        sp.export_onnx(nn.Linear(2, 2), torch.zeros(1, 2), VIRTUAL / "x.onnx")


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text(
        "from torch import nn\ndef mlp():\n    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))\n"
    )
    return "nets.py:mlp"


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


COMMANDS = (
    ("prune", "--macs", "0.5", "--out"),
    ("prune", "--macs", "0.5", "--onnx"),
    ("sparsify", "--sparsity", "0.5", "--out"),
    ("sparsify", "--sparsity", "0.5", "--onnx"),
    ("export", "--out"),
    ("plan", "--macs", "0.5", "--criterion", "random", "--out"),
)
"""Every command that writes, with the option that says where."""


@needs_proc
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_no_command_works_for_a_path_that_cannot_be_written(model: str, command: tuple[str, ...]) -> None:
    for path in ("/proc/x", "/proc/x/y", "nets.py/x"):
        done = call(command[0], model, "-i", "1x6", *command[1:], path)
        assert done.exit_code == 2, done.output
        assert f"{path} cannot be written" in done.stderr.replace("\n", " ")
    for others in (("demo", "--out", "/proc/x"), ("apply", "nets.py", "nets.py", "/proc/x")):
        assert call(*others).exit_code == 2


@needs_proc
@pytest.mark.parametrize("command", ["sweep", "staircase"])
def test_no_plot_is_measured_for_a_path_that_cannot_be_written(model: str, command: str) -> None:
    pytest.importorskip("matplotlib")
    more = ("--group", "0") if command == "staircase" else ()
    done = call(command, model, "-i", "1x6", *more, "--plot", "/proc/x.svg")
    assert done.exit_code == 2
    assert "/proc/x.svg cannot be written" in done.stderr.replace("\n", " ")


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_folders_on_the_way_are_made(model: str, command: tuple[str, ...]) -> None:
    done = call(command[0], model, "-i", "1x6", *command[1:], "new/folder/there")
    assert done.exit_code == 0, done.output
    assert Path("new/folder/there").exists()


TWICE = (
    ("sensitivity", "--data", "nets.py:mlp", "--out", "s.svg", "--plot", "./s.svg"),
    ("sweep", "--sensitivity", "link.svg", "--plot", "s.svg"),
    ("prune", "--macs", "0.5", "--sensitivity", "s.svg", "--onnx", "s.svg"),
    ("prune", "--macs", "0.5", "--out", "new", "--onnx", "new"),
    ("prune", "--macs", "0.5", "--out", "new", "--onnx", "new/model.safetensors"),
    ("sparsify", "--sparsity", "0.5", "--out", "new/there", "--onnx", "new"),
    ("plan", "--macs", "0.5", "--weights", "s.svg", "--out", "s.svg"),
)


@pytest.mark.parametrize("command", TWICE, ids=" ".join)
def test_one_path_under_two_names_is_refused_before_the_work(model: str, command: tuple[str, ...]) -> None:
    pytest.importorskip("matplotlib")
    Path("s.svg").write_text("kept")
    Path("link.svg").symlink_to("s.svg")
    done = call(command[0], model, "-i", "1x6", *command[1:])
    assert done.exit_code == 2, done.output
    assert "give each a path of its own" in done.stderr.replace("\n", " ")
    assert Path("s.svg").read_text() == "kept"
    assert not Path("new").exists()


def test_a_file_in_the_folder_that_is_saved_is_beside_what_the_folder_holds(model: str) -> None:
    done = call("prune", model, "-i", "1x6", "--macs", "0.5", "--out", "new", "--onnx", "new/model.onnx")
    assert done.exit_code == 0, done.output
    sp.load_plans("new")
    assert Path("new/model.onnx").is_file()
