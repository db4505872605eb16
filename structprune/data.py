"""Labelled images for training: scikit-learn's digits, and the file formats people already have on disk.

Every loader gives data sets of `(image, class index)` pairs: images are float32 `[channels, height, width]`
scaled to [0, 1], classes int64. Nothing is downloaded and nothing is unpickled; a damaged file raises
`InputError`.
"""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from structprune.errors import InputError

__all__ = ["ImageFolder", "cifar10", "digits", "mnist"]

PathLike = str | os.PathLike[str]

MNIST_FILES = (
    ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
)
CIFAR10_RECORD = 1 + 3 * 32 * 32  # a class byte, then the red, green and blue planes
IMAGE_SUFFIXES = (".jpeg", ".jpg", ".pgm", ".png", ".ppm")


def digits(size: int = 16, *, test_share: float = 0.25, seed: int = 0) -> tuple[TensorDataset, TensorDataset]:
    """Training and test set of scikit-learn's 1,797 handwritten digits: images `[1, size, size]`, ten
    classes.

    The 8x8 images come with scikit-learn and are upsampled bilinearly. The split is stratified and fixed by
    `seed`. Raises `InputError` for a size or share out of range, or if scikit-learn is missing.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise InputError(
            "the digits need scikit-learn; install it with: pip install structprune[train]"
        ) from error
    if size < 8:
        raise InputError(f"{size=}: must be at least 8, the size of the original images")
    if not 0.01 <= test_share <= 0.9:
        raise InputError(f"{test_share=}: must be between 0.01 and 0.9")
    pixels, labels = load_digits(return_X_y=True)
    small = torch.from_numpy(pixels).float().view(-1, 1, 8, 8) / 16
    images = F.interpolate(small, size=(size, size), mode="bilinear", align_corners=False)
    train, test = train_test_split(
        np.arange(len(labels)), test_size=test_share, stratify=labels, random_state=seed
    )
    classes = torch.from_numpy(labels).long()
    return TensorDataset(images[train], classes[train]), TensorDataset(images[test], classes[test])


def mnist(folder: PathLike) -> tuple[TensorDataset, TensorDataset]:
    """Training and test set from a folder of MNIST's four idx files, gzipped or not: images `[1, 28, 28]`.

    Fashion-MNIST, KMNIST and others in the same files load too. Raises `InputError` where a file is missing
    or damaged.
    """
    return _idx_pair(Path(folder), *MNIST_FILES[0]), _idx_pair(Path(folder), *MNIST_FILES[1])


def cifar10(folder: PathLike) -> tuple[TensorDataset, TensorDataset]:
    """Training and test set from CIFAR-10's binary version (`data_batch_1.bin` ...): images `[3, 32, 32]`.

    The "python version" holds pickles, which can run code when they are read, and is refused. Raises
    `InputError` where a file is missing or damaged.
    """
    path = Path(folder)
    if (path / "cifar-10-batches-bin").is_dir():
        path = path / "cifar-10-batches-bin"
    batches = sorted(path.glob("data_batch_*.bin"))
    if not batches:
        raise InputError(
            f"no data_batch_*.bin in {path}; this reads the binary version of CIFAR-10 "
            "(cifar-10-binary.tar.gz), not the python version, whose pickles could run code"
        )
    train = [_cifar_batch(batch) for batch in batches]
    images, labels = (torch.cat(parts) for parts in zip(*train, strict=True))
    return TensorDataset(images, labels), TensorDataset(*_cifar_batch(path / "test_batch.bin"))


class ImageFolder(Dataset[tuple[Tensor, int]]):
    """Images in one subfolder per class, read when asked for: `[3, height, width]` and the class's index.

    `size` resizes every image (height, width, or one number for both), without it they come as they are and
    can only be batched if they are alike. `transform` is applied to each tensor. Classes are numbered in the
    order of their names (`.classes`). Reading needs pillow. Raises `InputError` for a folder without images;
    an image that cannot be read raises it when it is asked for.
    """

    def __init__(
        self,
        folder: PathLike,
        *,
        size: int | tuple[int, int] | None = None,
        transform: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise InputError(
                f"{self.folder} is no folder; give one that holds a subfolder of images per class"
            )
        self.size, self.transform = (size, size) if isinstance(size, int) else size, transform
        self.classes = tuple(sorted(entry.name for entry in self.folder.iterdir() if entry.is_dir()))
        self.files = tuple(
            (path, index)
            for index, name in enumerate(self.classes)
            for path in sorted((self.folder / name).rglob("*"))
            if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
        )
        if not self.files:
            raise InputError(
                f"{self.folder} has no class subfolders with images ({', '.join(IMAGE_SUFFIXES)})"
            )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.files[index]
        image = _read_image(path, self.size)
        return (image if self.transform is None else self.transform(image)), label


def _read_image(path: Path, size: tuple[int, int] | None) -> Tensor:
    try:
        from PIL import Image
    except ImportError as error:
        raise InputError("reading image files needs pillow; install it with: pip install pillow") from error
    try:
        with Image.open(path, formats=("JPEG", "PNG", "PPM")) as image:
            pixels = image.convert("RGB")
            if size is not None:
                pixels = pixels.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} is no readable JPEG, PNG or PPM image: {error}") from error
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1).contiguous().float() / 255


def _idx_pair(folder: Path, images_name: str, labels_name: str) -> TensorDataset:
    images, labels = _read_idx(folder, images_name, dims=3), _read_idx(folder, labels_name, dims=1)
    if len(images) != len(labels):
        raise InputError(
            f"{folder}: {images_name} has {len(images)} images, {labels_name} {len(labels)} labels"
        )
    return TensorDataset(images.unsqueeze(1).float() / 255, labels.long())


def _read_idx(folder: Path, name: str, dims: int) -> Tensor:
    """The data of an idx file: two zero bytes, type 8 (uint8), number of dimensions, sizes, then bytes."""
    path = next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)
    if path is None:
        raise InputError(f"neither {name} nor {name}.gz is in {folder}")
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            header = file.read(4 + 4 * dims)
            if header[:4] != bytes((0, 0, 8, dims)) or len(header) < 4 + 4 * dims:
                raise InputError(
                    f"{path} is no idx file of {dims}-D bytes; its header is {header[:4].hex(' ')}"
                )
            shape = np.frombuffer(header, ">u4", offset=4).tolist()
            data = _read_up_to(file, prod(shape) + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if len(data) != prod(shape):
        raise InputError(
            f"{path} is damaged: its header promises {prod(shape)} bytes of data, it holds {len(data)}"
        )
    return torch.from_numpy(np.frombuffer(data, np.uint8).reshape(shape).copy())


def _read_up_to(file: Any, limit: int) -> bytes:
    """At most `limit` bytes, in pieces: a header that lies about its size allocates nothing."""
    pieces, left = [], limit
    while left > 0 and (piece := file.read(min(left, 1 << 24))):
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)


def _cifar_batch(path: Path) -> tuple[Tensor, Tensor]:
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if data.size == 0 or data.size % CIFAR10_RECORD:
        raise InputError(
            f"{path} is damaged: {data.size} bytes are no multiple of {CIFAR10_RECORD}, one record"
        )
    records = torch.from_numpy(data.reshape(-1, CIFAR10_RECORD))
    labels = records[:, 0].long()
    if int(labels.max()) > 9:
        raise InputError(f"{path} is damaged: class {int(labels.max())} of a record is above 9")
    return records[:, 1:].reshape(-1, 3, 32, 32).float() / 255, labels
