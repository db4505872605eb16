"""What torch.nn's own layer types say about their tensors, so that `print(model)` is true after a cut.

One table, keyed by type (subclasses included): from the shapes of a layer's tensors to its size attributes.
It speaks of torch.nn's types alone. What a model's own code keeps in attributes is learned by tracing and
arrives in the plan as attribute edits; nothing is guessed from attribute names.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection

import torch
from torch import nn
from torch.nn.utils import parametrize

__all__ = ["declared", "refresh", "truthful"]

Shape = tuple[int, ...]
Sizes = dict[str, object]
_Rule = Callable[
    [nn.Module, dict[str, Shape]], Sizes
]  # tensors that the layer lacks are absent from the shapes


def declared(module: nn.Module) -> Sizes:
    """Attribute -> value as the layer's tensors have it; empty for types that torch.nn does not define.

    >>> declared(nn.Conv2d(4, 8, 3, groups=2))
    {'out_channels': 8, 'in_channels': 4}
    """
    for types, tensors, rule in _TABLE:
        if isinstance(module, types):
            return rule(module, _shapes(module, tensors))
    return {}


def truthful(module: nn.Module) -> frozenset[str]:
    """The size attributes that agree with the layer's tensors.

    A subclass may use a name for something else: what does not agree before a cut is not touched after it.
    """
    return frozenset(name for name, value in declared(module).items() if getattr(module, name, None) == value)


def refresh(module: nn.Module, names: Collection[str] | None = None) -> dict[str, tuple[object, object]]:
    """Sets the size attributes from the tensors; returns those that changed, as name -> (old, new).

    `names` restricts which attributes may be set. An attribute that the module does not have is not made.
    """
    changed = {}
    for name, value in declared(module).items():
        if (names is None or name in names) and hasattr(module, name) and getattr(module, name) != value:
            changed[name] = (getattr(module, name), value)
            setattr(module, name, value)
    return changed


def _shapes(module: nn.Module, names: Collection[str]) -> dict[str, Shape]:
    shapes = {}
    for name in names:
        tensor = (
            _parametrized(module, name)
            if parametrize.is_parametrized(module, name)
            else getattr(module, name, None)
        )
        if isinstance(tensor, torch.Tensor):
            shapes[name] = tuple(tensor.shape)
    return shapes


def _parametrized(module: nn.Module, name: str) -> torch.Tensor:
    """A parametrized tensor, computed on a copy in eval mode, since spectral norm learns when it is read."""
    chain: nn.Module = module.parametrizations[name]  # type: ignore[index, assignment]
    shared = {id(tensor): tensor for tensor in (*chain.parameters(), *chain.buffers())}
    with torch.no_grad():
        return copy.deepcopy(chain, shared).eval()()  # type: ignore[no-any-return]


def _conv(module: nn.Module, shapes: dict[str, Shape]) -> Sizes:
    # weight [out, in / groups, ...]; transposed: [in, out / groups, ...]
    first, second = shapes["weight"][:2]
    second *= int(module.groups)  # type: ignore[arg-type]
    out_channels, in_channels = (second, first) if module.transposed else (first, second)
    return {"out_channels": out_channels, "in_channels": in_channels}


def _linear(module: nn.Module, shapes: dict[str, Shape]) -> Sizes:
    return {"out_features": shapes["weight"][0], "in_features": shapes["weight"][1]}


def _bilinear(module: nn.Module, shapes: dict[str, Shape]) -> Sizes:
    return dict(zip(("out_features", "in1_features", "in2_features"), shapes["weight"], strict=True))


def _first(name: str, shapes: dict[str, Shape]) -> Sizes:
    """The leading size of any of the tensors; a norm without affine and statistics has none."""
    return {name: next(iter(shapes.values()))[0]} if shapes else {}


def _features(module: nn.Module, shapes: dict[str, Shape]) -> Sizes:
    return _first("num_features", shapes)


def _group_norm(module: nn.Module, shapes: dict[str, Shape]) -> Sizes:
    return _first("num_channels", shapes)


def _normalized(module: nn.Module, shapes: dict[str, Shape]) -> Sizes:
    return {"normalized_shape": shapes["weight"]} if shapes else {}


def _embedding(module: nn.Module, shapes: dict[str, Shape]) -> Sizes:
    return dict(zip(("num_embeddings", "embedding_dim"), shapes["weight"], strict=True))


def _prelu(module: nn.Module, shapes: dict[str, Shape]) -> Sizes:
    return {"num_parameters": shapes["weight"][0]}


def _rnn(module: nn.Module, shapes: dict[str, Shape]) -> Sizes:
    # weight_ih [gates * hidden, input], weight_hh [gates * hidden, proj or hidden], weight_hr [proj, hidden]
    gates = {"LSTM": 4, "GRU": 3}.get(str(module.mode), 1)
    sizes: Sizes = {
        "input_size": shapes["weight_ih_l0"][1],
        "hidden_size": shapes["weight_hh_l0"][0] // gates,
    }
    if "weight_hr_l0" in shapes:
        sizes["proj_size"] = shapes["weight_hr_l0"][0]
    return sizes


def _rnn_cell(module: nn.Module, shapes: dict[str, Shape]) -> Sizes:
    return {"input_size": shapes["weight_ih"][1], "hidden_size": shapes["weight_hh"][1]}


def _attention(module: nn.Module, shapes: dict[str, Shape]) -> Sizes:
    # in_proj_weight [3 * embed, embed], or {q,k,v}_proj_weight [embed, embed], [embed, kdim], [embed, vdim]
    embed = shapes.get("in_proj_weight", shapes.get("q_proj_weight", ()))[-1]
    keys, values = (shapes.get(name, (embed,))[-1] for name in ("k_proj_weight", "v_proj_weight"))
    heads = int(module.num_heads)  # type: ignore[arg-type]
    return {"embed_dim": embed, "kdim": keys, "vdim": values, "head_dim": embed // heads}


_NORM = ("running_mean", "weight")
_TABLE: tuple[tuple[tuple[type[nn.Module], ...], tuple[str, ...], _Rule], ...] = (
    ((nn.modules.conv._ConvNd,), ("weight",), _conv),
    ((nn.Linear,), ("weight",), _linear),
    ((nn.Bilinear,), ("weight",), _bilinear),
    ((nn.modules.batchnorm._NormBase,), _NORM, _features),
    ((nn.GroupNorm,), ("weight",), _group_norm),
    ((nn.LayerNorm, nn.RMSNorm), ("weight",), _normalized),
    ((nn.Embedding, nn.EmbeddingBag), ("weight",), _embedding),
    ((nn.PReLU,), ("weight",), _prelu),
    ((nn.RNNBase,), ("weight_ih_l0", "weight_hh_l0", "weight_hr_l0"), _rnn),
    ((nn.RNNCellBase,), ("weight_ih", "weight_hh"), _rnn_cell),
    (
        (nn.MultiheadAttention,),
        ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"),
        _attention,
    ),
)
