"""Plain values and tensors in one safetensors file: written whole or not at all, checked when read, nothing pickled.

The tensors are those of the file; all else is JSON in its metadata, where a tensor is named by the place that it has.
The metadata also hold the sha256 of all of it, so that a file that is cut short or damaged is noticed, wherever. A new
file is written beside the old one and renamed once the disk has it: whatever interrupts, one of the two is there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from structprune.errors import InputError, StorageError

__all__ = ["distinct_memory", "read_archive", "replaced", "sync", "write_archive", "write_text"]

FORMAT = "structprune archive 1"
_MARK = "$"  # a JSON object with one key that begins so stands for what JSON has not


def write_archive(path: str | os.PathLike[str], content: Any) -> None:
    """Writes the content (dicts, lists, tuples, numbers, texts, None, tensors, in any nest) over what the file held.

    Raises InputError, which names the place, for a value of any other type, StorageError where the file cannot be
    written; the old file is then as it was.
    """
    tensors = dict[str, torch.Tensor]()
    text = json.dumps(_packed(content, (), tensors), separators=(",", ":"), allow_nan=False)
    try:
        with replaced(path) as staged:
            dense = distinct_memory(tensors)
            save_file(dense, staged, {"format": FORMAT, "content": text, "sha256": _digest(text, dense)})
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise StorageError(f"{path} cannot be written: {error}") from error


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes the text, as UTF-8 with lines that end in a line feed, over what the file held; raises as `replaced`."""
    with replaced(path) as staged:
        staged.write_text(text, encoding="utf-8", newline="\n")


@contextlib.contextmanager
def replaced(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Where to write a new file, which takes the place of `path` once the disk has it; a missing folder is made.

    Whatever the block raises, the new file is removed and the old one as it was. Raises StorageError where the system
    refuses.
    """
    target = Path(path)
    staged = target.with_name(f"{target.name}.new")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield staged
        sync(staged)
        os.replace(staged, target)
        sync(target.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):  # not there, or below a file
            staged.unlink()
        if isinstance(error, OSError):
            raise StorageError(f"{target} cannot be written: {error}") from error
        raise


def read_archive(path: str | os.PathLike[str]) -> Any:
    """What `write_archive` wrote, with its tensors on the CPU.

    Raises StorageError for a file that is missing, cut short, damaged, or that `write_archive` did not write.
    """
    if Path(path).is_dir():
        raise StorageError(f"{path} is a folder: name a file")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except FileNotFoundError:
        raise StorageError(f"{path} is missing") from None
    except (OSError, SafetensorError) as error:
        raise StorageError(f"{path} cannot be read ({error}): it is damaged, or cut short") from error
    if metadata.get("format") != FORMAT or "content" not in metadata:
        raise StorageError(f"{path} is no checkpoint of this version: expected {FORMAT!r} in its metadata")
    if _digest(metadata["content"], tensors) != metadata.get("sha256"):
        raise StorageError(f"{path} is damaged: its content is not what its checksum says")
    return _unpacked(json.loads(metadata["content"]), tensors)


def distinct_memory(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors as safetensors takes them: contiguous, and no two in the same memory."""
    seen: set[int] = set()
    dense = {}
    for name, tensor in tensors.items():
        data = tensor.detach().contiguous()
        if data.untyped_storage().data_ptr() in seen:
            data = data.clone()
        seen.add(data.untyped_storage().data_ptr())
        dense[name] = data
    return dense


def sync(*paths: Path) -> None:
    """Waits until the disk has the files; a folder cannot be opened for that everywhere."""
    for path in paths:
        if path.is_dir() and os.name == "nt":
            continue
        handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _packed(value: Any, place: tuple[str, ...], tensors: dict[str, torch.Tensor]) -> Any:
    """The value as JSON has it; its tensors go into `tensors` under their place."""
    if isinstance(value, torch.Tensor):
        name = ".".join(place) or "tensor"
        while name in tensors:
            name += "'"
        tensors[name] = value
        return {_MARK + "tensor": name}
    if isinstance(value, float) and not math.isfinite(value):
        return {_MARK + "float": repr(float(value))}
    if value is None or isinstance(value, bool):
        return value
    for plain in (int, float, str):
        if isinstance(value, plain):
            return plain(value)  # a version's text, a named number
    if isinstance(value, (list, tuple)):
        items = [_packed(item, (*place, str(number)), tensors) for number, item in enumerate(value)]
        return {_MARK + "tuple": items} if isinstance(value, tuple) else items
    if isinstance(value, Mapping):
        return _packed_mapping(value, place, tensors)
    raise InputError(
        f"{'.'.join(place) or 'the content'} is a {type(value).__name__}: a checkpoint holds dicts, lists, tuples, "
        "numbers, texts, None and tensors, since nothing is pickled"
    )


def _packed_mapping(
    value: Mapping[Any, Any], place: tuple[str, ...], tensors: dict[str, torch.Tensor]
) -> Any:
    for key in value:
        if type(key) not in (str, int):
            where = ".".join(place) or "the content"
            raise InputError(
                f"{where} has the key {key!r}: a checkpoint's dicts have texts or integers as keys"
            )
    items = [(key, _packed(item, (*place, str(key)), tensors)) for key, item in value.items()]
    if all(isinstance(key, str) and not key.startswith(_MARK) for key, _ in items):
        return dict(items)
    return {_MARK + "items": [list(item) for item in items]}


def _unpacked(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpacked(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    kind: str
    inside: Any
    kind, inside = next(iter(value.items()), ("", ()))
    if kind == _MARK + "tensor":
        return tensors[inside]
    if kind == _MARK + "float":
        return float(inside)
    if kind == _MARK + "tuple":
        return tuple(_unpacked(item, tensors) for item in inside)
    if kind == _MARK + "items":
        return {key: _unpacked(item, tensors) for key, item in inside}
    return {key: _unpacked(item, tensors) for key, item in value.items()}


def _digest(text: str, tensors: Mapping[str, torch.Tensor]) -> str:
    """The sha256 (hex) of the text, and of every tensor's name, dtype, shape and bytes."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        data = tensors[name]
        digest.update(json.dumps([name, str(data.dtype), list(data.shape)]).encode())
        digest.update(data.cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
