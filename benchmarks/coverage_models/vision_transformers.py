"""Vision transformers in tiny configurations: image classifiers."""

from __future__ import annotations

from benchmarks.coverage_case import Case, pixels
from benchmarks.coverage_models.vision_options import SWIN, VIT, image

__all__ = ["CASES"]

CASES: tuple[Case, ...] = (
    image("vit", "ViT", **VIT),
    image("deit", "DeiT", **VIT),
    image("beit", "Beit", **VIT, use_relative_position_bias=True, use_mask_token=False),
    image("data2vec_vision", "Data2VecVision", **VIT, use_relative_position_bias=True),
    image("dinov2", "Dinov2", **VIT, mlp_ratio=2),
    image("dinov2 swiglu", "Dinov2", **VIT, mlp_ratio=2, use_swiglu_ffn=True),
    image("dinov2_with_registers", "Dinov2WithRegisters", **VIT, mlp_ratio=2),
    image("vit_msn", "ViTMSN", **VIT),
    image("ijepa", "IJepa", **VIT),
    image("swin", "Swin", **SWIN),
    image("swinv2", "Swinv2", **SWIN),
    image("donut_swin", "DonutSwin", **SWIN),
    image(
        "hiera",
        "Hiera",
        image_size=[32, 32],
        patch_size=[7, 7],
        patch_stride=[4, 4],
        patch_padding=[3, 3],
        embed_dim=16,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        mlp_ratio=2.0,
        masked_unit_size=[8, 8],
        query_stride=[2, 2],
        num_query_pool=2,
        num_labels=5,
    ),
    image(
        "levit",
        "Levit",
        pixels(64),
        image_size=64,
        kernel_size=3,
        stride=2,
        padding=1,
        patch_size=16,
        hidden_sizes=[16, 24, 32],
        num_attention_heads=[2, 3, 4],
        depths=[1, 1, 1],
        key_dim=[4, 4, 4],
        mlp_ratio=[2, 2, 2],
        attention_ratio=[2, 2, 2],
        down_ops=[["Subsample", 4, 4, 4, 2, 2], ["Subsample", 4, 6, 4, 2, 2]],
        num_labels=5,
    ),
)
