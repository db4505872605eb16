"""Where a result is to be written: whether that can be done is tried before the work, not found out after it.

Tried, not asked: what permissions say is not what happens on a read-only or a virtual file system.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from structprune.errors import InputError

__all__ = ["require_apart", "require_file", "require_folder"]

Destination = str | os.PathLike[str]


def require_folder(path: Destination) -> Path:
    """The folder as a path, where it can be made and written into; nothing is left there.

    Raises:
        InputError: where a file stands in its place or above it, or the system refuses.
    """
    with _refusals(path):
        _try(path, Path(path).absolute())
    return Path(path)


def require_file(path: Destination, example: str = "model.onnx") -> Path:
    """The file as a path, where it can be written, or be made with the folders that it lies in.

    Raises:
        InputError: where a folder or a device stands in its place (`example` is the name that is proposed for a file
            in it), a file above it, or the system refuses.
    """
    file = Path(path)
    with _refusals(path):
        if file.is_dir():
            raise InputError(f"{path} is a folder: name the file, as in {file / example}")
        if file.exists() and not file.is_file():
            raise InputError(
                f"{path} cannot be written: it is no ordinary file, and would be replaced by one"
            )
        _try(path, file.absolute().parent)
    return file


def require_apart(named: Mapping[str, Destination | None]) -> None:
    """Pass where no two of the paths, each by what it is called, lead to one place, by whatever links.

    Raises:
        InputError: where two do: what is written to the one would be lost under the other.
    """
    seen: dict[str, str] = {}
    for name, path in named.items():
        if path is None:
            continue
        other = seen.setdefault(os.path.normcase(os.path.realpath(path)), name)
        if other != name:
            raise InputError(f"{other} and {name} are both {path}: give each a path of its own")


@contextlib.contextmanager
def _refusals(path: Destination) -> Iterator[None]:
    try:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.lstat(path)  # a name that is too long is no name of a file to come either
        yield
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from None


def _try(path: Destination, folder: Path) -> None:
    """Make and remove something in the folder, or in the nearest that there is above it."""
    there = next(step for step in (folder, *folder.parents) if step.exists())
    if not there.is_dir():
        raise InputError(f"{path} cannot be written: {there} is a file, not a folder")
    try:
        if there == folder:
            tempfile.TemporaryFile(dir=there).close()
        else:
            os.rmdir(tempfile.mkdtemp(dir=there))
    except OSError as error:
        raise InputError(
            f"{path} cannot be written: nothing can be made in {there} ({error.strerror})"
        ) from None
