"""What judges a model's operations as they pass: each asks its rule how axes flow through it.

A dispatch mode sees every ATen operation; a function mode above it hands out integers that remember where they came
from, and sees the calls of torch's Python interface that are judged as a whole. No other file knows dispatch modes.
"""

from __future__ import annotations

import itertools
import operator
import weakref
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from structprune import axes
from structprune.axes import Const, Expr, Frozen, product
from structprune.errors import TraceError
from structprune.inputs import map_tensors
from structprune.nodes import Size
from structprune.provenance import TracedInt, asked_by_user, plain, user_line
from structprune.rules import Call, Context, FunctionCall, Site, Uncovered, lookup, lookup_function, source
from structprune.rules.context import Dims, constants, free, iter_tensors
from structprune.shapes import shortcut
from structprune.stand_ins import IdentityMap

__all__ = [
    "INPUT",
    "LAYOUT",
    "READERS",
    "Held",
    "Record",
    "RuleError",
    "Step",
    "Tracer",
    "numbers",
    "on_meta",
    "watching",
]

INPUT = Frozen("model input")
_SHAPE = torch.Tensor.shape.__get__  # type: ignore[attr-defined]
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
LAYOUT = frozenset(("view", "_unsafe_view", "_reshape_alias", "clone", "contiguous", "detach", "alias"))
"""Operations that only settle how a tensor lies in memory: what is cut or masked lies otherwise."""
_ASKING = frozenset(("dim", "contiguous", "is_contiguous"))
_COMPUTED = frozenset(
    ("number", "Optional[number]", "Tensor")
)  # the types of arguments that are computed with
_LEAVING = frozenset(("numpy", "tolist", "__array__", "__dlpack__"))
READERS = frozenset(("size", "numel", "nelement", "stride", "__len__")) | _LEAVING
_NARROW = frozenset((torch.float32, torch.float16, torch.bfloat16, torch.complex64))


class RuleError(TraceError):
    """A rule and an operation disagree: a mistake in the rule, never in the user's model."""


def _forms(call: Call) -> str:
    return ", ".join(str(list(tensor.shape)) for tensor in call.tensors())


class Held(NamedTuple):
    """A tensor as it lies in memory: the number of its storage, its dimensions, and the bytes of one element."""

    place: int
    dims: Dims
    itemsize: int


@dataclass(frozen=True, slots=True)
class Record:
    """One operation as it ran: its layer, the dimensions it was given, the storages it read, and what it returned."""

    layer: str
    operation: str
    given: tuple[Dims, ...]
    reads: tuple[int, ...]
    writes: tuple[Held, ...]


@dataclass(slots=True)
class Step:
    """One call of torch's Python interface, with the numbers in it that are no sizes.

    Which operations it is made of is torch's own choice, by memory layout too.
    """

    function: str
    numbers: list[object]
    where: str = ""


