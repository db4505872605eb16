"""What judges a model's operations as they pass: each asks its rule how axes flow through it.

It is shown every ATen operation, and above these the calls of torch's Python interface: some are judged as a whole, and
the sizes that they give are integers that remember where they came from.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, MutableMapping, Sequence
from typing import Any

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from structprune.axes import Const, Frozen
from structprune.errors import TraceError
from structprune.handed_out import SHAPE, HandedOut
from structprune.operands import collect, numbers, on_meta, settings, written
from structprune.provenance import TracedInt, user_line
from structprune.records import Places, Record, Step
from structprune.rules import Call, Context, FunctionCall, Site, Uncovered, lookup, lookup_function, source
from structprune.rules.context import Dims, constants, free, iter_tensors
from structprune.rules.scales import follow_scales
from structprune.shapes import shortcut
from structprune.stand_ins import IdentityMap

__all__ = ["INPUT", "READERS", "RuleError", "Tracer"]

INPUT = Frozen("model input")
# Judged even where nothing may be cut: operations that cost MACs, and those that make dimensions from nothing.
_ALWAYS = frozenset(
    (
        *(
            "mm",
            "bmm",
            "addmm",
            "baddbmm",
            "convolution",
            "mv",
            "addmv",
            "dot",
            "linear",
            "_trilinear",
            "expand",
        ),
        *("zeros", "ones", "empty", "full", "new_zeros", "new_ones", "new_empty", "new_full"),
    )
)
_ASKING = frozenset(("dim", "contiguous", "is_contiguous"))
_LEAVING = frozenset(("numpy", "tolist", "__array__", "__dlpack__"))
READERS = frozenset(("size", "numel", "nelement", "stride", "__len__")) | _LEAVING
_NARROW = frozenset((torch.float32, torch.float16, torch.bfloat16, torch.complex64))


class RuleError(TraceError):
    """A rule and an operation disagree: a mistake in the rule, never in the user's model."""


def _forms(call: Call) -> str:
    return ", ".join(str(list(tensor.shape)) for tensor in call.tensors())


