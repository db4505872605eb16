"""Encoder-decoders of text in tiny configurations."""

from __future__ import annotations

from benchmarks.coverage_case import Case, case, pair
from benchmarks.coverage_models.text_options import BOTH, T5

__all__ = ["CASES"]

CASES: tuple[Case, ...] = (
    case("t5", "text to text", "T5ForConditionalGeneration", pair, **T5),
    case(
        "t5 gated", "text to text", "T5ForConditionalGeneration", pair, **T5, feed_forward_proj="gated-gelu"
    ),
    case("mt5", "text to text", "MT5ForConditionalGeneration", pair, **T5),
    case("umt5", "text to text", "UMT5ForConditionalGeneration", pair, **T5),
    case(
        "longt5",
        "text to text",
        "LongT5ForConditionalGeneration",
        pair,
        **T5,
        local_radius=3,
        encoder_attention_type="local",
    ),
    case("bart", "text to text", "BartForConditionalGeneration", pair, **BOTH),
    case("mbart", "text to text", "MBartForConditionalGeneration", pair, **BOTH),
    case("pegasus", "text to text", "PegasusForConditionalGeneration", pair, **BOTH),
    case(
        "pegasus_x",
        "text to text",
        "PegasusXForConditionalGeneration",
        pair,
        **BOTH,
        block_size=4,
        num_global_tokens=2,
    ),
    case("marian", "text to text", "MarianMTModel", pair, **BOTH),
    case("blenderbot", "text to text", "BlenderbotForConditionalGeneration", pair, **BOTH),
    case("m2m_100", "text to text", "M2M100ForConditionalGeneration", pair, **BOTH),
    case("plbart", "text to text", "PLBartForConditionalGeneration", pair, **BOTH),
    case(
        "led",
        "text to text",
        "LEDForConditionalGeneration",
        pair,
        **BOTH,
        attention_window=4,
        max_encoder_position_embeddings=64,
        max_decoder_position_embeddings=64,
    ),
    case(
        "prophetnet",
        "text to text",
        "ProphetNetForConditionalGeneration",
        pair,
        vocab_size=64,
        hidden_size=32,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        num_encoder_layers=2,
        num_decoder_layers=2,
        num_encoder_attention_heads=4,
        num_decoder_attention_heads=4,
        max_position_embeddings=64,
        use_cache=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=2,
    ),
    case(
        "fsmt",
        "text to text",
        "FSMTForConditionalGeneration",
        pair,
        **BOTH,
        langs=["en", "de"],
        src_vocab_size=64,
        tgt_vocab_size=64,
    ),
)
