"""An independent judge of a pruned network: it knows values, not graphs, and shares no code with structprune.

Every number of the original is made unique first (`fill_distinct`), so that what a pruner removed is
known from the values alone: a number of the original that the pruned network no longer holds is gone. The
reference is the original with every such number replaced by NaN, "not there", run in float64 under
arithmetic that skips it:

- element-wise operations hand NaN on;
- contractions (matrix products, convolutions) leave out terms with a NaN, and give NaN where none is left;
- statistics (mean, variance, norms, softmax, maximum) are taken over what is there, so that a cut which
  changes a normalisation's function is judged against the same normalisation over the kept channels.

The pruned network is right if its outputs equal the reference's and no NaN arrives at them: nothing that
was removed is listened to, nothing that was kept is lost, and every channel still meets its own weights.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.oracle_arithmetic import SkipAbsent

__all__ = ["Verdict", "compare", "duplicate", "fill_distinct", "judge", "run"]

MANTISSA = 1 << 23


@dataclass(frozen=True)
class Verdict:
    """What the judge found: `exact`, `left whole`, `refused`, `broken` or `wrong`, and why."""

    status: str
    removed: float = 0.0  # share of the parameters that is gone
    error: float = math.nan  # largest difference of any output, relative to that output's largest value
    detail: str = ""
    pruned: nn.Module | None = None
    exception: BaseException | None = None


def tensors_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a module, under every name: parameters, buffers, plain attributes, lists, dicts."""
    for prefix, child in module.named_modules(remove_duplicate=False):
        dot = prefix + "." if prefix else ""
        held = {**child._parameters, **child._buffers}
        yield from ((dot + name, tensor) for name, tensor in held.items() if tensor is not None)
        for name, value in vars(child).items():
            if not name.startswith("_") or isinstance(value, Tensor):
                yield from _inside(dot + name, value)


def _inside(name: str, value: object) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from _inside(f"{name}.{i}", item)
    elif type(value) is dict:
        for key, item in value.items():
            yield from _inside(f"{name}.{key}", item)


