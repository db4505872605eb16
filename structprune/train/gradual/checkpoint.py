"""The file of a gradual run: of one run at a time, found writable before the first training."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from structprune.archive import read_archive
from structprune.errors import InputError, StorageError
from structprune.train.surroundings import default_accelerator

__all__ = ["agreed", "first", "held", "read_state", "several"]

_OF = "of"  # what every gradual state has, and no other file that is written here


@contextmanager
def held(path: str | os.PathLike[str]) -> Iterator[None]:
    """Inside, the file is this run's; of several processes of one run the first holds it.

    The lock, a file beside it, ends with the process, however that ends. Raises InputError in all processes for what
    names no file, StorageError where another run has it, and where it cannot be written.
    """
    if not several() and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        default_accelerator()  # torchrun's processes meet here, and not as late as in the first training
    with ExitStack() as lock:
        (refused,) = agreed((_refused(path, lock) if first() else None,))
        if refused is not None:
            raise refused
        yield


def read_state(path: str | os.PathLike[str]) -> Mapping[str, Any] | None:
    """The state of a gradual run; None where there is no file. Raises StorageError for a file of anything else."""
    if not Path(path).exists():
        return None
    content = read_archive(path)
    if not isinstance(content, Mapping) or _OF not in content:
        raise StorageError(
            f"{path} is of another kind: it has no gradual run, but what save_checkpoint or another call wrote; name "
            "another checkpoint="
        )
    return content


def several() -> bool:
    """Whether this is one of several processes that train together."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def first() -> bool:
    """Whether this is the only process of its run, or the first of several."""
    return not several() or torch.distributed.get_rank() == 0


def agreed(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """What the first of several processes found: rounding must not let them part ways."""
    found = list(values)
    if several():
        torch.distributed.broadcast_object_list(found, 0)
    return tuple(found)


def _refused(path: str | os.PathLike[str], lock: ExitStack) -> Exception | None:
    """Why the file cannot be this run's, else None, and `lock` holds it."""
    target = Path(path)
    if not os.fspath(path):
        return InputError("checkpoint='' names no file: leave it out, or name one")
    if target.is_dir():
        return StorageError(f"{path} is a folder: name a file in it as checkpoint=")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock.enter_context(FileLock(target.with_name(f"{target.name}.lock"), timeout=0))
    except Timeout:
        return StorageError(f"{path} is in use: another process goes on with a gradual run there")
    except OSError as error:
        return StorageError(f"{path} cannot be written: {error}")
    return None
