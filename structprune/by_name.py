"""From what is written to what it stands for: `package.module:factory` or `file.py:factory`.

Importing a module runs its code: only names that the user wrote get here, never what a saved folder says.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from structprune.errors import InputError

__all__ = ["build_data", "build_loss", "called", "import_module", "lookup", "model_factory"]

_HINT = "name a model as package.module:factory or path/to/file.py:factory"
_SOURCE = "structprune_source"  # of a module that was imported from a file: where it lies, and what it says


def model_factory(name: str) -> Callable[[], nn.Module]:
    """A function without arguments that gives the model `name` stands for; its errors are explained."""
    found = lookup(name)
    if isinstance(found, nn.Module):
        return lambda: copy.deepcopy(found)  # each time another one, as a function makes it
    if not callable(found):
        raise InputError(f"{name}: expected a callable that returns an nn.Module, got {type(found).__name__}")

    def factory() -> nn.Module:
        model = called(name, found)
        if not isinstance(model, nn.Module):
            raise InputError(f"{name}() returned {type(model).__name__}, expected an nn.Module")
        return model

    return factory


def build_data(name: str | None, option: str = "--data") -> Iterable[Any] | None:
    """The batches that `name`, given as `option`, stands for: an iterable, or what a function without arguments
    returns; None for None.

    Raises InputError where it is not found, fails, or is nothing to go through.
    """
    if name is None:
        return None
    found = lookup(name, option)
    if callable(found) and not isinstance(found, Iterable):
        found = called(name, found)
    if not isinstance(found, Iterable):
        raise InputError(
            f"{name}: expected an iterable of batches, or a function that returns one, got {found!r}"
        )
    return found


def build_loss(name: str | None) -> Callable[..., Any] | None:
    """The function of (output, target) that `name` stands for; None for None. Raises InputError for anything else."""
    found = None if name is None else lookup(name, "--loss")
    if found is not None and not callable(found):
        raise InputError(f"{name}: expected a function of (output, target), got {type(found).__name__}")
    return found


def called(name: str, function: Callable[[], Any]) -> Any:
    """What the function that `name` stands for returns; what it raises is an InputError, with its place."""
    try:
        return function()
    except Exception as error:
        raise InputError(f"{name}() failed{_where(error)}: {type(error).__name__}: {error}") from error


def lookup(name: str, what: str = "model") -> Any:
    """What `name` stands for; raises InputError, which says `what` it is meant to be, where there is no such thing."""
    module_name, separator, attribute = name.rpartition(":")
    if not separator or not module_name or not attribute:
        raise InputError(f"{what} {name!r} has no factory: {_HINT}")
    found: Any = import_module(module_name)
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise InputError(f"{what} {name!r}: {module_name} has no {attribute!r}{_near(found, part)}")
        found = getattr(found, part)
    return found


def _near(owner: Any, part: str) -> str:
    import difflib

    close = difflib.get_close_matches(part, [n for n in dir(owner) if not n.startswith("_")], n=3)
    return f"; did you mean {', '.join(close)}?" if close else ""


def import_module(module_name: str) -> ModuleType:
    """The module of this name, or of this file.py; raises InputError where there is none, or where its code fails."""
    cwd = os.getcwd()
    if cwd not in sys.path:  # as `python -m` does: a model beside the user is importable
        sys.path.insert(0, cwd)
    try:
        return (
            _import_file(Path(module_name))
            if module_name.endswith(".py")
            else importlib.import_module(module_name)
        )
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise InputError(f"no module named {error.name!r} here ({cwd}) or installed: {_HINT}") from error
        raise InputError(f"importing {module_name} failed{_where(error)}: {error}") from error
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"importing {module_name} failed{_where(error)}: {type(error).__name__}: {error}"
        ) from error


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise InputError(f"no file {str(path)!r}: {_HINT}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} is not a Python file that can be imported")
    source = path.resolve(), path.read_bytes()
    loaded = sys.modules.get(path.stem)
    if loaded is not None and getattr(loaded, _SOURCE, None) == source:
        return loaded  # what it registers, rules and criteria, is registered once
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses and pickling look their module up there
    sys.path.insert(0, str(path.resolve().parent))
    spec.loader.exec_module(module)
    setattr(module, _SOURCE, source)
    return module


def _where(error: BaseException) -> str:
    frames = [
        f
        for f in traceback.extract_tb(error.__traceback__)
        if f.filename != __file__ and "importlib" not in f.filename
    ]
    return f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
