"""What a rule sees of the operation it judges: its arguments, and the verbs that say what it does with their axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from structprune import axes
from structprune.axes import Const, Expr, Frozen, Why
from structprune.lineage import Pairing, Stacked
from structprune.nodes import Literal, Node
from structprune.provenance import node_of, plain, user_line
from structprune.rules.context import Context, Dims, Site, constants, free, iter_tensors
from structprune.rules.integers import alignment, match
from structprune.rules.scales import scales

__all__ = ["Call"]

# Functions whose integer says how many pieces there are: a piece's size may equal it, and does not come from it.
_COUNTING = frozenset(("chunk", "unsafe_chunk", "tensor_split", "hsplit", "vsplit", "dsplit"))


class Call:
    """One operation: arguments by name, dimensions of its tensors, and the verbs of the axis algebra."""

    __slots__ = ("arguments", "context", "name", "out")

    def __init__(self, context: Context, name: str, arguments: dict[str, Any], out: Any) -> None:
        self.context = context
        self.name = name
        self.arguments = arguments
        self.out = out

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def get(self, name: str, default: Any = None) -> Any:
        """Return the argument ``name``, or ``default`` where the operation has none."""
        value = self.arguments.get(name, default)
        return default if value is None else value

    def tensors(self) -> list[torch.Tensor]:
        """Return every tensor argument, those inside lists included."""
        return list(iter_tensors(self.arguments.values()))

    # -- dimensions ----------------------------------------------------------------------------------------------

    def dims(self, tensor: torch.Tensor) -> Dims:
        """Return the expressions of ``tensor``; one that the trace has not seen is made of constants."""
        known = self.context.dims.get(tensor)
        return constants(tensor) if known is None else known

    def set(self, tensor: Any, dims: Sequence[Expr]) -> None:
        """Give ``tensor`` its dimensions; None (an output that is not there) is passed over."""
        if not isinstance(tensor, torch.Tensor):
            return
        sizes = [dim.size for dim in dims]
        if sizes != list(tensor.shape):
            raise AssertionError(
                f"the rule of {self.name} gives {sizes} for a tensor of shape {list(tensor.shape)}"
            )
        self.context.dims[tensor] = tuple(dims)

    def why(self, reason: str) -> Why:
        """Return a reason that looks up the user's line when it is needed."""
        return lambda: Frozen(reason, user_line())

    def unify(self, a: Expr, b: Expr, reason: str | None = None) -> None:
        """Make two dimensions keep the same positions."""
        if a is not b:
            fixed = isinstance(axes.normal(a), Const) or isinstance(axes.normal(b), Const)
            usual = (
                f"{self.name} joins it with a dimension of {'fixed size' if fixed else 'another structure'}"
            )
            axes.unify(a, b, self.why(reason or usual))

    def freeze(self, expr: Expr, reason: str) -> None:
        """Freeze a dimension, naming the user's line."""
        if not isinstance(expr, Const):
            self.context.told_apart.append(expr)
        if free(expr):
            axes.freeze(expr, Frozen(reason, user_line()))

    def freeze_all(self, reason: str) -> None:
        """Freeze everything the operation reads, and call what it returns constant."""
        for tensor in self.tensors():
            for dim in self.dims(tensor):
                self.freeze(dim, reason)
        for tensor in iter_tensors([self.out]):
            if tensor not in self.context.dims:
                self.set(tensor, constants(tensor))

    # -- integers ------------------------------------------------------------------------------------------------

    def nodes(self, values: Sequence[int]) -> list[Node | None]:
        """Return where each size came from: the user's expression, a literal, or None where torch derived it."""
        call = self.context.function
        if call is None:
            return [Literal(plain(value)) for value in values]
        start = match(call.ints, values)
        if start is not None:
            found = range(start, start + len(values))
            call.used.update(found)
            return [None if plain(call.ints[i]) == -1 else node_of(call.ints[i]) for i in found]
        offset = alignment(call.ints, values)
        if offset is None:
            return [self.node(value) for value in values]
        return [self._aligned(offset + i, value) for i, value in enumerate(values)]

    def _aligned(self, position: int, value: int) -> Node | None:
        """Return where a size came from that faces ``position`` of the user's integers; outside them it was derived."""
        call = self.context.function
        assert call is not None
        if 0 <= position < len(call.ints) and plain(call.ints[position]) == plain(value):
            call.used.add(position)
            return node_of(call.ints[position])
        return None

    def node(self, value: int) -> Node | None:
        """Return where one integer came from, judged by its value alone; None where torch derived it.

        Where integers of different origins have the value, it counts as a literal.
        """
        call = self.context.function
        if call is None:
            return Literal(plain(value))
        if call.name in _COUNTING:
            return None
        same = [i for i, given in enumerate(call.ints) if plain(given) == plain(value)]
        call.used.update(same)
        origins = {str(node): node for node in (node_of(call.ints[i]) for i in same)}
        if len(origins) > 1:
            return Literal(plain(value))
        return next(iter(origins.values()), None)

    def argument(self, name: str, position: int, value: int) -> Node | None:
        """Return where the integer came from that the user gave as ``name``, or at ``position``; else as
        `node` does.
        """
        call = self.context.function
        if call is None:
            return Literal(plain(value))
        given = call.kwargs.get(name, call.args[position] if position < len(call.args) else None)
        if not isinstance(given, int) or plain(given) != plain(value):
            return self.node(value)
        call.used.update(i for i, one in enumerate(call.ints) if one is given)
        return node_of(given)

    def bound(self, value: int) -> Node:
        """Return where a bound came from that fixes a count; one that torch derived counts as a literal."""
        return self.node(value) or Literal(plain(value))

    def narrowed(self, start: int, end: int) -> tuple[Node, Node] | None:
        """Return where the start and the length of a stretch came from, where the code gave it as these."""
        call = self.context.function
        if call is None or call.name != "narrow" or len(call.ints) != 3:
            return None
        _, first, length = call.ints
        if plain(first) != plain(start) or plain(first) + plain(length) != plain(end):
            return None
        call.used.update((1, 2))
        return node_of(first), node_of(length)

    def equate(self, expr: Expr, node: Node | None, what: str) -> None:
        """Demand that ``expr`` always has the size that the code asks for; None demands nothing."""
        if node is None or (isinstance(node, Literal) and not free(expr)):
            return
        self.context.ledger.equate(expr, node, what)

    def count(self, number: int, node: Node, what: str) -> None:
        """Demand that an expression keeps its number."""
        self.context.ledger.hold(number, node, what)

    # -- what the operation means ----------------------------------------------------------------------------------

    def role(self, expr: Expr, role: str) -> None:
        """Note that a weight's dimension is one its layer produces (``out``) or contracts away (``in``)."""
        self.context.roles.setdefault(id(expr), role)
        (self.context.produced if role == "out" else self.context.consumed).append(expr)
        weight = self.arguments.get("weight")
        convolves = isinstance(weight, torch.Tensor) and weight.ndim > 2
        self.context.lineage.weight(expr, role, convolves)

    def scale(self, what: torch.Tensor, by: torch.Tensor | None) -> None:
        """Note that a tensor (None: nothing) holds one number for each channel, by which activations are multiplied."""
        scales(self.context, by, what)

    def contract(self, reduced: Sequence[Expr], axes: Mapping[str, int]) -> None:
        """Note a contraction over ``reduced``; ``axes`` gives for each argument the dimension that is contracted."""
        self._reads_across(reduced)
        live = {name: axis for name, axis in axes.items() if self[name] in self.context.live}
        self._flow(axes)
        axes = live or axes  # zero times a weight is zero: weights need no mask of their own
        self._site({name: self.dims(self[name]) for name in axes}, tuple(reduced), axes=axes)

    def _flow(self, reduced: Mapping[str, int]) -> None:
        """Note in the lineage a product of two activations, or of one with stacked weights."""
        if len(reduced) != 2 or not isinstance(self.out, torch.Tensor):
            return
        (left, i), (right, j) = reduced.items()
        mine, other, out = self.dims(self[left]), self.dims(self[right]), self.dims(self.out)
        flows = [name for name in (left, right) if self._flows(self[name])]
        if len(flows) == 2:
            pairing = Pairing(mine, other, (mine[i], other[j]), out, complete="value" in self.arguments)
            self.context.lineage.pair(pairing)
        elif len(flows) == 1 and "weight" not in self.arguments:
            first = flows[0] == right
            weight, axis, read = (mine, i, other) if first else (other, j, mine)
            if len(weight) > 2 and weight[axis].size > 1:
                rest = (*weight[:axis], *weight[axis + 1 :])
                self.context.lineage.stacked.append(Stacked(rest, read, out))

    def _flows(self, tensor: torch.Tensor) -> bool:
        """Return whether a tensor holds activations: what inputs reach, and layers' views of learned positions."""
        if tensor in self.context.live:
            return True
        return tensor.ndim > 2 and "weight" not in self.arguments and tensor in self.context.derived

    def statistic(
        self, changes: str, arguments: Mapping[str, Dims], reduced: Sequence[Expr], **more: Any
    ) -> None:
        """Note a statistic over ``reduced``; ``changes`` says what a cut changes there (empty: nothing), ``over``
        where that is not all of ``reduced``.
        """
        self._reads_across(reduced)
        more["over"] = tuple(more.get("over", reduced))
        self._site(arguments, tuple(reduced), changes=changes, **more)

    def _reads_across(self, reduced: Sequence[Expr]) -> None:
        self.context.consumed.extend(reduced)
        self.context.across.setdefault(self.context.index, []).extend(reduced)

    def _site(self, arguments: Mapping[str, Dims], reduced: Dims, **more: Any) -> None:
        if any(free(expr) for expr in reduced):
            context = self.context
            more["outputs"] = tuple(context.dims.get(tensor, ()) for tensor in iter_tensors([self.out]))
            where = user_line() if more.get("changes") else ""
            context.sites.append(
                Site(context.index, self.name, where, context.layer, arguments, reduced, **more)
            )

    def weight(self, *names: str) -> str | None:
        """Return which of two operands is the layer's weight: the one that no input reaches, the last if both
        are such.
        """
        still = [name for name in names if self[name] not in self.context.live]
        return still[-1] if still else None

    def macs(self, *factors: Expr) -> None:
        """Note multiply-accumulates: the product of the sizes of ``factors``."""
        self.context.costs.append((self.context.layer, self.name, factors))
