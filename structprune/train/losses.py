"""The loss of one batch: cross-entropy or the user's own, and what is said where it cannot be taken."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from structprune.errors import InputError, StructpruneError
from structprune.importance.batches import told
from structprune.importance.calibration import IGNORED, Loss, one_number

__all__ = ["BatchLoss", "expected_targets", "not_finite", "pair_of", "range_of", "require_descent"]


@dataclass(frozen=True)
class BatchLoss:
    """The loss to be minimised: `own`, or cross-entropy with `label_smoothing` where that is None.

    Its errors name the batch, what it was given and what is expected.
    """

    own: Loss | None = None
    label_smoothing: float = 0.0

    def __call__(self, output: Any, targets: Any, batch: str, *, first: bool = True) -> Tensor:
        """The loss of a batch, which is known as `batch`; raises InputError where there is none.

        Batches that have passed before (`first=False`) are spared the wait for an accelerator that a look at them is.
        """
        if first and self.own is None and _on_device(output) and _outside(output, targets):
            raise self._not_taken(
                output, targets, batch
            )  # an assertion on a device would end the process' use of it
        try:
            loss = self._of(output, targets)
        except (StructpruneError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # the public boundary around the user's loss: any error it can raise
            raise self._not_taken(output, targets, batch, error) from error
        return one_number(loss, f"the loss of {batch}")

    def _of(self, output: Any, targets: Any) -> Any:
        if self.own is not None:
            return self.own(output, targets)
        return F.cross_entropy(output, targets, label_smoothing=self.label_smoothing)

    def _not_taken(self, output: Any, targets: Any, batch: str, error: Exception | None = None) -> InputError:
        given = f"{batch}: the model gives {told(output)}, the targets are {told(targets)}{range_of(targets)}"
        what = "" if error is None else f" ({type(error).__name__}: {str(error).rstrip('.')})"
        if self.own is not None:
            return InputError(
                f"the loss failed on {given}{what}. loss= is a function of (output, targets), a mean over the batch"
            )
        return InputError(
            f"cross-entropy, the default loss, does not take {given}{what}. {expected_targets(output)}; convert the "
            "targets in the data set, or give loss=, a function of (output, targets)"
        )


def require_descent(loss: Tensor, batch: str, lr: float, *, first: bool) -> None:
    """Raises InputError where there is nothing to go down by: no gradient, or no number.

    An accelerator has to be waited for to see a number, so there only the `first` batch of an epoch is looked at.
    """
    if not loss.requires_grad:
        raise InputError(
            f"the loss of {batch} does not depend on any parameter that requires a gradient: loss= and the model's "
            "forward may not detach what they compute, nor run under torch.no_grad()"
        )
    if (first or loss.device.type == "cpu") and not math.isfinite(loss.item()):
        raise not_finite(loss.item(), batch, lr)


def not_finite(loss: float, where: str, lr: float) -> InputError:
    """The error of a loss that is no number."""
    return InputError(f"the loss is {loss} in {where}; lower {lr=}, or check the data")


def pair_of(item: Any, batch: str) -> tuple[Any, Any]:
    """The inputs and the targets of an item of a loader; raises InputError where it is no pair of them."""
    if not isinstance(item, tuple | list) or len(item) != 2:
        found = f"{told(item)} of {len(item)}" if isinstance(item, tuple | list) else told(item)
        raise InputError(
            f"{batch} is {found}; expected (input, target) pairs: several inputs go in a tuple or a dict, as "
            "((a, b), target)"
        )
    return item[0], item[1]


def expected_targets(output: Any) -> str:
    """What targets cross-entropy takes beside an output, for a message."""
    if not isinstance(output, Tensor) or output.ndim < 2:
        return "Expected logits [batch, classes, ...] from the model"
    classes, places = output.shape[1], [*output.shape[:1], *output.shape[2:]]
    return (
        f"Expected targets that are classes, torch.int64 {places}, from 0 to {classes - 1} ({IGNORED} is passed "
        f"over), or probabilities {list(output.shape)}"
    )


def _on_device(output: Any) -> bool:
    return isinstance(output, Tensor) and output.ndim > 1 and output.device.type != "cpu"


def _outside(output: Tensor, targets: Any) -> bool:
    """Whether any target is a class that there is not."""
    if not isinstance(targets, Tensor) or targets.is_floating_point():
        return False
    wrong = ((targets < 0) | (targets >= output.shape[1])) & (targets != IGNORED)
    return bool(wrong.any())


def range_of(targets: Any) -> str:
    """From where to where targets go, for a message; nothing for what has no order."""
    if not isinstance(targets, Tensor) or not targets.numel() or targets.is_complex():
        return ""
    return f", from {targets.min().item():g} to {targets.max().item():g}"
