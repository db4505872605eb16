"""The dependency graph: which channels of which tensors belong together, what they cost, and why the
others must stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from structprune import axes
from structprune.axes import Atom, Const, Expr, Frozen
from structprune.budget import Budget
from structprune.changes import Change
from structprune.choices import checked, cut_of, group_plan, kept_count, kept_of
from structprune.constraints import Settlement, involved
from structprune.cost import Polynomial, compile_products
from structprune.cutting import count_of
from structprune.errors import PlanError
from structprune.memory import Peaks, compile_peaks
from structprune.nodes import Attribute, Node
from structprune.plan import AttributeEdit, Keep, PruningPlan
from structprune.trace import Run

__all__ = ["ChannelGroup", "DependencyGraph", "Frozen", "Layer", "Member", "Violation"]


_QUANTITIES = ("channels", "params", "macs", "peak_memory", "file_size")


@dataclass(frozen=True, eq=False, slots=True)
class Member:
    """One tensor dimension that a group reaches into.

    ``index`` (int64, ``[size of the dimension]``) is the channel of the group at each position, -1 where it has no say.
    ``role`` is ``"out"`` where the layer produces the channels, ``"in"`` where it contracts them away, ``"scale"``
    where it multiplies each by one number (the weight of a norm), else ``"affine"``. ``outer`` has, for each group of
    the group's ``by``, the dimension of the same tensor that it lies in and its index at each position there.
    """

    tensor: str
    dim: int
    index: np.ndarray
    role: str
    outer: tuple[tuple[int, np.ndarray], ...] = ()


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Channels that can only be removed together, wherever they occur.

    ``frozen`` says why they must stay (None: free). Groups of the same ``tie`` keep the same number of channels. A
    group that is not ``primary`` is one factor of a dimension (heads x head width) whose other factor is cut by
    default. ``by`` names the groups in each of whose channels this one may keep its own, equal in number: heads for a
    head width, the groups of a convolution for the channels in each; ``rows`` is how many such choices there are.
    ``rivals`` names the free groups that are the other factors. ``kind`` says what the channels are for, one of
    `structprune.KINDS`. ``changes`` lists the statistics (norms, softmax, means) that a cut would take over fewer
    channels.
    """

    name: str
    size: int
    members: tuple[Member, ...]
    frozen: Frozen | None
    tie: int
    primary: bool
    atom: Atom = field(repr=False)
    by: tuple[str, ...] = ()
    rows: int = 1
    kind: str = "hidden"
    rivals: tuple[str, ...] = ()
    changes: tuple[Change, ...] = ()

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of the tensors that the group reaches into, each once."""
        return tuple(dict.fromkeys(member.tensor for member in self.members))


@dataclass(frozen=True)
class Layer:
    """The inferred types of what one operation returned: einops-like, one string for each tensor."""

    name: str
    operation: str
    types: tuple[str, ...]


@dataclass(frozen=True)
class Violation:
    """A comparison in the user's code that would turn out otherwise after the cut."""

    groups: tuple[int, ...]
    reason: str