class Tracer:
    """Judges operations as they pass; ``kind`` is ``"meta"``, ``"fake"`` or ``"real"``.

    ``named`` are the dimensions of the model's tensors that an earlier run has found (None: each a new atom).
    """

    def __init__(self, kind: str, named: dict[str, Dims] | None = None) -> None:
        self.kind = kind
        self.named = named
        dims: MutableMapping[Any, Dims] = IdentityMap() if kind == "meta" else WeakTensorKeyDictionary()
        live, derived, factors = (
            IdentityMap() if kind == "meta" else WeakTensorKeyDictionary() for _ in range(3)
        )
        self.context = Context(dims, live=live, derived=derived, factors=factors)
        self.records: list[Record] = []
        self.steps: list[Step] = [Step("", [])]
        self.muted = False
        self.narrow = False  # whether a number that depends on the inputs was ever less exact than float64
        self.read: set[int] = set()
        self.made: list[weakref.ref[torch.Tensor]] = []
        self.places = Places(self.context)
        self.sizes = HandedOut(self.context)
        self._known: dict[Any, tuple[Any, str, tuple[str, ...], dict[str, Any], bool]] = {}

    # -- operations ----------------------------------------------------------------------------------------------

    def dispatch(self, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.kind == "meta":
            args, kwargs = on_meta(operation, args, kwargs)
        if self.muted:
            return operation(*args, **kwargs)
        out = self.execute(operation, args, kwargs)
        self.steps[-1].numbers.extend(numbers(operation, args, kwargs))
        rule, name, names, defaults, always = self._known.get(operation) or self._learn(operation)
        context = self.context
        sites = len(context.sites)
        if always or self._concerns(args, kwargs):
            arguments = {**defaults, **dict(zip(names, args, strict=False)), **kwargs}
            made = list(iter_tensors((out,)))
            if any(tensor.is_nested for tensor in made):
                raise RuleError(
                    f"{name} at {user_line()} makes a nested tensor, of rows that differ: pad them"
                )
            if made:
                self.judge(rule, Call(context, name, arguments, out))
            elif operation._schema.is_mutable:  # it writes into its arguments and returns nothing
                self.judge(rule, Call(context, name, arguments, written(operation, arguments)))
            # else a device, a number, a truth value: the program's to use
        else:
            for tensor in iter_tensors(
                (out,)
            ):  # written in place: constants too may lie otherwise now (unsqueeze_)
                known = context.dims.get(tensor)
                if known is not None and [dim.size for dim in known] != list(tensor.shape):
                    context.dims[tensor] = constants(tensor)
        if len(context.sites) > sites:
            out = self.revised(context.sites[-1], operation, names, args, kwargs, out)
        self._passed(name, args, kwargs, out, settings(operation, args, kwargs))
        return out

    def execute(self, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one operation; a replay puts its masks here."""
        if self.kind == "meta":
            known = shortcut(operation)
            out = None if known is None else known(args, kwargs)
            if out is not None:
                return out
        return operation(*args, **kwargs)

    def revised(self, site: Site, operation: Any, names: Any, args: Any, kwargs: Any, out: Any) -> Any:
        """Return the result of an operation that reads across a dimension; a masked run puts its own."""
        return out

    def judge(self, rule: Any, call: Call) -> None:
        if rule is None:
            self.context.foreign.add(call.name)
            call.freeze_all(f"no rule for the operation {call.name}; structprune.rule registers one")
            return
        try:
            rule(call)
        except Uncovered as reason:
            call.freeze_all(str(reason))
        except Exception as error:  # the boundary around a rule, which may be the user's
            raise RuleError(
                f"the rule of {call.name}, at {source(rule)}, fails on {_forms(call)} at {user_line()}: {error!r}"
            ) from error

    def _learn(self, operation: Any) -> tuple[Any, str, tuple[str, ...], dict[str, Any], bool]:
        schema = operation._schema
        namespace, _, name = schema.name.partition("::")
        name = name.rstrip("_") if namespace in ("aten", "prims") else schema.name
        names = tuple(argument.name for argument in schema.arguments)
        defaults = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
        known = (lookup(operation), name, names, defaults, name in _ALWAYS)
        self._known[operation] = known
        return known

    def _concerns(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether anything the operation reads may be cut; constants in, constants out."""
        if self.context.function is not None and self.context.function.traced:
            return True
        dims = self.context.dims
        for tensor in iter_tensors((args, list(kwargs.values()))):
            known = dims.get(tensor)
            if known is not None and not all(isinstance(dim, Const) for dim in known):
                return True
        return False

    def _passed(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, how: Iterable[str]
    ) -> None:
        live = self.context.live
        self.note(out)
        if any(tensor.is_nested for tensor in iter_tensors((out,))):
            raise RuleError(
                f"{name} at {user_line()} makes a nested tensor, whose rows differ in length: pad them"
            )
        tensors = list(iter_tensors((args, list(kwargs.values()))))
        self.read.update(map(id, tensors))
        reached = any(tensor in live for tensor in tensors)
        self._trail(name, tensors, live if reached else self.context.derived, out)
        follow_scales(self.context, name, tensors, out)
        if reached:
            self.steps[-1].layer = self.context.layer
            self.steps[-1].settings.update(how)
            for tensor in iter_tensors((out,)):
                self.narrow |= tensor.dtype in _NARROW
        self._record(name, tensors, args, out)
        self.context.index += 1

    def _trail(self, name: str, given: list[torch.Tensor], flow: MutableMapping[Any, Any], out: Any) -> None:
        """Keep in ``flow`` which layers made what the operation returned, as `Lineage` numbers them."""
        context = self.context
        read = [tensor for tensor in given if tensor in context.live or tensor in context.derived]
        made = [context.live.get(tensor, 0) | context.derived.get(tensor, 0) for tensor in read]
        reached = 0
        for tensor in given:
            reached |= context.live.get(tensor, 0)
        follows = bool(read) or context.lineage.makes
        dims = context.dims.get(out, ()) if isinstance(out, torch.Tensor) else ()
        same = len({tensor.shape for tensor in read}) == 1
        makers = context.lineage.passed(name, made, reached, same, dims)
        for tensor in iter_tensors((out,)) if follows else ():
            values = tensor.is_floating_point() or tensor.is_complex()
            flow[tensor] = makers if values else 0  # masks and positions carry no values on

    def note(self, out: Any) -> None:
        """Keep in mind, without keeping alive, what the run has made."""
        self.made.extend(weakref.ref(tensor) for tensor in iter_tensors((out,)))

    def _record(self, name: str, tensors: Sequence[torch.Tensor], args: tuple[Any, ...], out: Any) -> None:
        dims = self.context.dims
        given = tuple(dims.get(tensor) or () for tensor in tensors)
        reads = tuple(map(self.places.of, tensors))
        writes = tuple(self.places.held(tensor) for tensor in iter_tensors((out,)))
        self.records.append(Record(self.context.layer, name, given, reads, writes))
        for tensor in iter_tensors((out,)):
            if tensor not in dims:
                dims[tensor] = self._unjudged(tensor, args)

    def _unjudged(self, tensor: torch.Tensor, args: tuple[Any, ...]) -> Dims:
        """Return the constant dimensions of what an operation made of constants, with the reasons that are known."""
        if tensor in self.context.live:
            return tuple(Const(size, INPUT) for size in tensor.shape)
        first = args[0] if args else None
        if isinstance(first, torch.Tensor) and first.shape == tensor.shape:
            known = self.context.dims.get(first, ())
            if known and all(isinstance(dim, Const) for dim in known):
                return known
        return constants(tensor)

    # -- functions -----------------------------------------------------------------------------------------------

    def function(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = getattr(function, "__name__", "").partition(".")[0]  # an overload is named "narrow.default"
        if name == "__get__":
            return self.sizes.shape(args[0]) if function == SHAPE else function(*args, **kwargs)
        if name in READERS and isinstance(args[0], torch.Tensor):
            if name in ("size", "numel", "nelement"):
                return self.sizes.counted(name, args, kwargs)
            if name == "stride":
                return self.sizes.strides(args, kwargs)
            if name == "__len__":  # a plain int, whatever is returned
                self.context.exposed |= any(free(dim) for dim in self.context.dims.get(args[0], ())[:1])
                return function(*args, **kwargs)
            self.sizes.leaves(name, args[0])
        self.began(name, args, kwargs)
        call = FunctionCall(name, [], args, kwargs)
        collect(call, args)
        collect(call, tuple(kwargs.values()))
        outer, self.context.function = self.context.function, call
        try:
            found = lookup_function(function)
            out = (
                function(*args, **kwargs)
                if found is None
                else self._as_one(found, name, function, args, kwargs)
            )
        finally:
            self.context.function = outer
        if call.traced:
            if name == "__getitem__":
                self.sizes.whole_slices(call)
            for position, value in enumerate(call.ints):
                if isinstance(value, TracedInt) and position not in call.used:
                    self.context.ledger.number(value)
        return out

    def began(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note a step of the user's code; what only asks for how a tensor lies is none."""
        if name not in _ASKING:
            floats = [value for value in (*args, *kwargs.values()) if isinstance(value, float)]
            self.steps.append(Step(name, list(floats)))

    def _as_one(
        self, found: Any, name: str, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        rule, parameters = found
        arguments = {**dict(zip(parameters, args, strict=False)), **kwargs}
        self.muted = True
        try:
            out = self.execute(function, args, kwargs)
        finally:
            self.muted = False
        sites = len(self.context.sites)
        self.judge(rule, Call(self.context, name, arguments, out))
        if len(self.context.sites) > sites:
            self.muted = True
            try:
                out = self.revised(self.context.sites[-1], function, parameters, args, kwargs, out)
            finally:
                self.muted = False
        said = (value for value in (*args, *kwargs.values()) if isinstance(value, (float, str)))
        self._passed(name, args, kwargs, out, map(str, said))
        return out
