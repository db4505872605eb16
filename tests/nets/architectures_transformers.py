"""Models of the transformers library from small configurations, random weights: code nobody here wrote."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as tf
from torch import nn

from tests.nets.case import Case, image

__all__ = ["CASES"]


def ids(top: int = 50) -> dict[str, Any]:
    return {"input_ids": torch.arange(1, 13).reshape(2, 6) % top}


def pixels(size: int = 32) -> Callable[[], dict[str, Any]]:
    return lambda: {"pixel_values": image(3, size)()}


def both() -> dict[str, Any]:
    return {"input_ids": ids()["input_ids"], "decoder_input_ids": ids()["input_ids"][:, :4]}


def model(name: str, config: str, **options: Any) -> Callable[[], nn.Module]:
    """A factory of `transformers.<name>` under `transformers.<config>(**options)`."""

    def build() -> nn.Module:
        net: nn.Module = getattr(tf, name)(getattr(tf, config)(**options)).eval()
        return net

    return build


TEXT: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
}
VISION: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_labels": 5,
}
CACHELESS = dict(TEXT, use_cache=False, num_key_value_heads=1)
STAGES = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "num_labels": 5}

CASES = [
    Case(
        "hf resnet",
        0,
        model("ResNetForImageClassification", "ResNetConfig", layer_type="bottleneck", **STAGES),
        pixels(),
        ("classifier.1.weight",),
    ),
    Case(
        "hf resnet basic",
        0,
        model("ResNetForImageClassification", "ResNetConfig", layer_type="basic", **STAGES),
        pixels(),
        ("classifier.1.weight",),
    ),
    Case(
        "hf regnet",
        0,
        model("RegNetForImageClassification", "RegNetConfig", groups_width=4, **STAGES),
        pixels(),
        ("classifier.1.weight",),
    ),
    Case(
        "hf convnext",
        0,
        model(
            "ConvNextForImageClassification",
            "ConvNextConfig",
            hidden_sizes=[8, 16],
            depths=[1, 1],
            num_stages=2,
            num_labels=5,
        ),
        pixels(),
        ("classifier.weight",),
    ),
    Case(
        "hf convnext v2",
        0,
        model(
            "ConvNextV2ForImageClassification",
            "ConvNextV2Config",
            hidden_sizes=[8, 16],
            depths=[1, 1],
            num_stages=2,
            num_labels=5,
        ),
        pixels(),
        ("classifier.weight",),
    ),
    Case(
        "hf mobilenet v1",
        0,
        model(
            "MobileNetV1ForImageClassification",
            "MobileNetV1Config",
            depth_multiplier=0.25,
            min_depth=4,
            num_labels=5,
        ),
        pixels(),
        ("classifier.weight",),
    ),
    Case(
        "hf mobilenet v2",
        0,
        model(
            "MobileNetV2ForImageClassification",
            "MobileNetV2Config",
            depth_multiplier=0.25,
            depth_divisible_by=4,
            min_depth=4,
            num_labels=5,
        ),
        pixels(),
        ("classifier.weight",),
    ),
    Case(
        "hf efficientnet",
        0,
        model(
            "EfficientNetForImageClassification",
            "EfficientNetConfig",
            image_size=32,
            width_coefficient=0.25,
            depth_coefficient=0.3,
            hidden_dim=320,
            num_labels=5,
        ),
        pixels(),
        ("classifier.weight",),
    ),
    Case(
        "hf poolformer",
        0,
        model(
            "PoolFormerForImageClassification",
            "PoolFormerConfig",
            hidden_sizes=[8, 16],
            depths=[1, 1],
            num_encoder_blocks=2,
            patch_sizes=[7, 3],
            strides=[4, 2],
            padding=[2, 1],
            mlp_ratio=2.0,
            num_labels=5,
        ),
        pixels(),
        ("classifier.weight",),
    ),
    Case(
        "hf vit",
        0,
        model("ViTForImageClassification", "ViTConfig", **VISION),
        pixels(),
        ("classifier.weight",),
    ),
    Case(
        "hf deit",
        0,
        model("DeiTForImageClassification", "DeiTConfig", **VISION),
        pixels(),
        ("classifier.weight",),
    ),
    Case(
        "hf dinov2",
        0,
        model("Dinov2ForImageClassification", "Dinov2Config", mlp_ratio=2, **VISION),
        pixels(),
        ("classifier.weight",),
    ),
    Case(
        "hf swin",
        0,
        model(
            "SwinForImageClassification",
            "SwinConfig",
            image_size=32,
            patch_size=4,
            embed_dim=8,
            depths=[2, 1],
            num_heads=[1, 2],
            window_size=4,
            num_labels=5,
        ),
        pixels(),
        ("classifier.weight",),
    ),
    Case(
        "hf segformer",
        0,
        model(
            "SegformerForSemanticSegmentation",
            "SegformerConfig",
            hidden_sizes=[8, 16],
            depths=[1, 1],
            num_encoder_blocks=2,
            sr_ratios=[2, 1],
            patch_sizes=[7, 3],
            strides=[4, 2],
            num_attention_heads=[1, 2],
            mlp_ratios=[2, 2],
            decoder_hidden_size=12,
            num_labels=5,
        ),
        pixels(),
        ("decode_head.classifier.weight",),
    ),
    Case(
        "hf bert",
        0,
        model("BertForSequenceClassification", "BertConfig", num_labels=5, **TEXT),
        ids,
        ("bert.encoder.layer.0.intermediate.dense.weight", "bert.encoder.layer.1.output.dense.weight"),
    ),
    Case(
        "hf distilbert",
        0,
        model(
            "DistilBertForSequenceClassification",
            "DistilBertConfig",
            vocab_size=50,
            dim=16,
            n_layers=2,
            n_heads=2,
            hidden_dim=32,
            max_position_embeddings=32,
            num_labels=5,
        ),
        ids,
        ("distilbert.transformer.layer.0.ffn.lin1.weight",),
    ),
    Case(
        "hf roberta",
        0,
        model("RobertaForMaskedLM", "RobertaConfig", **TEXT),
        ids,
        ("roberta.encoder.layer.0.intermediate.dense.weight",),
    ),
    Case(
        "hf gpt2",
        0,
        model(
            "GPT2LMHeadModel",
            "GPT2Config",
            vocab_size=50,
            n_embd=16,
            n_layer=2,
            n_head=2,
            n_inner=32,
            n_positions=32,
            use_cache=False,
        ),
        ids,
        ("transformer.h.0.mlp.c_fc.weight",),
    ),
    Case(
        "hf llama",
        0,
        model("LlamaForCausalLM", "LlamaConfig", **CACHELESS),
        ids,
        ("model.layers.0.mlp.up_proj.weight", "lm_head.weight"),
    ),
    Case(
        "hf qwen2",
        0,
        model("Qwen2ForCausalLM", "Qwen2Config", **CACHELESS),
        ids,
        ("model.layers.0.mlp.up_proj.weight",),
    ),
    Case(
        "hf t5",
        0,
        model(
            "T5ForConditionalGeneration",
            "T5Config",
            vocab_size=50,
            d_model=16,
            d_kv=8,
            d_ff=32,
            num_layers=2,
            num_heads=2,
            use_cache=False,
        ),
        both,
        ("encoder.block.0.layer.1.DenseReluDense.wi.weight",),
    ),
    Case(
        "hf mamba",
        0,
        model(
            "MambaForCausalLM",
            "MambaConfig",
            vocab_size=50,
            hidden_size=16,
            state_size=4,
            num_hidden_layers=2,
            use_cache=False,
        ),
        ids,
        ("lm_head.weight",),
    ),
    Case(
        "hf wav2vec2",
        0,
        model(
            "Wav2Vec2ForCTC",
            "Wav2Vec2Config",
            vocab_size=20,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            conv_dim=(8, 8),
            conv_stride=(4, 2),
            conv_kernel=(6, 3),
            num_feat_extract_layers=2,
            num_conv_pos_embeddings=4,
            num_conv_pos_embedding_groups=2,
        ),
        lambda: {"input_values": image(1, 16)().reshape(2, 256)},
        ("wav2vec2.encoder.layers.0.feed_forward.intermediate_dense.weight",),
    ),
]
