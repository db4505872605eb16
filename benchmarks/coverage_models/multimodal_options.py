"""Settings and inputs that the multimodal cases share."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.coverage_case import Inputs, numbers, tokens, uniform

__all__ = [
    "BERT",
    "CLIP_VISION",
    "DOCUMENT",
    "IMAGE",
    "LLAMA",
    "OPT",
    "QWEN2",
    "TEXT",
    "both",
    "boxes",
    "clap",
    "document",
    "flat_patches",
    "illustrated_document",
    "pix2struct",
    "placed",
    "queries",
    "regions",
    "visual_bert",
]

TEXT: dict[str, Any] = {
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

IMAGE: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}

LLAMA: dict[str, Any] = {"model_type": "llama", **TEXT, "num_key_value_heads": 2, "use_cache": False}

QWEN2: dict[str, Any] = {"model_type": "qwen2", **TEXT, "num_key_value_heads": 2, "use_cache": False}

BERT: dict[str, Any] = {"model_type": "bert", **TEXT}

OPT: dict[str, Any] = {
    "model_type": "opt",
    **TEXT,
    "ffn_dim": 48,
    "word_embed_proj_dim": 32,
    "use_cache": False,
}

DOCUMENT: dict[str, Any] = {**TEXT, "max_2d_position_embeddings": 64, "type_vocab_size": 2, "num_labels": 5}

CLIP_VISION: dict[str, Any] = {"model_type": "clip_vision_model", **IMAGE, "projection_dim": 16}


def boxes(length: int = 16) -> torch.Tensor:
    corner = torch.randint(0, 30, (2, length, 2), generator=torch.Generator().manual_seed(6))
    return torch.cat([corner, corner + 20], dim=-1)


def both(size: int = 32, length: int = 16) -> Inputs:
    return lambda: {"input_ids": tokens(length=length), "pixel_values": numbers(2, 3, size, size)}


def placed(image_tokens: int, size: int = 32, token: int = 3, **more: Any) -> Inputs:
    """Text in which `image_tokens` places stand for the image."""

    def build() -> dict[str, Any]:
        text = tokens(length=image_tokens + 6, top=60)
        text[:, 1 : 1 + image_tokens] = token
        return {"input_ids": text, "pixel_values": numbers(2, 3, size, size), **more}

    return build


def document() -> dict[str, Any]:
    return {"input_ids": tokens(), "bbox": boxes()}


def illustrated_document() -> dict[str, Any]:
    return {**document(), "pixel_values": numbers(2, 3, 32, 32)}


def regions() -> dict[str, Any]:
    return {"input_ids": tokens(), "visual_feats": numbers(2, 5, 24), "visual_pos": uniform(2, 5, 4)}


def visual_bert() -> dict[str, Any]:
    return {
        "input_ids": tokens(),
        "visual_embeds": numbers(2, 5, 24),
        "visual_attention_mask": torch.ones(2, 5),
        "attention_mask": torch.ones(2, 16),
    }


def clap() -> dict[str, Any]:
    longer = torch.zeros(2, 1, dtype=torch.bool)
    return {"input_ids": tokens(), "input_features": uniform(2, 1, 64, 16), "is_longer": longer}


def queries() -> dict[str, Any]:
    return {"input_ids": tokens(4, 8), "pixel_values": numbers(2, 3, 32, 32)}


def flat_patches() -> dict[str, Any]:
    """Qwen2-VL takes patches, not images: two images of 4x4 patches of 4x4 pixels, two frames each."""
    text = tokens(length=12, top=60)
    text[:, 1], text[:, 2:6], text[:, 6] = 61, 62, 60
    return {
        "input_ids": text,
        "pixel_values": numbers(32, 3 * 2 * 4 * 4),
        "image_grid_thw": torch.tensor([[1, 4, 4], [1, 4, 4]]),
        "mm_token_type_ids": (text == 62).long(),
    }


def pix2struct() -> dict[str, Any]:
    patches = torch.cat([torch.arange(1, 13).reshape(1, 12, 1).repeat(2, 1, 2), numbers(2, 12, 48)], dim=-1)
    return {"flattened_patches": patches, "decoder_input_ids": tokens(length=6)}
