"""Models that read images and text in one network, in tiny configurations."""

from __future__ import annotations

import torch

from benchmarks.coverage_case import Case, case, numbers, tokens
from benchmarks.coverage_models.multimodal_options import IMAGE, OPT, TEXT, both, placed, regions, visual_bert

__all__ = ["CASES"]

CASES: tuple[Case, ...] = (
    case(
        "blip captioning",
        "image to text",
        "BlipForConditionalGeneration",
        both(),
        text_config={**TEXT, "encoder_hidden_size": 32, "use_cache": False},
        vision_config=IMAGE,
        projection_dim=16,
    ),
    case(
        "blip_2",
        "image to text",
        "Blip2ForConditionalGeneration",
        placed(4),
        vision_config=IMAGE,
        qformer_config={**TEXT, "encoder_hidden_size": 32},
        text_config=OPT,
        num_query_tokens=4,
        image_token_index=3,
        image_token_id=3,
    ),
    case("git", "image to text", "GitForCausalLM", both(), **TEXT, vision_config=IMAGE, use_cache=False),
    case("vilt", "image and text", "ViltModel", both(), **{**TEXT, **IMAGE}),
    case(
        "lxmert",
        "image and text",
        "LxmertModel",
        regions,
        **{**TEXT, "l_layers": 1, "x_layers": 1, "r_layers": 1},
        visual_feat_dim=24,
    ),
    case("visual_bert", "image and text", "VisualBertModel", visual_bert, **TEXT, visual_embedding_dim=24),
    case(
        "bridgetower",
        "image and text",
        "BridgeTowerModel",
        both(),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        text_config=TEXT,
        vision_config={**IMAGE, "hidden_size": 64},
    ),
    case(
        "idefics",
        "image to text",
        "IdeficsForVisionText2Text",
        lambda: {
            "input_ids": tokens(),
            "pixel_values": numbers(2, 1, 3, 32, 32),
            "image_attention_mask": torch.ones(2, 16, 1, dtype=torch.long),
        },
        **TEXT,
        additional_vocab_size=0,
        cross_layer_interval=1,
        use_cache=False,
        use_resampler=False,
        vision_config={
            "image_size": 32,
            "patch_size": 8,
            "embed_dim": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 48,
        },
    ),
)
