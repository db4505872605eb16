"""A network's weights in safetensors files, one file or shards with an index, one tensor at a time.

Opening reads headers only. A tensor's values are mapped into memory, not copied: what is not looked at is not
read, and the pages go when the tensor goes. So a network much larger than memory can be scored and cut.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from structprune.errors import StorageError
from structprune.tensors import aliases

__all__ = ["INDEX_SUFFIX", "WEIGHTS", "Checkpoint", "Entry", "open_checkpoint", "write_safetensors"]

WEIGHTS, INDEX_SUFFIX = "model.safetensors", ".safetensors.index.json"
_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies, and what the file's header says of it."""

    file: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """The bytes of the values; raises StorageError for types that have no whole bytes per value."""
        if self.dtype not in _BYTES:
            raise StorageError(
                f"{self.file} holds {self.dtype}: only types of whole bytes can be cut or copied"
            )
        return math.prod(self.shape) * _BYTES[self.dtype]


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of one network on disk: `entries` by name, `metadata` by file; `index` names the index."""

    folder: Path
    entries: Mapping[str, Entry]
    metadata: Mapping[str, Mapping[str, str]]
    index: str | None = None
    index_metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The file to name where something is wrong: the index, or the only file."""
        return self.index or next(iter(self.metadata))

    def tensor(self, name: str) -> torch.Tensor:
        """The values of one tensor, mapped from its file."""
        return next(self.tensors([name]))[1]

    def tensors(self, names: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """Name and values of each tensor, file by file; each file is open for as long as it is read."""
        wanted: dict[str, list[str]] = {}
        for name in names:
            wanted.setdefault(self.entries[name].file, []).append(name)
        for file, inside in wanted.items():
            with _opened(self.folder / file) as opened:
                for name in inside:
                    yield name, opened.get_tensor(name)

    def names(self, model: nn.Module) -> dict[str, str]:
        """A tensor's name in the files -> its first name in the model, for those that the model has.

        A tied tensor lies in the files under any of its names, or under several.
        """
        known = aliases(model)
        return {name: known[name] for name in self.entries if name in known}

    def shared(self, key: str) -> str | None:
        """What the metadata of all files say under a key; None where they do not agree."""
        found = {each.get(key) for each in self.metadata.values()}
        return found.pop() if len(found) == 1 else None


def open_checkpoint(source: str | os.PathLike[str]) -> Checkpoint:
    """The tensors that a folder, a safetensors file, or the index of several names.

    In a folder that is `model.safetensors`, else its only index, else its only safetensors file. Raises
    StorageError where there is none or more than one, a file is missing or damaged, or the index and its shards
    do not name the same tensors.
    """
    path = Path(source)
    path = _found(path) if path.is_dir() else path
    if not path.name.endswith(INDEX_SUFFIX):
        entries, metadata = _header(path)
        return Checkpoint(path.parent, entries, {path.name: metadata})
    places, index_metadata = _index(path)
    found: dict[str, Entry] = {}
    about = {}
    for file in sorted(set(places.values())):
        entries, about[file] = _header(path.parent / file)
        for name, entry in entries.items():
            if places.get(name) != file:
                raise StorageError(f"{path} does not say that {file} holds {name!r}; take both from one save")
            found[name] = entry
    if lost := sorted(places.keys() - found.keys()):
        raise StorageError(f"{path} says that {places[lost[0]]} holds {lost[0]!r}; it does not")
    return Checkpoint(path.parent, {name: found[name] for name in places}, about, path.name, index_metadata)


def write_safetensors(
    path: Path,
    entries: Mapping[str, Entry],
    values: Callable[[str], torch.Tensor],
    metadata: Mapping[str, str],
) -> None:
    """Writes a safetensors file of these tensors; `values(name)` gives each as its turn comes.

    The package's own writer takes all tensors of a file at once. The format: the header's length, the header
    as JSON, then the values, those of the widest types first, so that all are aligned.
    """
    order = sorted(entries, key=lambda name: (-_BYTES[entries[name].dtype], name))
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name in order:
        begin, end = end, end + entries[name].nbytes
        header[name] = {
            "dtype": entries[name].dtype,
            "shape": entries[name].shape,
            "data_offsets": (begin, end),
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            out.write(values(name).contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _found(folder: Path) -> Path:
    if (folder / WEIGHTS).is_file():
        return folder / WEIGHTS
    for pattern in (f"*{INDEX_SUFFIX}", "*.safetensors"):
        paths = sorted(path for path in folder.glob(pattern) if path.is_file())
        if len(paths) > 1:
            names = ", ".join(path.name for path in paths[:4])
            raise StorageError(f"{folder} holds {names}: name the file that is meant, not the folder")
        if paths:
            return paths[0]
    raise StorageError(f"{folder / WEIGHTS} is missing, and there is no other safetensors file or index")


def _index(path: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """Tensor name -> file, as the index says (all files lie beside it), and what else it says."""
    try:
        content = json.loads(path.read_bytes())
        places, metadata = dict(content["weight_map"].items()), dict(content.get("metadata") or {})
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise StorageError(f"{path} cannot be read as the index of safetensors files: {error!r}") from error
    for name, file in places.items():
        plain = isinstance(file, str) and file == Path(file).name and file.endswith(".safetensors")
        if not plain or "\\" in file:
            raise StorageError(
                f"{path}: {name!r} lies in {str(file)[:80]!r}, expected a file beside the index"
            )
    if not places:
        raise StorageError(f"{path} names no tensors")
    return places, metadata


def _header(path: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    with _opened(path) as file:
        entries = {}
        for name in file.keys():  # noqa: SIM118 - no mapping
            part = file.get_slice(name)
            entries[name] = Entry(path.name, part.get_dtype(), tuple(part.get_shape()))
        return entries, dict(file.metadata() or {})


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The safetensors file, opened; raises StorageError if it is missing, truncated or damaged."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except FileNotFoundError:
        raise StorageError(f"{path} is missing") from None
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"{path} cannot be read ({error}); it is damaged, or no safetensors file"
        ) from error
