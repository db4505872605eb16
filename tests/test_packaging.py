"""What a fresh machine relies on: pins that cover every dependency, one Python range, scripts that exist."""

from __future__ import annotations

import ast
import importlib
import os
import re
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version
from safetensors.torch import save_file
from torch import nn

tomllib = pytest.importorskip("tomllib", reason="in the standard library from Python 3.11")

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PINS = [
    Requirement(line)
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


def requirements() -> list[Requirement]:
    project = PROJECT["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    return [
        Requirement(line) for line in project["dependencies"] + extras + PROJECT["build-system"]["requires"]
    ]


def pins_of(name: str, python: str) -> list[Version]:
    """The versions that constraints.txt pins `name` to under a Python version."""
    found = [pin for pin in PINS if canonicalize_name(pin.name) == canonicalize_name(name)]
    found = [pin for pin in found if pin.marker is None or pin.marker.evaluate({"python_version": python})]
    return [Version(next(iter(pin.specifier)).version) for pin in found]


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("requirement", requirements(), ids=lambda r: r.name)
def test_each_dependency_has_exactly_one_pin_within_its_range(requirement: Requirement, python: str) -> None:
    pins = pins_of(requirement.name, python)
    assert len(pins) == 1, f"constraints.txt pins {requirement.name} {len(pins)} times on Python {python}"
    assert pins[0] in requirement.specifier


def test_every_pin_is_exact_and_without_a_local_build_tag() -> None:
    for pin in PINS:
        assert re.fullmatch(r"==[0-9][0-9a-z.]*", str(pin.specifier)), f"{pin} is no exact public version"


def test_python_range_is_3_10_to_3_13() -> None:
    allowed = SpecifierSet(PROJECT["project"]["requires-python"])
    assert [v for v in ("3.9", *PYTHONS, "3.14") if Version(v) in allowed] == list(PYTHONS)


def test_packaging_files_name_no_host_and_no_machine_path() -> None:
    for name in ("pyproject.toml", "constraints.txt", "Makefile", ".ci/run"):
        text = (ROOT / name).read_text()
        assert not re.search(r"https?://|file://|--index-url|--find-links|/(work|opt|root|tmp)/", text), name


def test_ci_script_is_executable_and_every_make_target_it_calls_exists() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    called = set(re.findall(r"^make (\w+) ", script.read_text(), flags=re.MULTILINE))
    assert called == {"lint", "test"}
    assert {"demo", "bench", *called} <= targets


def imports_of_structprune(path: Path) -> set[tuple[str, str]]:
    """What a file imports of structprune, as (module, name); the name is empty for a whole module."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {(alias.name, "") for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {(node.module, alias.name) for alias in node.names}
    return {(module, name) for module, name in found if module.split(".")[0] == "structprune"}


def faces() -> list[Path]:
    return [p for folder in ("tools", "benchmarks") for p in sorted((ROOT / folder).rglob("*.py"))]


@pytest.mark.parametrize("path", faces(), ids=lambda p: str(p.relative_to(ROOT)))
def test_tools_and_benchmarks_use_only_the_public_api(path: Path) -> None:
    for module, name in imports_of_structprune(path):
        assert name in ("", *importlib.import_module(module).__all__), f"{module}.{name} is not offered"
        assert module == "structprune" or name, f"import structprune, not {module}"
        assert module.count(".") <= 1, f"{module} is the inside of a package"


@pytest.mark.parametrize("path", sorted((ROOT / "structprune").rglob("*.py")), ids=lambda p: p.name)
def test_source_parses_as_python_3_10(path: Path) -> None:
    ast.parse(path.read_text(), feature_version=(3, 10))


@pytest.mark.usefixtures("table")
def test_the_python_of_the_readme_runs_in_its_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    torch.manual_seed(0)

    def build_model() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))

    (tmp_path / "weights").mkdir()
    save_file(build_model().state_dict(), tmp_path / "weights" / "model.safetensors")
    namespace = {"build_model": build_model, "model": build_model(), "example_inputs": torch.randn(1, 6)}
    for block in blocks:
        exec(block, namespace)
    assert len(blocks) >= 3
    assert (tmp_path / "small.onnx").is_file()
