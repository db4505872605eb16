"""Models of text with its place on the page, in tiny configurations."""

from __future__ import annotations

import torch

from benchmarks.coverage_case import Case, case, ids, numbers, tokens
from benchmarks.coverage_models.multimodal_options import (
    DOCUMENT,
    TEXT,
    boxes,
    document,
    illustrated_document,
)

__all__ = ["CASES"]

CASES: tuple[Case, ...] = (
    case("layoutlm", "documents", "LayoutLMForTokenClassification", document, **DOCUMENT),
    case(
        "layoutlmv3",
        "documents",
        "LayoutLMv3ForTokenClassification",
        illustrated_document,
        **DOCUMENT,
        coordinate_size=5,
        shape_size=6,
        input_size=32,
        patch_size=8,
        rel_pos_bins=8,
        max_rel_pos=16,
        rel_2d_pos_bins=8,
        max_rel_2d_pos=16,
    ),
    case(
        "lilt",
        "documents",
        "LiltForTokenClassification",
        document,
        **{**DOCUMENT, "hidden_size": 48},
        channel_shrink_ratio=2,
    ),
    case(
        "bros",
        "documents",
        "BrosForTokenClassification",
        lambda: {"input_ids": tokens(), "bbox": boxes() / 64},
        **{**DOCUMENT, "hidden_size": 64},
        dim_bbox=8,
        bbox_scale=10.0,
    ),
    case(
        "tapas",
        "documents",
        "TapasModel",
        lambda: {"input_ids": tokens(), "token_type_ids": torch.zeros(2, 16, 7, dtype=torch.long)},
        **{**TEXT, "type_vocab_sizes": [3, 8, 8, 2, 8, 8, 2]},
    ),
    case(
        "markuplm",
        "documents",
        "MarkupLMModel",
        ids,
        **TEXT,
        max_depth=4,
        xpath_unit_hidden_size=8,
        max_xpath_tag_unit_embeddings=20,
        max_xpath_subs_unit_embeddings=20,
        tag_pad_id=19,
        subs_pad_id=19,
    ),
    case(
        "udop",
        "documents",
        "UdopForConditionalGeneration",
        lambda: {
            "input_ids": tokens(),
            "bbox": boxes() / 64,
            "decoder_input_ids": tokens(length=6),
            "pixel_values": numbers(2, 3, 32, 32),
        },
        vocab_size=64,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        max_2d_position_embeddings=64,
        image_size=32,
        patch_size=8,
        use_cache=False,
        decoder_start_token_id=0,
    ),
)
