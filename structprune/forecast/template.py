"""One conversion for all widths: an ONNX model whose sizes are written as expressions of the channel counts.

Converting a network takes seconds, and a forecast wants it at dozens of widths. So the network is converted three
times, whole and at two random cuts; every size that differs is then named by the one dimension of the traced network
that had just these three sizes. From there any widths are written into the model directly. Its weights are only
stand-ins: they are for timing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from torch import nn

from structprune import axes
from structprune.axes import Expr
from structprune.errors import ExportError
from structprune.graph import DependencyGraph
from structprune.runtimes.onnx_convert import Converted, convert
from structprune.surgery import apply_plan

__all__ = ["OnnxTemplate", "Size", "Sizes", "Width", "cut_to_counts"]

Counts = np.ndarray


def cut_to_counts(model: nn.Module, graph: DependencyGraph, counts: Counts) -> nn.Module:
    """A copy of the model with the first ``counts`` channels of every group: for its shape, not its values."""
    keep = {g.name: range(int(c)) for g, c in zip(graph.groups, counts, strict=True) if c < g.size}
    return apply_plan(model, graph.plan(keep))


@dataclass(frozen=True)
class Width:
    """A size that follows the counts: a dimension of the traced network, rounded up to a multiple of ``block``."""

    expr: Expr
    block: int = 1


class Sizes:
    """Names sizes: which dimension of the traced network has the sizes that were seen at several counts."""

    def __init__(self, graph: DependencyGraph) -> None:
        self._graph = graph
        self._exprs = list(_dimensions(graph))

    def names(
        self, points: Sequence[Counts], blocks: Sequence[int] = (1,)
    ) -> Callable[[Sequence[int]], Size | None]:
        """A function from the sizes at ``points`` to the dimension that has them, a number, or None.

        A runtime may pad: with ``blocks``, dimensions rounded up to one of these are tried too, the first first.
        """
        known: dict[tuple[int, ...], Width] = {}
        kept = [self._kept(counts) for counts in points]
        exact = [(expr, np.array([axes.size_under(expr, one) for one in kept])) for expr in self._exprs]
        for block in blocks:
            for expr, sizes in exact:
                known.setdefault(tuple((-(-sizes // block) * block).tolist()), Width(expr, block))

        def name(sizes: Sequence[int]) -> Size | None:
            return sizes[0] if len(set(sizes)) == 1 else known.get(tuple(sizes))

        return name

    def at(self, size: Size, counts: Counts) -> int:
        """The size under ``counts``."""
        if isinstance(size, int):
            return size
        return -(-axes.size_under(size.expr, self._kept(counts)) // size.block) * size.block

    def _kept(self, counts: Counts) -> dict[axes.Atom, int]:
        return {g.atom: int(c) for g, c in zip(self._graph.groups, counts, strict=True)}


Size = int | Width


def _dimensions(graph: DependencyGraph) -> Iterator[Expr]:
    yield from (group.atom for group in graph.groups)
    written = (dims for record in graph.run.records for _, dims, _ in record.writes)
    seen: set[int] = set()
    for dims in (*graph.run.named.values(), *written):
        for raw in dims:
            expr = axes.normal(raw)
            if id(expr) not in seen:
                seen.add(id(expr))
                if next(iter(axes.leaves(expr)), None) is not None:
                    yield expr


@dataclass(frozen=True)
class _Edit:
    """A place in the model whose sizes depend on the counts."""

    write: Callable[[tuple[int, ...]], None]
    sizes: tuple[Size, ...]


class OnnxTemplate:
    """The converted network at any counts, without converting it again.

    Raises:
        ExportError: where the exporter gives another graph at other widths, or a size that no dimension explains.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: DependencyGraph,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        points: Sequence[Counts],
    ) -> None:
        self._sizes = Sizes(graph)
        found = [convert(cut_to_counts(model, graph, counts), args, kwargs) for counts in points]
        self.converted: Converted = found[0]
        _require_same_graph([one.model for one in found])
        name = self._sizes.names(points)
        self._edits = [
            _Edit(write, tuple(_named(name, sizes, where) for sizes in zip(*seen, strict=True)))
            for write, seen, where in _places([one.model for one in found])
            if len(set(seen)) > 1
        ]
        for node in self.converted.model.graph:
            for value in node.outputs:
                if not value.is_graph_output():
                    value.shape = None

    def at(self, counts: Counts) -> ir.Model:
        """The model at ``counts``: the same object at every call, written over."""
        for edit in self._edits:
            edit.write(tuple(self._sizes.at(size, counts) for size in edit.sizes))
        return self.converted.model


