"""Causal language models in tiny configurations."""

from __future__ import annotations

from benchmarks.coverage_case import Case, case, ids
from benchmarks.coverage_models.text_options import GPT, causal

__all__ = ["CASES"]

CASES: tuple[Case, ...] = (
    case("gpt2", "text decoder", "GPT2LMHeadModel", ids, **GPT),
    case(
        "gpt_neo",
        "text decoder",
        "GPTNeoForCausalLM",
        ids,
        vocab_size=64,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        intermediate_size=48,
        attention_types=[[["global", "local"], 1]],
        window_size=4,
        max_position_embeddings=64,
        use_cache=False,
    ),
    causal("gpt_neox", "GPTNeoX"),
    case("gptj", "text decoder", "GPTJForCausalLM", ids, **GPT, rotary_dim=4),
    case("codegen", "text decoder", "CodeGenForCausalLM", ids, **GPT, rotary_dim=4),
    case("gpt_bigcode", "text decoder", "GPTBigCodeForCausalLM", ids, **GPT),
    case("openai gpt", "text decoder", "OpenAIGPTLMHeadModel", ids, **GPT),
    case("ctrl", "text decoder", "CTRLLMHeadModel", ids, **GPT, dff=48),
    causal("opt", "OPT", ffn_dim=48, word_embed_proj_dim=32),
    causal("bloom", "Bloom", n_layer=2, n_head=4),
    causal("llama", "Llama"),
    causal("mistral", "Mistral", sliding_window=8),
    causal("qwen2", "Qwen2"),
    causal("qwen3", "Qwen3", head_dim=8),
    causal("gemma", "Gemma", head_dim=8),
    causal("gemma2", "Gemma2", head_dim=8, query_pre_attn_scalar=8, sliding_window=8),
    causal("gemma3", "Gemma3", head_dim=8, query_pre_attn_scalar=8, sliding_window=8),
    causal("phi", "Phi"),
    causal("phi3", "Phi3"),
    causal("falcon", "Falcon", new_decoder_architecture=True, num_kv_heads=2),
    causal("falcon alibi", "Falcon", alibi=True, multi_query=True, parallel_attn=False),
    causal("mpt", "Mpt", d_model=32, n_heads=4, n_layers=2, expansion_ratio=2, max_seq_len=64),
    causal("starcoder2", "Starcoder2"),
    causal("olmo", "Olmo"),
    causal("olmo2", "Olmo2"),
    causal("cohere", "Cohere"),
    causal("cohere2", "Cohere2", sliding_window=8),
    causal("stablelm", "StableLm"),
    causal("granite", "Granite"),
    causal("glm", "Glm", head_dim=8),
    causal("nemotron", "Nemotron"),
    causal("persimmon", "Persimmon"),
    causal("smollm3", "SmolLM3"),
    causal("xglm", "XGLM", d_model=32, num_layers=2, attention_heads=4, ffn_dim=48),
    causal("biogpt", "BioGpt"),
    causal("diffllama", "DiffLlama"),
    causal("exaone4", "Exaone4", sliding_window=8, layer_types=["sliding_attention", "full_attention"]),
)