def fill_distinct(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model itself, every floating-point number in it now unique: no two share a mantissa.

    Magnitudes follow the fan-in, so that activations stay near 1; buffers and norm scales are positive.
    """
    named = [(name, t) for name, t in tensors_of(model) if t.is_floating_point()]
    unique = {t.data_ptr() if t.numel() else id(t): (name, t) for name, t in reversed(named)}
    total = sum(t.numel() for _, t in unique.values())
    if total > MANTISSA:
        raise ValueError(f"{total} numbers cannot all differ in float32; judge a smaller network")
    generator = torch.Generator().manual_seed(seed)
    step = MANTISSA // max(1, total)
    order = torch.randperm(total, generator=generator) * step
    order += torch.randint(0, step, (total,), generator=generator)
    at = 0
    with torch.no_grad():
        for name, tensor in unique.values():
            if tensor.dtype not in (torch.float32, torch.float64):
                raise ValueError(f"{name} is {tensor.dtype}; the judge needs float32 or float64")
            mantissa = 1 + order[at : at + tensor.numel()].double() / MANTISSA
            at += tensor.numel()
            if tensor.dim() >= 2 and isinstance(tensor, nn.Parameter):
                fan_in = max(1, tensor[0].numel())
                scale = 2.0 ** round(math.log2(0.7 / math.sqrt(fan_in)))
                sign = torch.randint(0, 2, (tensor.numel(),), generator=generator) * 2 - 1
            else:
                scale = 0.25 if name.endswith("bias") else 0.5
                signed = name.endswith(("bias", "running_mean"))
                sign = torch.randint(0, 2, (tensor.numel(),), generator=generator) * 2 - 1 if signed else 1
            tensor.copy_((mantissa * scale * sign).view(tensor.shape))
    return model


def duplicate(module: nn.Module) -> nn.Module:
    """A deep copy, also of modules that hold tensors computed from others, which `copy.deepcopy` refuses."""
    plain = {id(t): t.detach().clone() for _, t in tensors_of(module) if not isinstance(t, nn.Parameter)}
    return copy.deepcopy(module, plain)


def _copy(module: nn.Module) -> nn.Module:
    """A float64 copy in eval mode; tensors kept outside parameters and buffers are cast as well."""
    twin = duplicate(module).eval().double()
    for _, tensor in tensors_of(twin):
        if tensor.dtype == torch.float32:
            tensor.data = tensor.data.double()
    return twin


def _absent(original: nn.Module, pruned: nn.Module) -> None:
    """Replace every number of `original` that `pruned` does not hold by NaN."""
    there = [t.detach().double().flatten() for _, t in tensors_of(pruned) if t.is_floating_point()]
    values = torch.cat([*there, torch.tensor([math.inf], dtype=torch.float64)]).sort().values
    done: set[int] = set()
    with torch.no_grad():
        for _, tensor in tensors_of(original):
            if tensor.is_floating_point() and id(tensor) not in done:
                done.add(id(tensor))
                gone = values[torch.searchsorted(values, tensor.detach().contiguous())] != tensor
                tensor.data = tensor.data.masked_fill(gone, math.nan)


def outputs_of(value: object) -> list[Tensor]:
    """The floating-point tensors in an output, in order: in containers, dataclasses and plain objects."""
    if isinstance(value, Tensor):
        return [value.detach()] if value.is_floating_point() or value.is_complex() else []
    if isinstance(value, Mapping):
        return [t for item in value.values() for t in outputs_of(item)]
    if isinstance(value, (list, tuple)):
        return [t for item in value for t in outputs_of(item)]
    if dataclasses.is_dataclass(value):
        return [t for f in dataclasses.fields(value) for t in outputs_of(getattr(value, f.name))]
    return (
        [t for item in vars(value).values() for t in outputs_of(item)] if hasattr(value, "__dict__") else []
    )


def _double(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, Mapping):
        return {key: _double(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [_double(item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


@contextlib.contextmanager
def _plainly() -> Iterator[None]:
    """No gradients, float64 by default, no fused attention: the arithmetic sees every step."""
    before, fast = torch.get_default_dtype(), torch.backends.mha.get_fastpath_enabled()
    torch.set_default_dtype(torch.float64)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.set_default_dtype(before)
        torch.backends.mha.set_fastpath_enabled(fast)


def run(model: nn.Module, inputs: Any) -> list[Tensor]:
    """The model's output tensors for one tensor, an args tuple, or a kwargs dict."""
    if isinstance(inputs, dict):
        return outputs_of(model(**inputs))
    return outputs_of(model(*inputs) if isinstance(inputs, tuple) else model(inputs))


def _ties(module: nn.Module) -> set[frozenset[str]]:
    """The sets of parameter names that share one tensor."""
    names: dict[int, set[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), set()).add(name)
    return {frozenset(group) for group in names.values() if len(group) > 1}


def _difference(expected: list[Tensor], got: list[Tensor]) -> tuple[float, str]:
    if [t.shape for t in expected] != [t.shape for t in got]:
        return (
            math.inf,
            f"output shapes {[tuple(t.shape) for t in got]}, {[tuple(t.shape) for t in expected]} asked",
        )
    worst = 0.0
    for want, have in zip(expected, got, strict=True):
        if want.isnan().any():
            return math.inf, "an output depends on something that was removed"
        if want.numel():
            finite = torch.isfinite(want)
            if not torch.equal(finite, torch.isfinite(have)):
                return math.inf, "an output is not finite where it should be"
            gap = (want - have)[finite].abs()
            top = want[finite].abs().max() if finite.any() else torch.tensor(1.0)
            worst = max(worst, float(gap.max() / top.clamp_min(1e-30)) if gap.numel() else 0.0)
    return worst, ""


def compare(original: nn.Module, pruned: nn.Module, inputs: Any, tolerance: float = 1e-9) -> Verdict:
    """The verdict on `pruned`; `original` must have gone through `fill_distinct` before it was pruned.

    Where the model itself computes parts in float32, the tolerance is 1e-5.
    """
    before = max(1, sum(p.numel() for p in original.parameters()))
    removed = 1 - sum(p.numel() for p in pruned.parameters()) / before
    lost = _ties(original) - _ties(pruned)
    if lost and {n for n, _ in pruned.named_parameters(remove_duplicate=False)} >= set().union(*lost):
        return Verdict(
            "broken", removed, detail=f"no longer tied: {sorted(map(sorted, lost))}", pruned=pruned
        )
    reference, inputs = _copy(original), _double(inputs)
    _absent(reference, pruned)
    with _plainly():
        try:
            got = run(_copy(pruned), inputs)
        except Exception as error:  # noqa: BLE001 - whatever the network raises is the finding
            detail = f"forward: {type(error).__name__}: {error}"
            return Verdict("broken", removed, detail=detail, pruned=pruned, exception=error)
        with SkipAbsent() as arithmetic:
            expected = run(reference, inputs)
    error, detail = _difference(expected, got)
    if error <= (1e-5 if arithmetic.saw_float32 else tolerance):
        return Verdict("exact" if removed > 0 else "left whole", removed, error, detail, pruned)
    return Verdict("wrong", removed, error, detail or f"relative error {error:.3g}", pruned)


def judge(
    model: nn.Module,
    inputs: Any,
    prune: Callable[[nn.Module, Any], nn.Module],
    refusals: tuple[type[BaseException], ...] = (),
    tolerance: float = 1e-9,
) -> Verdict:
    """Fill, prune and compare: never raises, an exception of `prune` is a verdict too."""
    fill_distinct(model)
    original = duplicate(model)
    try:
        pruned = prune(model, inputs)
    except refusals as error:
        return Verdict("refused", detail=f"{type(error).__name__}: {error}", exception=error)
    except Exception as error:  # noqa: BLE001 - whatever the pruner raises is the finding
        return Verdict("broken", detail=f"prune: {type(error).__name__}: {error}", exception=error)
    return compare(original, pruned, inputs, tolerance)
