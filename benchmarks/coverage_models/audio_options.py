"""Settings and inputs that the audio cases share."""

from __future__ import annotations

from typing import Any

from benchmarks.coverage_case import Case, case, numbers, tokens

__all__ = [
    "CODEC",
    "SPEECH",
    "WAVE",
    "audio",
    "dictation",
    "frames",
    "wave",
    "wave_case",
]

WAVE: dict[str, Any] = {
    "vocab_size": 24,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "conv_dim": (16, 16, 24),
    "conv_stride": (4, 2, 2),
    "conv_kernel": (8, 3, 2),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
    "num_labels": 5,
}

SPEECH: dict[str, Any] = {
    "vocab_size": 64,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "use_cache": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}

CODEC: dict[str, Any] = {"num_filters": 8, "hidden_size": 32, "codebook_size": 16, "codebook_dim": 32}


def wave() -> dict[str, Any]:
    return {"input_values": numbers(2, 800)}


def audio() -> dict[str, Any]:
    return {"input_values": numbers(2, 1, 640)}


def dictation() -> dict[str, Any]:
    return {"input_features": numbers(2, 8, 40), "decoder_input_ids": tokens(length=6)}


def frames() -> dict[str, Any]:
    return {"input_features": numbers(2, 40, 8), "decoder_input_ids": tokens(length=6)}


def wave_case(name: str, model: str, **options: Any) -> Case:
    return case(name, "audio encoder", model, wave, **{**WAVE, **options})
