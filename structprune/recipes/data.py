"""The data that a recipe names: training and test set, a part held back for validation, batches for calibration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import torch
from pydantic import Field, model_validator
from torch.utils.data import DataLoader, Dataset, Subset

from structprune import data as loaders
from structprune.by_name import called, lookup
from structprune.errors import InputError
from structprune.recipes.fields import Derived, Seed, Strict, derived
from structprune.recipes.functions import beside

__all__ = ["Data", "DataSource", "OwnData", "Samples"]

if TYPE_CHECKING:
    _Digits: TypeAlias = Derived
else:
    _Digits = derived(loaders.digits, "_Digits", seed=(Seed, 0))


class Digits(_Digits):
    """scikit-learn's handwritten digits; they come with it."""

    name: Literal["digits"]

    def load(self, base: Path) -> tuple[Dataset[Any], Dataset[Any]]:
        """Training and test set."""
        return self.make()  # type: ignore[no-any-return]


class Folder(Strict):
    """MNIST (or what has its files), or CIFAR-10 in its binary version, in a folder."""

    name: Literal["mnist", "cifar10"]
    folder: str

    def load(self, base: Path) -> tuple[Dataset[Any], Dataset[Any]]:
        """Training and test set."""
        load: Callable[[Path], tuple[Dataset[Any], Dataset[Any]]] = getattr(loaders, self.name)
        return load(base / self.folder)


class Images(Strict):
    """Two folders of images, each with a subfolder per class."""

    name: Literal["images"]
    train: str
    test: str
    size: int | tuple[int, int]

    def load(self, base: Path) -> tuple[Dataset[Any], Dataset[Any]]:
        """Training and test set."""
        sets = [loaders.ImageFolder(base / each, size=self.size) for each in (self.train, self.test)]
        if sets[0].classes != sets[1].classes:
            raise InputError(f"{base / self.train} and {base / self.test} have other classes than each other")
        return sets[0], sets[1]


class OwnData(Strict):
    """A function of one's own, package.module:function or file.py:function, that returns (training set, test set)."""

    name: Literal["own"]
    function: str

    def load(self, base: Path) -> tuple[Dataset[Any], Dataset[Any]]:
        """Training and test set; raises InputError for a function that gives anything else."""
        found = lookup(beside(self.function, base), "data")
        made = called(self.function, found) if callable(found) else found
        if not isinstance(made, (tuple, list)) or len(made) != 2:
            raise InputError(f"{self.function}: expected (training set, test set), got {type(made).__name__}")
        return made[0], made[1]


DataSource = Annotated[Digits | Folder | Images | OwnData, Field(discriminator="name")]


class Samples(Strict):
    """Batches of the training data, drawn with a seed: a number of them, or a share of the data."""

    batches: Annotated[int, Field(ge=1)] | None = None
    share: Annotated[float, Field(gt=0, le=1)] | None = None
    batch_size: Annotated[int, Field(ge=1)] = 64

    @model_validator(mode="after")
    def _one(self) -> Samples:
        if (self.batches is None) == (self.share is None):
            raise ValueError("give one of batches and share")
        return self

    def draw(self, data: Dataset[Any], seed: int) -> list[Any]:
        """The batches, [inputs, targets] each."""
        order = torch.randperm(_size(data), generator=torch.Generator().manual_seed(seed)).tolist()
        if self.share is None:
            chosen = order[: (self.batches or 0) * self.batch_size]
        else:
            chosen = order[: max(round(self.share * len(order)), 1)]
        return list(DataLoader(Subset(data, chosen), self.batch_size))


class Data:
    """The sets of a recipe; `validation` is what is held back of the training set, None where nothing is."""

    def __init__(self, train: Dataset[Any], test: Dataset[Any], held_back: float, seed: int) -> None:
        order = torch.randperm(_size(train), generator=torch.Generator().manual_seed(seed)).tolist()
        cut = round(held_back * len(order))
        if held_back and not 0 < cut < len(order):
            raise InputError(
                f"validation: {held_back} of {len(order)} examples leaves no two sets: say another share"
            )
        self.test = test
        self.train: Dataset[Any] = Subset(train, sorted(order[cut:])) if cut else train
        self.validation: Dataset[Any] | None = Subset(train, sorted(order[:cut])) if cut else None


def _size(data: Dataset[Any]) -> int:
    try:
        return len(data)  # type: ignore[arg-type]
    except TypeError as error:
        raise InputError(f"the training data must know its length: {data!r}") from error