class Tracer:
    """Judges operations as they pass; ``kind`` is ``"meta"``, ``"fake"`` or ``"real"``.

    ``named`` are the dimensions of the model's tensors that an earlier run has found (None: each a new atom).
    """

    def __init__(self, kind: str, named: dict[str, Dims] | None = None) -> None:
        self.kind = kind
        self.named = named
        dims: MutableMapping[Any, Dims] = IdentityMap() if kind == "meta" else WeakTensorKeyDictionary()
        live, derived = (IdentityMap() if kind == "meta" else WeakTensorKeyDictionary() for _ in range(2))
        self.context = Context(dims, live=live, derived=derived)
        self.records: list[Record] = []
        self.steps: list[Step] = [Step("", [])]
        self.muted = False
        self.narrow = False  # whether a number that depends on the inputs was ever less exact than float64
        self.read: set[int] = set()
        self.made: list[weakref.ref[torch.Tensor]] = []
        self._places: dict[int, tuple[weakref.ref[Any], int]] = {}
        self._numbers = itertools.count()
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
                self.judge(rule, Call(context, name, arguments, _written(operation, arguments)))
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
        self._passed(name, args, kwargs, out)
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

    def _passed(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
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
        if reached:
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
        reads = tuple(map(self.place, tensors))
        writes = tuple(self.held(tensor) for tensor in iter_tensors((out,)))
        self.records.append(Record(self.context.layer, name, given, reads, writes))
        for tensor in iter_tensors((out,)):
            if tensor not in dims:
                dims[tensor] = self._unjudged(tensor, args)

    def held(self, tensor: torch.Tensor) -> Held:
        """Return a tensor as it lies in memory."""
        dims = self.context.dims.get(tensor) or constants(tensor)
        return Held(self.place(tensor), dims, tensor.element_size())

    def place(self, tensor: torch.Tensor) -> int:
        """Return a number for the storage of a tensor that no other storage of the run has."""
        storage = tensor.untyped_storage() if tensor.layout == torch.strided else tensor
        known = self._places.get(id(storage))
        if (
            known is None or known[0]() is not storage
        ):  # the number of an object that is gone may be given again
            known = (weakref.ref(storage), next(self._numbers))
            self._places[id(storage)] = known
        return known[1]

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
            return self.shape(args[0]) if function == _SHAPE else function(*args, **kwargs)
        if name in READERS and isinstance(args[0], torch.Tensor):
            if name in ("size", "numel", "nelement"):
                return self._sizes(name, args, kwargs)
            if name == "stride":
                return self._strides(args, kwargs)
            if name == "__len__":  # a plain int, whatever is returned
                self.context.exposed |= any(free(dim) for dim in self.context.dims.get(args[0], ())[:1])
                return function(*args, **kwargs)
            self._leaves(name, args[0])
        self.began(name, args, kwargs)
        call = FunctionCall(name, [], args, kwargs)
        _collect(call, args)
        _collect(call, tuple(kwargs.values()))
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
                self._whole_slices(call)
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
        self._passed(name, args, kwargs, out)
        return out

    def shape(self, tensor: torch.Tensor) -> torch.Size:
        dims = self.context.dims.get(tensor)
        plain = _SHAPE(tensor)
        if dims is None or all(isinstance(dim, Const) for dim in dims):
            return plain  # type: ignore[no-any-return]
        return torch.Size([self._traced(size, dim) for size, dim in zip(plain, dims, strict=True)])

    def _traced(self, size: int, dim: Expr) -> int:
        if not free(dim):
            return size
        self.context.exposed = self.context.exposed or asked_by_user()
        return TracedInt(size, Size(dim), self.context.ledger)

    def _sizes(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        shape = self.shape(args[0])
        chosen = args[1] if len(args) > 1 else kwargs.get("dim")
        if name == "size":
            return shape if chosen is None else shape[plain(chosen)]
        count: int = 1
        for size in shape:
            count = count * size
        return count

    def _strides(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A stride of a contiguous tensor is the product of the sizes after it."""
        tensor, *rest = args
        chosen = rest[0] if rest else kwargs.get("dim")
        strides: tuple[int, ...] = tensor.stride()
        dims = self.context.dims.get(tensor)
        if dims is not None and tensor.is_contiguous():
            strides = tuple(self._traced(n, product(dims[i + 1 :])) for i, n in enumerate(strides))
        return strides if chosen is None else strides[plain(chosen)]

    def _whole_slices(self, call: FunctionCall) -> None:
        """A slice that ends where its dimension does is no operation: it must go on reaching that far."""
        tensor, index = call.args[0], call.args[1] if isinstance(call.args[1], tuple) else (call.args[1],)
        if not all(isinstance(one, slice | int) for one in index):
            return
        for dim, one in zip(self.context.dims.get(tensor, ()), index, strict=False):
            stop = one.stop if isinstance(one, slice) else None
            if isinstance(stop, TracedInt) and plain(stop) >= dim.size:
                call.used.update(i for i, value in enumerate(call.ints) if value is stop)
                self.context.ledger.compare(
                    operator.ge, "ge", stop, TracedInt(dim.size, Size(dim), stop.ledger)
                )

    def _leaves(self, name: str, tensor: torch.Tensor) -> None:
        """What happens to numbers outside of torch is not seen."""
        for dim in self.context.dims.get(tensor, ()):
            if free(dim):
                axes.freeze(dim, Frozen(f"{name}() takes these numbers out of torch", user_line()))


def numbers(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[object]:
    """Yield the numbers among the arguments; an int counts where the operation computes with it."""
    for position, argument in enumerate(operation._schema.arguments):
        value = args[position] if position < len(args) else kwargs.get(argument.name)
        if isinstance(value, float):
            yield value
        elif isinstance(value, int) and (argument.name == "k" or str(argument.type) in _COMPUTED):
            yield plain(value)


def _written(operation: Any, arguments: dict[str, Any]) -> list[Any]:
    """Return the arguments that an operation writes into."""
    written = (
        a.name for a in operation._schema.arguments if a.alias_info is not None and a.alias_info.is_write
    )
    return [arguments[name] for name in written if name in arguments]


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, tracer: Tracer) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tracer = tracer

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled in here, and the guard would import the compiler and cost each operation

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return self.tracer.dispatch(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return self.tracer.function(func, args, kwargs or {})


def _collect(call: FunctionCall, values: Any) -> None:
    for value in values:
        kind = type(value)
        if kind is TracedInt:
            call.traced = True
            call.ints.append(value)
        elif kind is int:
            call.ints.append(value)
        elif kind in (tuple, list, torch.Size):
            _collect(call, value)
        elif kind is slice:
            _collect(call, (value.start, value.stop, value.step))


def on_meta(
    operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments, with what an operation creates and what was created outside the trace on meta."""
    if "device" in kwargs:
        kwargs = {**kwargs, "device": torch.device("meta")}
    tensors = list(iter_tensors((args, list(kwargs.values()))))
    if (
        not tensors
        and "device" not in kwargs
        and any(a.name == "device" for a in operation._schema.arguments)
    ):
        kwargs = {**kwargs, "device": torch.device("meta")}
    if any(not tensor.is_meta and tensor.ndim for tensor in tensors):
        args, kwargs = map_tensors((args, kwargs), lambda t: t.to("meta") if t.ndim else t)
    return args, kwargs


@contextmanager
def watching(tracer: Tracer) -> Iterator[None]:
    """Let ``tracer`` see every operation and every function of torch's that this thread calls."""
    with _Operations(tracer), _Functions(tracer):
        yield
