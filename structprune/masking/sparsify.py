"""Put masks on a model, extend them, bake them in."""

from __future__ import annotations

import copy
import math
from numbers import Real

import torch
from torch import Tensor, nn

from structprune.arguments import typed
from structprune.errors import InputError
from structprune.masking.mask import Mask, mask_of, put_mask, remove_mask
from structprune.masking.ranking import Criterion, count, drop_below, drop_lowest, scores
from structprune.masking.targets import Patterns, Target, all_targets, choose
from structprune.tensors import require_module

__all__ = ["finalize", "sparsify"]

SCOPES = ("layer", "global")


@typed
def sparsify(
    model: nn.Module,
    sparsity: float | None = None,
    *,
    threshold: float | None = None,
    scope: str = "layer",
    criterion: Criterion = "l1",
    only: Patterns = (),
    keep: Patterns = (),
    seed: int = 0,
    inplace: bool = False,
) -> nn.Module:
    """A copy of the model (the model itself with `inplace=True`) whose least important weights are masked to
    zero.

    Masked are the weights, of two or more dimensions, of linear, convolution, attention and recurrent layers;
    `only=` and `keep=` choose among them by layer or tensor name, glob, module or kind, and a tensor's full
    name in `only=` takes any other parameter. Exactly one of:

    - `sparsity` in [0, 1): the share of the chosen weights that is zero afterwards, in every tensor
      (`scope="layer"`) or in all together (`scope="global"`); rounded down, exact however many scores are
      equal. It is absolute: a call with a higher sparsity extends the masks that are there, and masks never
      shrink. 0 puts masks on that remove nothing, ready for `load_state_dict`.
    - `threshold`: every weight that scores below it (|w| for l1 and l2) goes.

    `criterion` is `"l1"`, `"l2"` (both |w| for a single weight), `"random"` (drawn from `seed`), or a
    callable that takes a weight tensor and returns a tensor of its shape, higher for what matters more. The
    masks hold during fine-tuning; `finalize` bakes them in. An optimiser made before `inplace=True` stays
    valid.

    Raises `InputError` for arguments out of range, names that match nothing, weights that cannot be ranked or
    are parametrized otherwise, and where a tensor would lose all its weights; the model is then as it was.

    >>> layer = nn.Linear(3, 2)
    >>> _ = layer.weight.data.copy_(torch.tensor([[0.3, -0.8, 0.1], [-0.05, 0.9, -0.2]]))
    >>> (sparsify(layer, 0.5).weight != 0).int().tolist()
    [[1, 1, 0], [0, 1, 0]]
    """
    require_module(model)
    _check(sparsity, threshold, scope, criterion)
    chosen = choose(model, only, keep)
    masks = [mask_of(target) for target in chosen]
    kept = [_kept(target, mask) for target, mask in zip(chosen, masks, strict=True)]
    generator = torch.Generator().manual_seed(seed)
    if threshold is not None:
        score = [_score(target, criterion, generator) for target in chosen]
        new = drop_below(score, kept, threshold)
    elif scope == "global":
        score = [_score(target, criterion, generator) for target in chosen]
        new = drop_lowest(score, kept, count(sparsity or 0.0, sum(k.numel() for k in kept)))
    else:
        new = []
        for target, old in zip(chosen, kept, strict=True):
            score = [_score(target, criterion, generator)]
            new += drop_lowest(score, [old], count(sparsity or 0.0, old.numel()))
    _refuse_empty(chosen, new)
    names = {target.name: mask for target, mask in zip(chosen, new, strict=True)}
    masked = model if inplace else copy.deepcopy(model)
    for target in all_targets(masked):
        if target.name in names:
            put_mask(target, names[target.name])
    return masked


@typed
def finalize(model: nn.Module, *, inplace: bool = False) -> nn.Module:
    """A copy of the model (the model itself with `inplace=True`) with its masks baked in: plain tensors,
    exact zeros.

    Modules and parameters are of their original classes again; a model without masks comes back unchanged.
    Raises `InputError` where another parametrization was put over a mask.
    """
    require_module(model)
    plain = model if inplace else copy.deepcopy(model)
    masked = [slot for t in all_targets(plain) for slot in t.slots if _is_masked(slot.parametrizations())]
    for slot in masked:
        if len(slot.parametrizations()) > 1:
            raise InputError(
                f"{slot.name!r} has another parametrization beside its mask; remove that one first"
            )
    for slot in masked:
        remove_mask(slot)
    return plain


def _kept(target: Target, mask: Mask | None) -> Tensor:
    return torch.ones_like(target.parameter, dtype=torch.bool) if mask is None else mask.mask


def _score(target: Target, criterion: Criterion, generator: torch.Generator) -> Tensor:
    return scores(target.name, target.slots[0].value(), criterion, generator)


def _is_masked(parametrizations: tuple[nn.Module, ...]) -> bool:
    return any(isinstance(parametrization, Mask) for parametrization in parametrizations)


def _check(sparsity: float | None, threshold: float | None, scope: str, criterion: Criterion) -> None:
    if (sparsity is None) == (threshold is None):
        raise InputError(f"give exactly one of sparsity= and threshold= (got {sparsity=}, {threshold=})")
    for name, value in (("sparsity", sparsity), ("threshold", threshold)):
        if value is not None and not isinstance(value, Real):
            raise InputError(f"{name}={value!r}: must be a number")
    if sparsity is not None and not 0 <= sparsity < 1:
        raise InputError(f"{sparsity=}: must be at least 0 and below 1, the share of weights to set to zero")
    if threshold is not None and not (math.isfinite(threshold) and (callable(criterion) or threshold >= 0)):
        raise InputError(f"{threshold=}: must be a finite number, 0 or more where it is compared with |w|")
    if threshold is not None and criterion == "random":
        raise InputError("threshold= has no meaning with criterion='random'; give sparsity=")
    if scope not in SCOPES:
        raise InputError(f"{scope=} is unknown; choose one of {', '.join(SCOPES)}")


def _refuse_empty(chosen: list[Target], masks: list[Tensor]) -> None:
    for target, mask in zip(chosen, masks, strict=True):
        if not bool(mask.any()):
            raise InputError(
                f"{target.name!r} would lose all {mask.numel()} weights, and its layer pass nothing on; "
                f"ask for less, use scope='layer', or leave it out with keep=({target.name!r},)"
            )
