"""Settings and inputs that the vision cases share."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.coverage_case import Case, Inputs, case, numbers, pixels

__all__ = [
    "CONVNEXT",
    "DETR",
    "MASK",
    "PYRAMID",
    "RESNET",
    "RT_DETR",
    "STAGES",
    "SWIN",
    "VIT",
    "image",
    "task_inputs",
    "video",
]

VIT: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "num_labels": 5,
}

STAGES: dict[str, Any] = {"hidden_sizes": [16, 24], "depths": [1, 2], "num_labels": 5}

PYRAMID: dict[str, Any] = {
    "num_encoder_blocks": 2,
    "depths": [1, 1],
    "sr_ratios": [2, 1],
    "hidden_sizes": [16, 32],
    "patch_sizes": [7, 3],
    "strides": [4, 2],
    "num_attention_heads": [2, 4],
    "mlp_ratios": [2, 2],
    "num_labels": 5,
}

SWIN: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 2,
    "embed_dim": 16,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": 4,
    "num_labels": 5,
}

RESNET: dict[str, Any] = {
    "model_type": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [8, 16, 16, 24],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
    "out_features": ["stage2", "stage3", "stage4"],
}

DETR: dict[str, Any] = {
    "use_timm_backbone": False,
    "use_pretrained_backbone": False,
    "backbone": None,
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "num_queries": 6,
    "num_labels": 5,
}

RT_DETR: dict[str, Any] = {
    "backbone_config": {**RESNET, "model_type": "rt_detr_resnet"},
    "encoder_hidden_dim": 32,
    "encoder_in_channels": [16, 16, 24],
    "encoder_ffn_dim": 48,
    "encoder_attention_heads": 4,
    "d_model": 32,
    "decoder_in_channels": [32, 32, 32],
    "decoder_ffn_dim": 48,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "num_queries": 6,
    "num_denoising": 0,
    "num_labels": 5,
    "hidden_expansion": 0.5,
}

MASK: dict[str, Any] = {
    "model_type": "swin",
    **SWIN,
    "image_size": 64,
    "depths": [1, 1, 1, 1],
    "num_heads": [2, 2, 4, 4],
    "embed_dim": 8,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}

CONVNEXT: dict[str, Any] = {
    "model_type": "convnext",
    "hidden_sizes": [8, 16, 16, 24],
    "depths": [1, 1, 1, 1],
    "num_stages": 4,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}


def image(name: str, model: str, inputs: Inputs | None = None, **options: Any) -> Case:
    return case(name, "image classifier", f"{model}ForImageClassification", inputs or pixels(), **options)


def video(name: str, frames: int, size: int = 16) -> Inputs:
    return lambda: {name: numbers(2, frames, 3, size, size)}


def task_inputs() -> dict[str, Any]:
    task = torch.randint(4, 60, (2, 8), generator=torch.Generator().manual_seed(5))
    return {"pixel_values": numbers(2, 3, 64, 64), "task_inputs": task}
