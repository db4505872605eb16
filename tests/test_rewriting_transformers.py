"""Language and vision models of the package transformers, rewritten by way of torch.export."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import structprune as sp
from tests.oracle import compare, duplicate, fill_distinct

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning"
)

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
}


def ids(batch: int = 2, length: int = 6) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.randint(0, 50, (batch, length))}


def llama() -> tuple[nn.Module, Any]:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(vocab_size=50, num_key_value_heads=2, use_cache=False, **SMALL)
    ), ids()


def bert() -> tuple[nn.Module, Any]:
    from transformers import BertConfig, BertForSequenceClassification

    inputs = ids()
    config = BertConfig(vocab_size=50, max_position_embeddings=16, **SMALL)
    return BertForSequenceClassification(config), inputs | {
        "attention_mask": torch.ones_like(inputs["input_ids"])
    }


def vit() -> tuple[nn.Module, Any]:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(image_size=16, patch_size=4, attention_probs_dropout_prob=0.1, **SMALL)
    return ViTForImageClassification(config), {"pixel_values": torch.randn(2, 3, 16, 16)}


@pytest.mark.parametrize("build", [llama, bert, vit], ids=lambda build: build.__name__)
def test_rewritten_pruned_and_exact(build: Callable[[], tuple[nn.Module, Any]]) -> None:
    net, inputs = build()
    original = duplicate(fill_distinct(net))
    result = sp.prune(net, inputs, sp.Budget(channels=0.5), rewrite=True)
    verdict = compare(original, result.model, inputs)
    assert verdict.status == "exact", verdict.detail
    assert verdict.removed > 0.5
    assert sorted(result.model.state_dict()) == sorted(net.state_dict())
    other = {name: tensor[:1, :5] if tensor.ndim == 2 else tensor[:1] for name, tensor in inputs.items()}
    assert result.model.eval()(**other)[0].shape == net.eval()(**other)[0].shape
    drops = build is not llama
    outputs = [result.model.train()(**inputs)[0] for _ in range(2)]
    assert torch.equal(*outputs) != drops
    sum(tensor.sum() for tensor in outputs).backward()
    assert all(parameter.grad is not None for parameter in result.model.parameters())
