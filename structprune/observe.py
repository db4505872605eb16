"""What a network's parameters are multiplied with, batch by batch: the inputs of its linear layers and convolutions.

A run is watched below autograd, where every product is one of a few ATen operations, however it was written: a module,
`F.linear`, `x @ self.weight`, an einsum, a slice of one stacked weight. Operands are told by the memory they lie in, so
a view of a parameter is known with the place of each of its numbers; what is made of parameters alone and has the
shape of one (a mask or a norm over it, a cast) stands for that one. It all happens in a `Twin`, which shares the
parameters' memory and nothing else with the model: the model's flags, buffers, caches and gradients stay as they are.

    twin = Twin(model)
    for args, kwargs in batches:
        twin.watch(each, *args, **kwargs)  # each(use): once for each product with a parameter, `Use`
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from structprune.clone import structural_clone
from structprune.inputs import map_tensors, tensors_in
from structprune.products import Layout, Place, Use
from structprune.uses import Each, Watcher, roots_of

__all__ = ["Each", "Layout", "Place", "Twin", "Use"]


class Twin:
    """A network that computes what ``model`` does, in eval mode, on the same parameters' memory and its own buffers.

    With ``gradients`` its floating-point parameters ask for them, whatever the model's own do. ``parameters`` has them
    by name, each once. After runs that were watched, ``unread`` names the parameters that met the data in an operation
    which is no known product, with that operation's name, and ``remade`` those of which something else than a view was
    made without data.
    """

    def __init__(self, model: nn.Module, gradients: bool = False) -> None:
        def replace(tensor: Tensor, kind: str) -> Tensor:
            if not isinstance(tensor, nn.Parameter):
                return tensor.detach().clone()
            wanted = gradients and (tensor.is_floating_point() or tensor.is_complex())
            return nn.Parameter(_ordinary(tensor.detach()), requires_grad=wanted)

        with torch.inference_mode(False):
            self.module, named = structural_clone(model, replace)
        self.module.eval()
        self.gradients = gradients
        self.parameters = {name: t for name, t in named.items() if isinstance(t, nn.Parameter)}
        self.unread: dict[str, str] = {}
        self.remade: set[str] = set()
        self.devices = {parameter.device for parameter in self.parameters.values()}
        self._roots = roots_of(self.parameters)
        self._recurrent = any(isinstance(one, nn.RNNBase) for one in self.module.modules())

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Return the forward's result; no random number of the process is used up."""
        args, kwargs = self.admitted((args, kwargs))
        with (
            torch.inference_mode(False),
            torch.set_grad_enabled(self.gradients),
            torch.random.fork_rng(devices=[d for d in self.devices if d.type == "cuda"]),
        ):
            return self.module(*args, **kwargs)

    def watch(self, each: Each, *args: Any, **kwargs: Any) -> Any:
        """Return the forward's result, having called ``each`` for every product with a parameter, in their order.

        What ``each`` returns, if anything, is called once autograd has noted the product, before what it made can be
        written over.
        """
        args, kwargs = self.admitted((args, kwargs))
        watcher = Watcher(self._roots, each, self.unread, self.remade)
        for tensor in tensors_in((args, kwargs)):
            watcher.enliven(tensor)
        with _open_kernels(self._recurrent), watcher:
            result = self.run(*args, **kwargs)
        watcher.settle()
        return result

    def admitted(self, tree: Any) -> Any:
        """The same tree with its tensors where the parameters are, if these are all in one place."""
        device = next(iter(self.devices)) if len(self.devices) == 1 else None
        with torch.inference_mode(False):
            return map_tensors(tree, lambda t: _ordinary(t if device is None else t.to(device)))


def _ordinary(tensor: Tensor) -> Tensor:
    """The tensor, or a copy of one that was made in inference mode: no gradient passes through such."""
    return tensor.clone() if tensor.is_inference() else tensor


@contextlib.contextmanager
def _open_kernels(recurrent: bool) -> Iterator[None]:
    """Keep torch from fusing whole layers into one operation: encoder layers, and recurrent ones if there are any."""
    fast, onednn = torch.backends.mha.get_fastpath_enabled(), torch._C._get_mkldnn_enabled()
    cudnn = torch._C._get_cudnn_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        if recurrent:
            torch._C._set_mkldnn_enabled(False)
            torch._C._set_cudnn_enabled(False)
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        torch._C._set_mkldnn_enabled(onednn)
        torch._C._set_cudnn_enabled(cudnn)
