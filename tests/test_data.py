"""Loaders on small files written here; a damaged file is an `InputError` that names it."""

from __future__ import annotations

import gzip
import struct
import sys
from pathlib import Path

import pytest
import torch

from structprune.data import ImageFolder, cifar10, digits, mnist
from structprune.errors import InputError

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def idx(values: bytes, *shape: int) -> bytes:
    return bytes((0, 0, 8, len(shape))) + struct.pack(f">{len(shape)}I", *shape) + values


@pytest.fixture
def mnist_folder(tmp_path: Path) -> Path:
    (tmp_path / IMAGES).write_bytes(idx(bytes(range(12)), 2, 3, 2))
    (tmp_path / LABELS).write_bytes(idx(bytes((7, 4)), 2))
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(bytes((255,) * 6), 1, 3, 2)))
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(bytes((9,)), 1)))
    return tmp_path


class TestDigits:
    def test_the_split_is_fixed_stratified_and_disjoint(self) -> None:
        train, test = digits(8)
        again, _ = digits(8)
        other, _ = digits(8, seed=1)
        assert (len(train), len(test)) == (1347, 450)
        assert torch.equal(train.tensors[0], again.tensors[0])
        assert not torch.equal(train.tensors[1], other.tensors[1])
        assert all(43 <= int((test.tensors[1] == digit).sum()) <= 46 for digit in range(10))

    def test_upsampling_keeps_range_and_brightness(self) -> None:
        small, large = digits(8)[0].tensors[0], digits(16)[0].tensors[0]
        assert large.shape == (1347, 1, 16, 16)
        assert large.dtype == torch.float32
        assert (float(large.min()), float(large.max())) == (0.0, 1.0)
        torch.testing.assert_close(large.mean(), small.mean(), rtol=0.01, atol=0)

    def test_bad_arguments(self) -> None:
        with pytest.raises(InputError, match="size=4"):
            digits(4)
        with pytest.raises(InputError, match=r"test_share=1\.5"):
            digits(test_share=1.5)

    def test_without_scikit_learn(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
        with pytest.raises(InputError, match=r"pip install structprune\[train\]"):
            digits()


class TestMnist:
    def test_images_and_labels_gzipped_or_not(self, mnist_folder: Path) -> None:
        train, test = mnist(mnist_folder)
        image, label = train[1]
        assert (image * 255).round().int().tolist() == [[[6, 7], [8, 9], [10, 11]]]
        assert int(label) == 4
        assert torch.equal(test[0][0], torch.ones(1, 3, 2))

    @pytest.mark.parametrize(
        ("name", "content", "says"),
        [
            (IMAGES, idx(bytes(11), 2, 3, 2), "promises 12 bytes of data, it holds 11"),
            (IMAGES, idx(bytes(13), 2, 3, 2), "promises 12 bytes of data, it holds 13"),
            (IMAGES, idx(b"", 2**32 - 1, 2**32 - 1, 2**32 - 1), "promises"),
            (IMAGES, bytes((0, 0, 8, 3, 0)), "no idx file of 3-D bytes"),
            (IMAGES, idx(bytes(12), 12), "no idx file of 3-D bytes"),
            (LABELS, idx(bytes(3), 3), "2 images.* 3 labels"),
            ("t10k-labels-idx1-ubyte.gz", b"not gzip", "cannot be read"),
            ("t10k-labels-idx1-ubyte.gz", gzip.compress(idx(bytes(1), 1), mtime=0)[:-9], "cannot be read"),
        ],
    )
    def test_damaged_files(self, mnist_folder: Path, name: str, content: bytes, says: str) -> None:
        (mnist_folder / name).write_bytes(content)
        with pytest.raises(InputError, match=says):
            mnist(mnist_folder)

    def test_a_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"train-images-idx3-ubyte\.gz is in"):
            mnist(tmp_path)


class TestCifar10:
    def test_planes_and_labels(self, tmp_path: Path) -> None:
        record = bytes((3,)) + bytes((0,)) * 1024 + bytes((51,)) * 1024 + bytes((255,)) * 1024
        folder = tmp_path / "cifar-10-batches-bin"
        folder.mkdir()
        (folder / "data_batch_1.bin").write_bytes(record)
        (folder / "data_batch_2.bin").write_bytes(record * 2)
        (folder / "test_batch.bin").write_bytes(bytes((9,)) + record[1:])
        train, test = cifar10(tmp_path)
        assert (len(train), len(test)) == (3, 1)
        assert train[0][0].shape == (3, 32, 32)
        assert train[0][0].mean((1, 2)).tolist() == pytest.approx([0.0, 0.2, 1.0])
        assert (int(train[0][1]), int(test[0][1])) == (3, 9)

    def test_damaged_files_and_pickles(self, tmp_path: Path) -> None:
        (tmp_path / "data_batch_1").write_bytes(b"\x80\x04.")
        with pytest.raises(InputError, match="pickles could run code"):
            cifar10(tmp_path)
        batch = tmp_path / "data_batch_1.bin"
        for content, says in (
            (b"", "damaged"),
            (bytes(3072), "no multiple of 3073"),
            (b"\x0a" + bytes(3072), "class 10"),
        ):
            batch.write_bytes(content)
            with pytest.raises(InputError, match=says):
                cifar10(tmp_path)
        batch.write_bytes(bytes(3073))
        with pytest.raises(InputError, match=r"test_batch\.bin cannot be read"):
            cifar10(tmp_path)


class TestImageFolder:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        # PPM: 2 wide, 1 high; a red and a blue pixel
        for name in ("dog", "cat"):
            (tmp_path / name).mkdir()
        (tmp_path / "cat" / "a.ppm").write_bytes(b"P6 2 1 255\n" + bytes((255, 0, 0, 0, 0, 255)))
        (tmp_path / "dog" / "b.PPM").write_bytes(b"P6 2 1 255\n" + bytes((0, 0, 255, 255, 0, 0)))
        (tmp_path / "dog" / "notes.txt").write_text("no image")
        return tmp_path

    def test_classes_by_name_and_pixels(self, folder: Path) -> None:
        pytest.importorskip("PIL")
        data = ImageFolder(folder)
        assert data.classes == ("cat", "dog")
        assert len(data) == 2
        assert data[0][0].tolist() == [[[1.0, 0.0]], [[0.0, 0.0]], [[0.0, 1.0]]]
        assert [label for _, label in (data[0], data[1])] == [0, 1]

    def test_size_and_transform(self, folder: Path) -> None:
        pytest.importorskip("PIL")
        assert ImageFolder(folder, size=(4, 6))[0][0].shape == (3, 4, 6)
        assert ImageFolder(folder, size=5, transform=lambda image: image[:1])[1][0].shape == (1, 5, 5)

    def test_an_image_that_cannot_be_read(self, folder: Path) -> None:
        pytest.importorskip("PIL")
        for content in (b"GIF89a", b"P6 2 1 255\n\0", b"\x89PNG\r\n\x1a\n\0\0"):
            (folder / "cat" / "a.ppm").write_bytes(content)
            with pytest.raises(InputError, match=r"a\.ppm is no readable"):
                ImageFolder(folder)[0]

    def test_without_pillow(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "PIL", None)
        with pytest.raises(InputError, match="pip install pillow"):
            ImageFolder(folder)[0]

    def test_no_images(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no class subfolders"):
            ImageFolder(tmp_path)
        with pytest.raises(InputError, match="is no folder"):
            ImageFolder(tmp_path / "nowhere")
