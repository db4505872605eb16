"""Data as batches, read alike by criteria and by refitting: checked as they are read, and run through a network."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from structprune.errors import InputError, StructpruneError
from structprune.inputs import batch_size, map_tensors, normalize_inputs, tensors_in
from structprune.observe import Each, Twin
from structprune.outputs import output_tensors

__all__ = ["Batch", "batches_of", "iterable_of_batches", "sample_of", "told"]

_ROWS = 32  # the batch that a lone tensor is split into


@dataclass(frozen=True)
class Batch:
    """One step of the data: the arguments of forward, the target (None where there is none), how many samples, and
    which batch of the data it is, or is a sample of. ``shared`` numbers the tensors of the inputs that every sample
    takes whole, though they are as long as the batch.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    target: Any
    size: int
    number: int = 0
    shared: frozenset[int] = frozenset()

    def samples(self) -> Iterator[Batch]:
        """Yield the samples one by one: what has the batch's size in dim 0 is taken apart there."""
        for number in range(self.size):
            yield self.sample(number)

    def sample(self, number: int) -> Batch:
        """One of the samples."""
        places = itertools.count()

        def one(tensor: Tensor) -> Tensor:
            return tensor if next(places) in self.shared else sample_of(tensor, number, self.size)

        args, kwargs = map_tensors((self.args, self.kwargs), one)
        return Batch(args, kwargs, sample_of(self.target, number, self.size), 1, self.number)

    def through(self, twin: Twin, each: Each | None = None) -> Any:
        """What a network makes of the batch, ``each`` being called for every product with a parameter.

        Raises InputError where the forward fails, and where it makes NaN of inputs that hold minus infinity.
        """
        try:
            if each is None:
                output = twin.run(*self.args, **self.kwargs)
            else:
                output = twin.watch(each, *self.args, **self.kwargs)
        except StructpruneError:
            raise
        except Exception as error:  # the public boundary around the user's forward: any error it can raise
            given = ", ".join(told(tensor) for tensor in tensors_in((self.args, self.kwargs)))
            raise InputError(
                f"the model's forward failed on batch {self.number} of data ({self.size} "
                f"sample{'s' * (self.size > 1)}: {given}), in eval mode{' and with gradients' * twin.gradients}: "
                f"{type(error).__name__}: {error}. Each batch is what the model takes, like its example inputs; one "
                "pair alone is [(inputs, target)]"
            ) from error
        if self._masked() and any(bool(tensor.isnan().any()) for tensor in _numbers(output_tensors(output))):
            raise _not_finite(self)
        return output

    def _masked(self) -> bool:
        return any(bool((tensor == -torch.inf).any()) for tensor in self.numbers())

    def numbers(self) -> list[Tensor]:
        """The tensors of floating-point numbers among the inputs; those of complex ones as pairs."""
        return _numbers(tensors_in((self.args, self.kwargs)))


def iterable_of_batches(data: Any, name: str) -> Iterable[Any]:
    """The data as an iterable of batches: the parts of a lone tensor, anything else as it is.

    Raises InputError for what is no iterable of batches; ``name`` is what the caller knows it by.
    """
    if isinstance(data, Tensor):
        return torch.split(data, _ROWS) if data.ndim else ()
    able = isinstance(data, Iterable) or hasattr(type(data), "__getitem__")
    if isinstance(data, Mapping | str | bytes) or not able:
        raise InputError(
            f"{name} is a {type(data).__name__}; expected an iterable of batches, such as a list of inputs or a "
            "DataLoader: [inputs] where there is one batch"
        )
    iterable: Iterable[Any] = data
    return iterable


def batches_of(model: nn.Module, data: Iterable[Any]) -> Iterator[Batch]:
    """Yield the items of data as batches: a pair is (inputs, target), anything else inputs alone.

    Raises InputError, with the number of the batch, for one that the model's forward does not take, one without a
    sample, and one whose inputs hold NaN or infinity; minus infinity passes, since attention masks hold it.
    """
    signature = inspect.signature(model.forward)
    for number, item in enumerate(data):
        pair = isinstance(item, tuple | list) and not hasattr(item, "_fields") and len(item) == 2
        inputs, target = item if pair else (item, None)
        try:
            args, kwargs = normalize_inputs(tuple(inputs) if isinstance(inputs, list) else inputs)
            signature.bind(*args, **kwargs)
        except InputError as error:
            raise InputError(f"batch {number} of data: {error}") from error
        except TypeError as error:
            raise InputError(
                f"batch {number} of data does not fit the model's forward: {error}. A pair is (inputs, target): "
                "two positional arguments without a target are written ((a, b), None)"
            ) from None
        batch = Batch(args, kwargs, target, batch_size((args, kwargs)), number)
        if not batch.size:
            raise InputError(f"batch {number} of data holds no sample: leave it out")
        if any(bool((tensor.isnan() | (tensor == torch.inf)).any()) for tensor in batch.numbers()):
            raise _not_finite(batch)
        yield batch


def sample_of(tree: Any, number: int, size: int) -> Any:
    """One sample of a batch: of every tensor whose dim 0 has the batch's size, that part."""

    def one(tensor: Tensor) -> Tensor:
        return tensor[number : number + 1] if tensor.ndim and tensor.shape[0] == size else tensor

    return map_tensors(tree, one)


def told(value: Any) -> str:
    """What a value is, for a message."""
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)} of {value.dtype}"
    return "nothing" if value is None else f"a {type(value).__name__}"


def _numbers(tensors: Iterable[Tensor]) -> list[Tensor]:
    plain = [t.detach() for t in tensors if t.layout is torch.strided and not t.is_nested]
    real = [torch.view_as_real(t.resolve_conj()) if t.is_complex() else t for t in plain]
    return [t for t in real if t.is_floating_point()]


def _not_finite(batch: Batch) -> InputError:
    rows = [t.isfinite().flatten(1).all(1) for t in batch.numbers() if t.ndim > 1 and len(t) == batch.size]
    bad = [number for finite in rows for number in (~finite).nonzero().flatten().tolist()]
    where = f", first in its sample {min(bad)}" if bad else ""
    return InputError(
        f"batch {batch.number} of data holds NaN or infinity{where}: leave such samples out, or repair them "
        "(torch.nan_to_num)"
    )
