"""Where one run multiplies parameters with data: the operations as torch dispatches them, told one by one."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from structprune.products import Layout, Place, Sliding, Use

__all__ = ["Each", "Root", "Watcher", "roots_of"]

Each = Callable[[Use], Callable[[], None] | None]
"""What is called for every product, and what it wants to be called when autograd has noted the product."""


@dataclass(frozen=True, slots=True)
class Root:
    """A parameter, or what stands for a view of it."""

    name: str
    steps: tuple[tuple[Layout, Layout], ...]  #: from the parameter to the view that it stands for
    layout: Layout
    end: int
    tensor: Tensor  #: held, so that no other tensor gets its memory meanwhile


def _root(name: str, tensor: Tensor, steps: tuple[tuple[Layout, Layout], ...] = ()) -> Root:
    layout = Layout.of(tensor)
    end = layout.offset + sum((n - 1) * s for n, s in zip(layout.size, layout.stride, strict=True)) + 1
    return Root(name, steps, layout, end, tensor)


def roots_of(parameters: Mapping[str, Tensor]) -> dict[int, list[Root]]:
    """The parameters by the memory that they lie in."""
    found: dict[int, list[Root]] = {}
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


class Watcher(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows parameters and data through one run, and tells where they are multiplied.

    ``roots`` are the parameters, as `roots_of` has them. To ``unread`` and ``remade`` is added what `observe.Twin` says
    of them.
    """

    def __init__(
        self, roots: Mapping[int, Sequence[Root]], each: Each, unread: dict[str, str], remade: set[str]
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.each, self.unread, self.remade = each, unread, remade
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

    def _found(self, tensor: Any) -> Root | None:
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


def _place(root: Root, weight: Tensor, side: str, sliding: Sliding | None = None) -> Place:
    return Place(root.name, (*root.steps, (root.layout, Layout.of(weight))), side, sliding)
