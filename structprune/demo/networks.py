"""The demo's four networks: the dense one, two structured cuts of it, and an unstructured twin."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import structprune as sp
from structprune.demo.progress import Advance
from structprune.demo.settings import Settings
from structprune.masking import sparsity_report
from structprune.train import evaluate, finetune

__all__ = ["Candidate", "Trainer", "cut_channels", "mask_weights", "train_dense"]


@dataclass(frozen=True)
class Candidate:
    """One row of the table: a finished network and what became of its accuracy, in [0, 1], on the way."""

    name: str
    model: nn.Module
    accuracy_before: float
    accuracy_cut: float | None = None
    accuracy_after: float | None = None
    proof_error: float | None = None
    plan: Any = None
    history: list[dict[str, float]] = field(default_factory=list)

    @property
    def accuracy(self) -> float:
        return self.accuracy_before if self.accuracy_after is None else self.accuracy_after


@dataclass(frozen=True)
class Trainer:
    """The data and the recipe that all networks share."""

    train: TensorDataset
    test: TensorDataset
    settings: Settings
    seed: int

    def example(self, batch: int) -> Tensor:
        """The first images of the test set, `[batch, 1, size, size]`."""
        return self.test.tensors[0][:batch].clone()

    def fit(self, model: nn.Module, epochs: int, lr: float, progress: Advance) -> list[dict[str, float]]:
        return finetune(
            model,
            self.train,
            epochs=epochs,
            lr=lr,
            batch_size=self.settings.train_batch,
            schedule="onecycle",
            label_smoothing=0.1,
            seed=self.seed,
            progress=progress,
        )

    def recover(self, model: nn.Module, progress: Advance) -> tuple[float, float, list[dict[str, float]]]:
        """Accuracy before and after fine-tuning, and the metrics of each epoch."""
        cut = evaluate(model, self.test)
        history = self.fit(model, self.settings.finetune_epochs, self.settings.finetune_lr, progress)
        return cut, evaluate(model, self.test), history


def train_dense(trainer: Trainer, progress: Advance) -> Candidate:
    """The network trained from nothing."""
    with torch.random.fork_rng():
        torch.manual_seed(trainer.seed)
        model = trainer.settings.build_model()
    history = trainer.fit(model, trainer.settings.epochs, trainer.settings.lr, progress)
    return Candidate("dense", model.eval(), evaluate(model, trainer.test), history=history)


def cut_channels(
    name: str, criterion: str, dense: Candidate, trainer: Trainer, progress: Advance
) -> Candidate:
    """The dense network without as many channels as the MAC budget asks, proven and fine-tuned."""
    result = sp.prune(
        dense.model,
        trainer.example(1),
        sp.Budget(macs=trainer.settings.macs),
        criterion=criterion,
        multiple_of=trainer.settings.multiple_of,
        seed=trainer.seed if criterion == "random" else None,
    )
    proof = result.report.verify
    cut, after, history = trainer.recover(result.model, progress)
    return Candidate(
        name,
        result.model.eval(),
        accuracy_before=dense.accuracy,
        accuracy_cut=cut,
        accuracy_after=after,
        proof_error=None if proof is None else proof.max_error,
        plan=result.plan,
        history=history,
    )


def mask_weights(dense: Candidate, params: int, trainer: Trainer, progress: Advance) -> Candidate:
    """The dense network with its smallest weights set to zero until `params` are left, fine-tuned."""
    surplus = sp.count_params(dense.model) - params
    sparsity = max(surplus, 0) / sparsity_report(dense.model).size
    masked = sp.sparsify(dense.model, sparsity, scope="global")
    cut, after, history = trainer.recover(masked, progress)
    return Candidate("unstructured", sp.finalize(masked).eval(), dense.accuracy, cut, after, history=history)
