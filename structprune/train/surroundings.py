"""What a training run stands on and leaves as it was: the accelerator, the shares of data, the model's own state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler

from structprune.errors import InputError
from structprune.importance.calibration import processes
from structprune.train.batches import Shares
from structprune.train.hooks import Run

if TYPE_CHECKING:
    from accelerate import Accelerator  # type: ignore[import-untyped]

__all__ = [
    "as_found",
    "checked_accelerator",
    "default_accelerator",
    "gradients",
    "loader_of",
    "refuse_engines",
    "require_all_processes",
    "undone_before_a_step",
]

_PREPARED = "_is_accelerate_prepared"  # accelerate's mark on a model, which it does not prepare a second time


def default_accelerator() -> Accelerator:
    """An accelerator as accelerate is configured; raises `InputError` where it is not installed.

    Where there is nothing but CPUs it is said to be for these: otherwise accelerate takes each of the processes that
    `torchrun` started for the only one.
    """
    kind = _class()
    return kind(cpu=True) if not torch.accelerator.is_available() else kind()


def checked_accelerator(given: object) -> Accelerator:
    """The accelerator that was given; raises `InputError` for what is none."""
    if not isinstance(given, _class()):
        raise InputError(
            f"accelerator={given!r}: expected an accelerate.Accelerator, or None for one as accelerate is configured"
        )
    return given


def require_all_processes(accelerator: Accelerator) -> None:
    """Raises `InputError` where there are more processes than accelerate knows of: each would train alone."""
    if processes() != accelerator.num_processes:
        raise InputError(
            f"{processes()} processes were started and accelerate works with {accelerator.num_processes}: on CPUs give "
            "accelerator=accelerate.Accelerator(cpu=True), made before any other, or leave it out"
        )


def _class() -> type[Accelerator]:
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise InputError(
            "fine-tuning needs accelerate; install it with: pip install structprune[train]"
        ) from error
    kind: type[Accelerator] = Accelerator
    return kind


def refuse_engines(accelerator: Accelerator) -> None:
    """Raises `InputError` where accelerate would hand the model to an engine with an optimiser of its own."""
    from accelerate import DistributedType

    if accelerator.distributed_type in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise InputError(
            "finetune takes the optimiser's steps itself, and accelerate is configured for "
            f"{accelerator.distributed_type.value}: use torchrun, accelerate without that plugin, or FSDP "
            "(fsdp_version=2); or prune first, and train the smaller network with a loop of your own"
        )


def loader_of(
    data: Dataset[Any], batch_size: int, order: torch.Generator, accelerator: Accelerator
) -> tuple[DataLoader[Any], list[float]]:
    """This process's share of every batch, on its device, in an order that `order` draws; and what each counts."""
    from accelerate.data_loader import prepare_data_loader  # type: ignore[import-untyped]

    whole = BatchSampler(RandomSampler(data, generator=order), batch_size, drop_last=False)  # type: ignore[arg-type]
    shares = Shares(whole, len(data), accelerator.process_index, accelerator.num_processes)  # type: ignore[arg-type]
    loader: DataLoader[Any] = DataLoader(data, batch_sampler=shares, generator=order)
    loader = prepare_data_loader(
        loader, accelerator.device, num_processes=1, process_index=0, put_on_device=True
    )
    return loader, shares.weights()


@contextmanager
def gradients() -> Iterator[None]:
    """Autograd at work, whatever surrounds it (`torch.no_grad()`, `torch.inference_mode()`)."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


@contextmanager
def as_found(model: nn.Module) -> Iterator[None]:
    """Gives back the model's own `forward`, its train/eval flags, and its device if all parameters shared one; takes
    off the mark that accelerate leaves, with which the next run would go without mixed precision.
    """
    forward, prepared = vars(model).get("forward"), _PREPARED in vars(model)
    flags = [(module, module.training) for module in model.modules()]
    devices = {parameter.device for parameter in model.parameters()}
    try:
        yield
    finally:
        vars(model).pop("forward", None)
        if forward is not None:
            model.forward = forward
        if not prepared:
            vars(model).pop(_PREPARED, None)
        for module, flag in flags:
            module.training = flag
        if len(devices) == 1:
            model.to(devices.pop())


@contextmanager
def undone_before_a_step(run: Run) -> Iterator[None]:
    """Takes back what forwards wrote into the model's buffers (batch norm's statistics) where an error comes before the
    optimiser's first step: weights and buffers belong together.
    """
    before = [(buffer, buffer.detach().clone()) for buffer in run.model.buffers()]
    try:
        yield
    except BaseException:
        for buffer, value in before if run.step == 0 else ():
            buffer.copy_(value)
        raise
