"""Training with FSDP: accelerate cuts a copy of the model into shards, and at the end the model gets its weights.

`fully_shard` changes a model for good: its classes, its parameters, its hooks. So it is given a copy, whose parameters
share memory with the model's until they are cut, and at the end the model's own parameters are filled, one whole tensor
at a time. Meanwhile the model stays where it was found, with the weights from before: what is spared on the device is
gradients, the optimiser's state, and, if the model was found on the CPU, the weights. After an error it is as it was.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from structprune.clone import structural_clone
from structprune.errors import InputError
from structprune.tensors import like
from structprune.train.optimizers import build_optimizer
from structprune.train.options import TrainOptions
from structprune.train.prepared import release

if TYPE_CHECKING:
    from accelerate import Accelerator  # type: ignore[import-untyped]

__all__ = ["Sharded", "shards"]


def shards(accelerator: Accelerator) -> bool:
    """Whether accelerate is configured to cut models into shards; raises `InputError` where in the older way."""
    from accelerate import DistributedType

    if accelerator.distributed_type != DistributedType.FSDP:
        return False
    if not getattr(accelerator, "is_fsdp2", False):
        raise InputError(
            "finetune trains with the second version of FSDP, whose shards are those of single parameters, and "
            "accelerate is configured for the first: FullyShardedDataParallelPlugin(fsdp_version=2), or FSDP_VERSION=2 "
            "(accelerate 1.6 or newer)"
        )
    return True


class Sharded:
    """A copy of the model whose parameters accelerate cut into shards; what `Whole` is for the whole model.

    Every process begins with the first one's weights, as with DistributedDataParallel. Raises `InputError` for a model
    that torch cannot cut in the way that accelerate is configured for, and for parameters that every process would
    train apart.
    """

    def __init__(
        self, model: nn.Module, options: TrainOptions, accelerator: Accelerator, last: ExitStack
    ) -> None:
        copy, _ = structural_clone(model, _apart)
        self.inner = build_optimizer(copy, options)
        self._modules = list(zip(model.modules(), copy.modules(), strict=True))
        try:
            self.model, self.optimizer = accelerator.prepare(copy, self.inner)
        except ValueError as error:
            raise InputError(
                f"the model cannot be cut into shards: {error}; configure FSDP with another auto_wrap_policy, or train "
                "without it"
            ) from error
        last.callback(release, accelerator, self.model, self.optimizer)
        self.seen = self.model
        self._parameters = self._paired()
        self._begin_alike()
        if accelerator.mixed_precision != "no":
            self.model.register_forward_hook(_in_float32)

    def settle(self) -> None:
        """After the model was measured: cuts again what a forward without a backward leaves whole."""
        from torch.distributed.fsdp import FSDPModule

        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    @torch.no_grad()
    def finish(self) -> None:
        """Gives the model, in every process, the weights and buffers that the copy was trained to."""
        from torch.distributed.tensor import DTensor

        for own, part in self._parameters:
            own.copy_(part.full_tensor() if isinstance(part, DTensor) else part)
        for module, other in self._modules:
            for name, now in other._buffers.items():
                kept = module._buffers.get(name)
                if kept is None or now is None:
                    module._buffers[name] = now  # made, or dropped, by a forward
                else:
                    kept.resize_(now.shape).copy_(now)

    def _paired(self) -> list[tuple[Tensor, Tensor]]:
        """Each parameter of the model, once, and what it is in the copy."""
        from torch.distributed.tensor import DTensor

        found: dict[int, tuple[Tensor, Tensor]] = {}
        for module, other in self._modules:
            for name, own in module._parameters.items():
                part = other._parameters[name]
                if own is None or part is None:
                    continue
                if found.setdefault(id(own), (own, part))[1] is not part:
                    raise InputError(
                        f"{name!r} of a {type(module).__name__} is shared by several layers, and accelerate unties it: "
                        "configure FSDP without cpu_ram_efficient_loading"
                    )
                if part.requires_grad and not isinstance(part, DTensor):
                    raise InputError(
                        f"{name!r} of a {type(module).__name__} is in FSDP's ignored_modules, so every process would "
                        "train it apart: freeze it (requires_grad), or do not ignore it"
                    )
        return list(found.values())

    @torch.no_grad()
    def _begin_alike(self) -> None:
        """Gives every process the first one's weights and buffers."""
        from torch.distributed.tensor import DTensor, distribute_tensor

        for own, part in self._parameters:
            if isinstance(part, DTensor):
                first = distribute_tensor(own.detach().to(part.dtype), part.device_mesh, part.placements)
                part.to_local().copy_(first.to_local())
            else:
                torch.distributed.broadcast(part, 0)
        for buffer in self.model.buffers():
            torch.distributed.broadcast(buffer, 0)


def _apart(tensor: Tensor, kind: str) -> Tensor:
    """What stands in the copy for a tensor of the model: a parameter over the same memory, a copy of all else."""
    data = tensor.detach()
    return like(tensor, data.contiguous() if kind == "parameter" else data.clone())


def _in_float32(model: nn.Module, args: object, output: object) -> object:
    """The output in float32, in which the loss is computed, as accelerate has it without FSDP."""
    from accelerate.utils import convert_to_fp32  # type: ignore[import-untyped]

    return convert_to_fp32(output)