def _named(name: Callable[[Sequence[int]], Size | None], sizes: Sequence[int], where: str) -> Size:
    found = name(sizes)
    if found is None:
        raise ExportError(f"{where} has the sizes {list(sizes)} at three widths, which no dimension explains")
    return found


def _require_same_graph(models: Sequence[ir.Model]) -> None:
    forms = [[(node.domain, node.op_type, len(node.inputs)) for node in model.graph] for model in models]
    weights = [list(model.graph.initializers) for model in models]
    if any(form != forms[0] for form in forms) or any(names != weights[0] for names in weights):
        raise ExportError("the exporter gives another graph at other widths")


def _places(
    models: Sequence[ir.Model],
) -> Iterator[tuple[Callable[[tuple[int, ...]], None], list[tuple[int, ...]], str]]:
    """Yield each place that holds sizes: how to write it, what each model has there, and its name."""
    for name, value in models[0].graph.initializers.items():
        held = [model.graph.initializers[name].const_value for model in models]
        arrays = [one.numpy() for one in held if one is not None]
        yield _shape_writer(value, arrays[0]), [array.shape for array in arrays], f"the weight {name!r}"
        if np.issubdtype(arrays[0].dtype, np.integer) and arrays[0].size < 64:
            listed = [tuple(int(size) for size in array.reshape(-1)) for array in arrays]
            if len({len(sizes) for sizes in listed}) == 1:
                yield _content_writer(value, arrays[0]), listed, f"the constant {name!r}"
    for nodes in zip(*(model.graph for model in models), strict=True):
        for key, attribute in nodes[0].attributes.items():
            if attribute.type in (ir.AttributeType.INT, ir.AttributeType.INTS):
                seen = [_ints(node.attributes[key]) for node in nodes]
                yield _attribute_writer(nodes[0], attribute), seen, f"{nodes[0].op_type}.{key}"


def _ints(attribute: ir.Attr) -> tuple[int, ...]:
    if attribute.type is ir.AttributeType.INT:
        return (attribute.as_int(),)
    return tuple(attribute.as_ints())


def _shape_writer(value: ir.Value, original: np.ndarray[Any, Any]) -> Callable[[tuple[int, ...]], None]:
    """A corner of the original weight; its scale grows as its size shrinks, so that the values that flow stay alike."""

    def write(shape: tuple[int, ...]) -> None:
        corner = original[tuple(slice(size) for size in shape)]
        if corner.shape != shape:
            corner = np.resize(original, shape)
        if np.issubdtype(original.dtype, np.floating) and original.ndim > 1:
            corner = (corner * (original.size / max(corner.size, 1)) ** 0.25).astype(original.dtype)
        _fill(value, np.ascontiguousarray(corner))

    return write


def _content_writer(value: ir.Value, original: np.ndarray[Any, Any]) -> Callable[[tuple[int, ...]], None]:
    def write(content: tuple[int, ...]) -> None:
        _fill(value, np.array(content, dtype=original.dtype).reshape(original.shape))

    return write


def _fill(value: ir.Value, array: np.ndarray[Any, Any]) -> None:
    value.const_value = ir.tensor(array, name=value.name)
    value.shape = ir.Shape(array.shape)


def _attribute_writer(node: ir.Node, attribute: ir.Attr) -> Callable[[tuple[int, ...]], None]:
    def write(sizes: tuple[int, ...]) -> None:
        if attribute.type is ir.AttributeType.INT:
            node.attributes[attribute.name] = ir.AttrInt64(attribute.name, sizes[0])
        else:
            node.attributes[attribute.name] = ir.AttrInt64s(attribute.name, sizes)

    return write
