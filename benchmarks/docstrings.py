"""A text task that needs no download: docstrings of Python's standard library, classified by the package they are from.

They are read from the sources that come with the interpreter, so that another version of Python gives a few other
texts. A text is its first words; names of the packages are left out of it.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from benchmarks.digits_networks import ViTBlock

__all__ = ["PACKAGES", "TextEncoder", "docstrings", "texts"]

PACKAGES = (
    *("asyncio", "email", "http", "importlib", "logging"),
    *("multiprocessing", "tkinter", "unittest", "urllib", "xml"),
)
LENGTH, WORDS = 24, 800
_PAD, _UNKNOWN = 0, 1


def docstrings(seed: int, test_share: float = 0.4) -> tuple[TensorDataset, TensorDataset]:
    """Training and test set of word numbers `[24]` and packages; the split and the words are those of the seed."""
    from sklearn.model_selection import train_test_split

    found = sorted(texts())
    labels = [label for _, label in found]
    parts = train_test_split(found, test_size=test_share, stratify=labels, random_state=seed)
    counts = Counter(word for words, _ in parts[0] for word in words)
    numbers = {word: n for n, (word, _) in enumerate(counts.most_common(WORDS - 2), start=2)}
    train, test = (
        TensorDataset(
            torch.tensor([_numbered(words, numbers) for words, _ in part]),
            torch.tensor([label for _, label in part]),
        )
        for part in parts
    )
    return train, test


def texts() -> set[tuple[tuple[str, ...], int]]:
    """The distinct texts as words, with the number of the package."""
    library = Path(ast.__file__).parent
    names = re.compile("|".join(PACKAGES))
    found: dict[tuple[str, ...], int] = {}
    for label, package in enumerate(PACKAGES):
        for path in sorted((library / package).rglob("*.py")):
            if "test" not in path.relative_to(library).parts[1:]:
                for text in _documented(path):
                    words = tuple(re.findall("[a-z]+", names.sub(" ", text.lower()))[:LENGTH])
                    if len(words) >= 5:
                        found.setdefault(words, label)
    return set(found.items())


def _documented(path: Path) -> Iterator[str]:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, kinds) and (text := ast.get_docstring(node)):
            yield text


def _numbered(words: tuple[str, ...], numbers: dict[str, int]) -> list[int]:
    found = [numbers.get(word, _UNKNOWN) for word in words]
    return found + [_PAD] * (LENGTH - len(found))


class TextEncoder(nn.Module):
    """A transformer encoder: words and places, two blocks of four heads and 128 neurons, the mean over the text."""

    def __init__(self, width: int = 64, depth: int = 2, heads: int = 4, hidden: int = 128) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, width), nn.Embedding(LENGTH, width)
        self.dropout = nn.Dropout(0.3)
        self.blocks = nn.Sequential(*(ViTBlock(width, heads, hidden) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, len(PACKAGES))

    def forward(self, words: Tensor) -> Tensor:
        x = self.dropout(self.words(words) + self.places.weight)
        out: Tensor = self.classifier(self.norm(self.blocks(x)).mean(1))
        return out
