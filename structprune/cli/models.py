"""The models that a command is asked for: built anew, or filled from a saved folder.

A saved folder holds a plan and weights and no code, so it is always loaded together with the factory that
builds the original architecture. Nothing that a folder says is imported or run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

import structprune as sp
from structprune.by_name import build_data, build_loss, import_module, model_factory

__all__ = ["build_data", "build_loss", "build_model", "empty_model", "import_module", "model_factory"]


def build_model(name: str, folder: Path | None, seed: int, rewrite_for: Any = None) -> nn.Module:
    """The model that `name` stands for; with `folder`, the pruned one saved there; with example inputs, rewritten.

    `torch.manual_seed(seed)` goes before the factory, so that weights it draws are the same every time.

    Raises:
        InputError: where the module or the factory is not found, fails, or gives no `nn.Module`.
        StorageError: where the folder is damaged or belongs to another model.
    """
    torch.manual_seed(seed)  # the module may draw while it is imported
    plain = model_factory(name)
    torch.manual_seed(seed)  # and it is not, where it was before
    factory = plain if rewrite_for is None else lambda: sp.rewrite(plain(), rewrite_for)
    return factory() if folder is None else sp.load(folder, factory)


def empty_model(name: str) -> nn.Module:
    """The model that `name` stands for, with parameters that take no memory.

    Raises InputError as `build_model` does.
    """
    factory = model_factory(name)
    with sp.empty_weights():
        return factory()
