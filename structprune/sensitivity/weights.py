"""Which weights a sensitivity was measured with: a short digest of the values of each tensor."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from structprune.errors import InputError
from structprune.tensors import slots

__all__ = ["digests"]

_BYTES = 8  # of each digest: what differs by chance is not to be taken for the same


@torch.no_grad()
def digests(model: nn.Module) -> dict[str, str]:
    """The digest (hex) of each parameter and persistent buffer, by its first name.

    It is of the values in float32 (or complex64, or int64), so neither the device has a say in it nor a wider dtype; a
    narrower one rounds the values, and they are others then. Raises InputError on the meta device.
    """
    first: dict[int, tuple[str, Tensor]] = {}
    for slot in slots(model):
        if slot.kind in ("parameter", "buffer"):
            first.setdefault(id(slot.tensor), (slot.name, slot.tensor))
    return {name: _digest(name, tensor) for name, tensor in first.values()}


def _digest(name: str, tensor: Tensor) -> str:
    if tensor.is_meta:
        raise InputError(f"{name!r} is on the meta device, without values: load the weights first")
    dtype = torch.int64
    if tensor.is_complex():
        dtype = torch.complex64
    elif tensor.is_floating_point():
        dtype = torch.float32
    values = tensor.detach().to(device="cpu", dtype=dtype).resolve_conj().resolve_neg()
    plain = values.to_dense() if values.layout is not torch.strided else values
    return hashlib.blake2b(plain.contiguous().reshape(-1).numpy().data, digest_size=_BYTES).hexdigest()
