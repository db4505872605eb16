"""Settings and inputs that the text cases share."""

from __future__ import annotations

from typing import Any

from benchmarks.coverage_case import Case, case, ids

__all__ = [
    "BASE",
    "BOTH",
    "DECODER",
    "ENCODER",
    "EXPERTS",
    "GPT",
    "SSM",
    "T5",
    "causal",
    "classify",
    "sparse",
]

BASE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

ENCODER: dict[str, Any] = {**BASE, "type_vocab_size": 2, "num_labels": 5}

DECODER: dict[str, Any] = {**BASE, "num_key_value_heads": 2, "use_cache": False}

EXPERTS: dict[str, Any] = {
    **DECODER,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
}

GPT: dict[str, Any] = {
    "vocab_size": 64,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "n_inner": 48,
    "use_cache": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

BOTH: dict[str, Any] = {
    "vocab_size": 64,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
    "use_cache": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}

T5: dict[str, Any] = {
    "vocab_size": 64,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "use_cache": False,
    "decoder_start_token_id": 0,
}

SSM: dict[str, Any] = {**BASE, "state_size": 8, "use_cache": False, "time_step_rank": 4}


def classify(name: str, model: str, **options: Any) -> Case:
    return case(name, "text encoder", f"{model}ForSequenceClassification", ids, **{**ENCODER, **options})


def causal(name: str, model: str, **options: Any) -> Case:
    return case(name, "text decoder", f"{model}ForCausalLM", ids, **{**DECODER, **options})


def sparse(name: str, model: str, **options: Any) -> Case:
    return case(name, "mixture of experts", model, ids, **{**EXPERTS, **options})
