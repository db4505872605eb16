"""The stand-in for torch's attention: the same outputs under every option, and inner widths that can be cut."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import structprune as sp
from structprune.rewriting import MultiheadAttention
from tests.oracle import compare, duplicate, fill_distinct

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

LENGTH, KEYS, BATCH, HEADS, WIDTH = 4, 5, 2, 3, 12


def masks(kind: str, size: tuple[int, ...], hidden: Tensor) -> Tensor:
    """What is hidden as truth values, or as numbers to add."""
    hidden = hidden.expand(size)
    return hidden if kind == "bool" else torch.zeros(size).double().masked_fill(hidden, -math.inf)


def calls(batched: bool) -> list[dict[str, Any]]:
    """Every combination of what a call may say."""
    padding = torch.arange(KEYS) == KEYS - 1
    causal = torch.ones(LENGTH, KEYS).triu(1).bool()
    paddings = [
        None,
        *(masks(kind, (BATCH, KEYS) if batched else (KEYS,), padding) for kind in ("bool", "float")),
    ]
    per_head = (BATCH * HEADS if batched else HEADS, LENGTH, KEYS)
    attends = [None, masks("bool", (LENGTH, KEYS), causal), masks("float", per_head, causal)]
    return [
        {
            "key_padding_mask": padding,
            "attn_mask": attend,
            "need_weights": weights,
            "average_attn_weights": average,
            "is_causal": hint,
        }
        for padding, attend, (weights, average), hint in itertools.product(
            paddings, attends, [(False, True), (True, True), (True, False)], [False, True]
        )
        if attend is not None or not hint
    ]


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("others", [{}, {"kdim": 8, "vdim": 10}], ids=["packed", "apart"])
@pytest.mark.parametrize("more", [{}, {"bias": False, "add_zero_attn": True}, {"add_bias_kv": True}], ids=str)
def test_outputs_are_torchs_under_every_option(
    batch_first: bool, others: dict[str, int], more: dict[str, bool]
) -> None:
    attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=batch_first, **others, **more).double().eval()
    for parameter in attention.parameters():
        nn.init.normal_(parameter)
    stand_in = MultiheadAttention(attention)
    for batched in (False, True):
        lead = [
            (n, BATCH) if batched and not batch_first else (BATCH, n) if batched else (n,)
            for n in (LENGTH, KEYS)
        ]
        query = torch.randn(*lead[0], WIDTH).double()
        key = torch.randn(*lead[1], others.get("kdim", WIDTH)).double()
        value = torch.randn(*lead[1], others.get("vdim", WIDTH)).double()
        for options in calls(batched):
            expected, weights = attention(query, key, value, **options)
            found, own = stand_in(query, key, value, **options)
            assert torch.allclose(found, expected, atol=1e-12), options
            assert (own is None) == (weights is None)
            assert weights is None or torch.allclose(own, weights, atol=1e-12), options


def test_a_causal_hint_needs_its_mask() -> None:
    x = torch.randn(2, 3, 8)
    with pytest.raises(RuntimeError, match="attn_mask"):
        MultiheadAttention(nn.MultiheadAttention(8, 2))(x, x, x, is_causal=True)


class Residual(nn.Module):
    """Attention in a residual stream, with or without its weights among the outputs."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.weights = options.pop("weights", False)
        self.stem = nn.Linear(6, 16)
        self.attention = nn.MultiheadAttention(16, 4, **options)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Any:
        h = self.stem(x)
        attended, weights = self.attention(h, h, h, need_weights=self.weights)
        return (self.head(h + attended), weights) if self.weights else self.head(h + attended)


@pytest.mark.parametrize(
    "options",
    [{}, {"batch_first": True, "kdim": 16, "vdim": 16, "add_bias_kv": True, "add_zero_attn": True}],
    ids=str,
)
def test_heads_head_width_and_value_width_are_free_of_the_embedding(options: dict[str, Any]) -> None:
    net, x = fill_distinct(Residual(**options)), torch.randn(2, 7, 6)
    rewritten = sp.rewrite(net, x)
    graph = sp.trace(rewritten, x)
    inner = {g.name: g.size for g in graph.groups if g.frozen is None and g.name != "stem"}
    assert sorted(inner.values()) == [4, 4, 4]  # heads, width of queries and keys, width of values
    for name in inner:
        small = sp.apply_plan(rewritten, graph.plan({name: [0, 3]}))
        verdict = compare(net, small, x)
        assert verdict.status == "exact", verdict.detail
        attention = small.attention
        assert attention.out_proj.out_features == 16
        numbers = attention.num_heads, attention.head_dim, attention.value_dim
        assert sorted(numbers) == [2, 4, 4]
        assert attention.scale == 0.5


def test_weights_among_the_outputs_hold_the_heads_where_they_are_not_averaged() -> None:
    net, x = Residual(weights=True), torch.randn(2, 7, 6)
    result = sp.prune(fill_distinct(net), x, sp.Budget(channels=0.5), rewrite=True)
    assert compare(net, result.model, x).status == "exact"
    attention = result.model.attention
    assert min(attention.num_heads, attention.head_dim, attention.value_dim) < 4


def test_encoder_and_decoder_layers_prune_inside_and_stay_as_wide() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Linear(6, 16)
            self.layers = nn.Transformer(16, 4, 1, 1, 32, batch_first=True, norm_first=True)
            self.head = nn.Linear(16, 5)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.head(self.layers(self.stem(x), self.stem(y)))

    net, inputs = Net(), (torch.randn(2, 7, 6), torch.randn(2, 5, 6))
    original = duplicate(fill_distinct(net))
    result = sp.prune(net, inputs, sp.Budget(channels=0.5), rewrite=True, keep="stem")
    verdict = compare(original, result.model, inputs)
    assert verdict.status == "exact", verdict.detail
    encoder, decoder = result.model.layers.encoder.layers[0], result.model.layers.decoder.layers[0]
    assert encoder.linear1.out_features == decoder.linear1.out_features == 16
    for attention in (encoder.self_attn, decoder.self_attn, decoder.multihead_attn):
        assert attention.out_proj.out_features == 16
        assert attention.out_proj.in_features == attention.num_heads * attention.value_dim < 16
    assert sorted(result.model.state_dict()) == sorted(net.state_dict())