class DependencyGraph:
    """The channel groups of a network, free and frozen, with prices and the way from a choice to a plan.

    Made by `structprune.trace`; ``print(graph)`` shows a table of the groups.
    """

    def __init__(
        self,
        groups: tuple[ChannelGroup, ...],
        run: Run,
        settled: Settlement,
        fingerprint: str,
        parameters: frozenset[str],
        present: Mapping[str, float],
        stored: Mapping[str, int],
    ) -> None:
        self.groups = groups
        self.fingerprint = fingerprint
        self.shapes = {name: tuple(dim.size for dim in dims) for name, dims in run.named.items()}
        self.run = run
        self._present = dict(present)
        self._settled = settled
        self._position = {group.atom: i for i, group in enumerate(groups)}
        self._parameters = parameters
        self._stored = stored
        self._prices: dict[str, Polynomial] = {}

    @property
    def operations(self) -> str:
        """The digest (hex) of what the network does to its inputs, sizes apart: the same for the same code on inputs of
        any batch size; empty where values decide which layers run.
        """
        return self.run.operations

    # -- prices --------------------------------------------------------------------------------------------------

    def polynomial(self, quantity: str) -> Polynomial:
        """Return ``"macs"``, ``"params"``, ``"channels"`` or ``"file_size"`` as a polynomial of the counts."""
        if quantity not in self._prices:
            self._prices[quantity] = compile_products(
                self._products(quantity), self._variables(), len(self.groups)
            )
        return self._prices[quantity]

    def _products(self, quantity: str) -> Iterator[tuple[Expr, ...]]:
        if quantity == "macs":
            yield from (factors for _, _, factors in self.run.context.costs)
        elif quantity == "params":
            yield from (dims for name, dims in self.run.named.items() if name in self._parameters)
        elif quantity == "channels":
            yield from ((group.atom,) for group in self.groups if group.frozen is None and group.primary)
        elif quantity == "file_size":
            yield from ((Const(size), *self.run.named[name]) for name, size in self._stored.items())
        else:
            raise KeyError(f"{quantity!r}: expected 'macs', 'params', 'channels' or 'file_size'")

    def _variables(self) -> dict[Atom, int]:
        return {group.atom: i for i, group in enumerate(self.groups) if group.frozen is None}

    def price(self, quantity: str, counts: np.ndarray) -> float:
        """Return what the network costs when each group keeps ``counts`` (int64 ``[groups]``) of its channels.

        ``quantity`` is ``"macs"``, ``"params"``, ``"channels"``, ``"peak_memory"`` (bytes of the activations that are
        live at once, as `peak_activation_bytes` counts them) or ``"file_size"`` (bytes of the weights as `save` writes
        them, without the file's header).
        """
        return float(self.levels(quantity, np.asarray(counts)[None]).max())

    def levels(self, quantity: str, counts: np.ndarray) -> np.ndarray:
        """Return figures of many choices, float64 ``[choices, parts]`` for counts ``[choices, groups]``.

        The price is the largest of a row: of the moments of a forward for the peak of memory, else there is only one.
        """
        if quantity == "peak_memory":
            return self._peaks(counts)
        return self.polynomial(quantity).many(counts)[:, None]

    @cached_property
    def _peaks(self) -> Peaks:
        return compile_peaks(self.run, self._variables(), len(self.groups))

    @property
    def original(self) -> dict[str, float]:
        """What the network that was never pruned costs on these inputs, by quantity."""
        sizes = self.sizes()
        return {name: self.price(name, sizes) / self._present.get(name, 1.0) for name in _QUANTITIES}

    @property
    def unused(self) -> tuple[str, ...]:
        """The parameters that the traced forward did not reach: other inputs, or training, may."""
        unused = self.run.unused & self._parameters
        return tuple(name for name in self.run.named if name in unused)

    def _remaining(self, counts: np.ndarray) -> dict[str, float]:
        whole = self.original
        return {
            name: min(1.0, self.price(name, counts) / whole[name]) for name in _QUANTITIES if whole[name] > 0
        }

    def sizes(self) -> np.ndarray:
        """Return the size of every group, int64 ``[groups]``: the counts of the network as it is."""
        return np.array([group.size for group in self.groups], dtype=np.int64)

    def counts(self, plan: PruningPlan) -> np.ndarray:
        """Return how many channels a plan keeps of every group, int64 ``[groups]``."""
        kept = {group.name: group.count for group in plan.groups}
        return np.array([kept.get(group.name, group.size) for group in self.groups], dtype=np.int64)

    def coverage(self, quantity: str) -> float:
        """Return the share of ``"params"`` or ``"macs"`` that lies in layers with a free group, in [0, 1]."""
        price = self.polynomial(quantity)
        whole = price(self.sizes())
        return (whole - price.constant) / whole if whole else 0.0

    def governed(self, quantity: str) -> np.ndarray:
        """Return for every group the ``"params"`` or ``"macs"`` of the layers it reaches into, float64 ``[groups]``."""
        variables = {group.atom: i for i, group in enumerate(self.groups)}
        return compile_products(self._products(quantity), variables, len(self.groups)).governed(self.sizes())

    # -- from a choice to a plan -----------------------------------------------------------------------------------

    def violations(self, counts: np.ndarray) -> tuple[Violation, ...]:
        """Return the comparisons in the user's code that would turn out otherwise under ``counts``."""
        kept = {group.atom: int(count) for group, count in zip(self.groups, counts, strict=True)}
        attributes = self._settled.attributes
        found = []
        for one in self._settled.comparisons:
            left, right = one.left.value(kept, attributes), one.right.value(kept, attributes)
            if one.function(left, right) != one.truth:
                reason = f"{one.left} {one.symbol} {one.right} at {one.where} would become {left} {one.symbol} {right}"
                found.append(Violation(self._behind(one.left, one.right), reason))
        return tuple(found)

    def _behind(self, *nodes: Node) -> tuple[int, ...]:
        return tuple(
            self._position[leaf] for leaf in involved(self._settled, nodes) if leaf in self._position
        )

    def plan(
        self,
        keep: Mapping[str, Keep],
        *,
        budget: Budget | None = None,
        criterion: str = "",
        scope: str = "",
    ) -> PruningPlan:
        """Return the plan that keeps the channels ``keep`` of each named group, and all of the others.

        A group that has ``by`` takes either channels for all, or nested sequences with the channels for each channel of
        those groups, equal in number. Raises PlanError for an unknown or frozen group, an index out of range, unequal
        counts in a tie, or a comparison in the user's code that would turn out otherwise.
        """
        if not isinstance(keep, Mapping):
            raise PlanError(f"plan({keep=}): expected channels by group name, as {{'fc1': [0, 2, 3]}}")
        known = {group.name: group for group in self.groups}
        kept = {name: checked(known, name, indices) for name, indices in keep.items()}
        counts = np.array([kept_count(kept.get(g.name), g.size) for g in self.groups], dtype=np.int64)
        self._check(counts)
        cut = cut_of(known, kept)
        tensors = kept_of(self.run.named, cut)
        return PruningPlan(
            fingerprint=self.fingerprint,
            groups=tuple(group_plan(g, kept.get(g.name)) for g in self.groups if g.frozen is None),
            tensors=tensors,
            shapes={name: self.shapes[name] for name in tensors},
            attributes=self._edits({atom: count_of(choice) for atom, choice in cut.items()}),
            budget=budget,
            criterion=criterion,
            scope=scope,
            remaining={name: share for name, share in self._remaining(counts).items() if share > 0},
        )

    def _check(self, counts: np.ndarray) -> None:
        by_tie: dict[int, tuple[str, int]] = {}
        for group, count in zip(self.groups, counts, strict=True):
            if group.frozen is None:
                name, other = by_tie.setdefault(group.tie, (group.name, int(count)))
                if other != count:
                    raise PlanError(
                        f"groups {name!r} and {group.name!r} must keep equal numbers, got {other} and {count}"
                    )
        for violation in self.violations(counts):
            raise PlanError(f"the cut would change a decision of the model's code: {violation.reason}")

    def _edits(self, counts: Mapping[Atom, int]) -> tuple[AttributeEdit, ...]:
        edits = []
        for attribute, expr in self._settled.attributes.items():
            new = axes.size_under(expr, counts)
            if new != attribute.number:
                edits.append(AttributeEdit(attribute.module, attribute.path, attribute.number, new))
        return tuple(sorted(edits, key=lambda edit: (edit.module, [str(step) for step in edit.path])))

    def attributes(self) -> tuple[Attribute, ...]:
        """Return the integer attributes of the model that follow a dimension's size."""
        return tuple(self._settled.attributes)

    # -- what people read ------------------------------------------------------------------------------------------

    def names(self) -> dict[Atom, str]:
        """Return the name of each group's axis, as it is shown in types."""
        return {group.atom: group.name for group in self.groups}

    def types(self) -> tuple[Layer, ...]:
        """Return the inferred type of every parameter, buffer and intermediate tensor, einops-like."""
        names = self.names()

        def show(dims: Sequence[Expr]) -> str:
            return ", ".join(axes.show(dim, names) for dim in dims)

        own = [Layer(name, "tensor", (show(dims),)) for name, dims in self.run.named.items()]
        passed = [
            Layer(record.layer, record.operation, tuple(show(dims) for _, dims, _ in record.writes))
            for record in self.run.records
        ]
        return (*own, *passed)

    def __str__(self) -> str:
        from structprune.table import graph_table

        return graph_table(self)
