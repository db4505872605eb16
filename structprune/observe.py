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
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from structprune.clone import structural_clone
from structprune.inputs import map_tensors, tensors_in
from structprune.products import Layout, Place, Sliding, Use

__all__ = ["Each", "Layout", "Place", "Twin", "Use"]

Each = Callable[[Use], Callable[[], None] | None]
"""What is called for every product, and what it wants to be called when autograd has noted the product."""


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
        self._roots = _roots(self.parameters)
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
        watcher = _Watcher(self, self._roots, each)
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


@dataclass(frozen=True, slots=True)
class _Root:
    """A parameter, or what stands for a view of it."""

    name: str
    steps: tuple[tuple[Layout, Layout], ...]  #: from the parameter to the view that it stands for
    layout: Layout
    end: int
    tensor: Tensor  #: held, so that no other tensor gets its memory meanwhile


def _root(name: str, tensor: Tensor, steps: tuple[tuple[Layout, Layout], ...] = ()) -> _Root:
    layout = Layout.of(tensor)
    end = layout.offset + sum((n - 1) * s for n, s in zip(layout.size, layout.stride, strict=True)) + 1
    return _Root(name, steps, layout, end, tensor)


def _roots(parameters: Mapping[str, Tensor]) -> dict[int, list[_Root]]:
    """The parameters by the memory that they lie in."""
    found: dict[int, list[_Root]] = {}
    for name, parameter in parameters.items():
        found.setdefault(parameter.untyped_storage()._cdata, []).append(_root(name, parameter))
    return found


# operation -> the places of its two operands
_PRODUCTS = {
    **dict.fromkeys(("mm", "bmm", "mv", "dot", "vdot"), (0, 1)),
    **dict.fromkeys(("addmm", "baddbmm", "addbmm", "addmv", "_addmm_activation"), (1, 2)),
}
_CONVOLUTIONS = frozenset(("convolution", "_convolution", "convolution_overrideable"))


class _Known(weakref.ref[Tensor]):
    """A tensor that may go, and the id it had."""

    __slots__ = ("known",)
    known: int

    def __new__(cls, tensor: Tensor, forget: Callable[[_Known], None]) -> _Known:
        made = super().__new__(cls, tensor, forget)
        made.known = id(tensor)
        return made


class _Watcher(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows parameters and data through one run, and tells where they are multiplied."""

    def __init__(self, twin: Twin, roots: Mapping[int, Sequence[_Root]], each: Each) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.each, self.unread, self.remade = each, twin.unread, twin.remade
        self.live: dict[int, _Known] = {}  # what depends on the data, by its id
        self.roots = {place: list(found) for place, found in roots.items()}
        self.settling: Callable[[], None] | None = None

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled in here, and the guard would import the compiler

    def enliven(self, tensor: Tensor) -> None:
        """Note that a tensor depends on the data; it is forgotten when it goes, before its id can be another's."""
        if id(tensor) not in self.live:
            self.live[id(tensor)] = _Known(tensor, self._forget)

    def _forget(self, gone: _Known) -> None:
        self.live.pop(gone.known, None)

    def settle(self) -> None:
        """Autograd has noted the last operation."""
        settling, self.settling = self.settling, None
        if settling is not None:
            settling()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if self.settling is not None:
            self.settle()
        out = func(*args, **kwargs) if kwargs else func(*args)
        given = _tensors((*args, *kwargs.values()) if kwargs else args)
        if not given:
            return out
        made, name = _tensors((out,)), func._opname.rstrip("_")
        fixed = [tensor for tensor in given if id(tensor) not in self.live]
        met = self._multiplies(name, args, out)
        if len(fixed) < len(given):
            for tensor in made:
                self.enliven(tensor)
            if not met:
                self._meets(fixed, name)
        else:
            self._makes(given, made, met)
        return out

    def _meets(self, fixed: list[Tensor], name: str) -> None:
        """Note the parameters that meet data in an operation that is no known product."""
        for tensor in fixed:
            root = self._found(tensor)
            if root is not None:
                self.unread.setdefault(root.name, name)

    def _makes(self, given: list[Tensor], made: list[Tensor], met: bool) -> None:
        """Note what was made of no data, and what has the shape of the one view of a parameter that it was made of."""
        found = [(root, tensor) for tensor in given if (root := self._found(tensor)) is not None]
        for tensor in made if found else ():
            if tensor.untyped_storage()._cdata in self.roots:
                continue
            if not met:
                self.remade.update(root.name for root, _ in found)
            same = [(root, view) for root, view in found if view.shape == tensor.shape]
            if len({(root.name, root.steps, Layout.of(view)) for root, view in same}) == 1:
                root, view = same[0]
                steps = (*root.steps, (root.layout, Layout.of(view)))
                stands = _root(root.name, tensor, steps)
                self.roots.setdefault(tensor.untyped_storage()._cdata, []).append(stands)

    def _multiplies(self, name: str, args: tuple[Any, ...], out: Any) -> bool:
        """Whether the operation is a product with a parameter, which is told."""
        if name in _PRODUCTS:
            return self._product(name, args, out)
        return name in _CONVOLUTIONS and self._convolution(name, args, out)

    def _product(self, name: str, args: tuple[Any, ...], out: Any) -> bool:
        left, right = (args[place] for place in _PRODUCTS[name])
        # the operand that no data reach is the weight, the last if both are such
        for side, weight, x in (("right", right, left), ("left", left, right)):
            root = None if id(weight) in self.live else self._found(weight)
            if root is not None:
                added = args[0] if _PRODUCTS[name][0] else None
                self._met(Use(_place(root, weight, side), name, x, weight, out, added))
                return True
        return False

    def _convolution(self, name: str, args: tuple[Any, ...], out: Any) -> bool:
        x, weight, bias, stride, padding, dilation, transposed, extra, groups, *_ = args
        root = None if id(weight) in self.live else self._found(weight)
        if root is None:
            return False
        spatial = weight.ndim - 2
        s, p, d, e = (tuple(v) * (spatial // len(v)) for v in (stride, padding, dilation, extra))
        how = Sliding(s, p, d, bool(transposed), e, groups)
        self._met(Use(_place(root, weight, "kernel", how), name, x, weight, out, bias))
        return True

    def _met(self, use: Use) -> None:
        other = None if id(use.input) in self.live else self._found(use.input)
        if other is not None:
            self.remade.add(other.name)
        self.settling = self.each(use)

    def _found(self, tensor: Any) -> _Root | None:
        """The parameter in whose memory a tensor lies, or what stands for a view of it."""
        if not isinstance(tensor, Tensor):
            return None
        offset = tensor.storage_offset()
        for root in self.roots.get(tensor.untyped_storage()._cdata, ()):
            if root.layout.offset <= offset < root.end:
                return root
        return None


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    """The tensors among an operation's operands or results, those in lists too."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple) and value and type(value[0]) is not int:  # no list of sizes
            found += _tensors(value)
    return found


def _place(root: _Root, weight: Tensor, side: str, sliding: Sliding | None = None) -> Place:
    return Place(root.name, (*root.steps, (root.layout, Layout.of(weight))), side, sliding)
