"""What accelerate makes of a model and its optimiser, where every process holds the whole model."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from torch import nn

from structprune.train.optimizers import build_optimizer
from structprune.train.options import TrainOptions

if TYPE_CHECKING:
    from accelerate import Accelerator  # type: ignore[import-untyped]

__all__ = ["Whole", "release"]


class Whole:
    """The model itself, trained in place: behind DistributedDataParallel where there are several processes.

    `model` is what a batch goes through, `seen` what hooks and metrics get; `optimizer` is accelerate's, around torch's
    `inner`. `Sharded` is the other kind. Where `last` ends, what accelerate put on the model and keeps of it is gone.
    """

    def __init__(
        self, model: nn.Module, options: TrainOptions, accelerator: Accelerator, last: ExitStack
    ) -> None:
        self.accelerator, self.seen = accelerator, model
        self.inner = build_optimizer(model, options)
        self.model, self.optimizer = accelerator.prepare(model, self.inner)
        last.callback(self._release)

    def settle(self) -> None:
        """After the model was measured: nothing is left behind."""

    def finish(self) -> None:
        """After the last step: the weights are where they belong."""

    def _release(self) -> None:
        """Takes off the model what accelerate put there: the wrapper of its `forward`."""
        self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        release(self.accelerator, self.model, self.optimizer)


def release(accelerator: Accelerator, *prepared: Any) -> None:
    """Takes from accelerate what it prepared: it would keep it, the optimiser's state too, for as long as it lives."""
    for kept in (accelerator._models, accelerator._optimizers):
        kept[:] = [each for each in kept if not any(each is one for one in prepared)]
