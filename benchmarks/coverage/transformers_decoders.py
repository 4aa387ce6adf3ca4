"""Decoders: multi-head, grouped queries, sliding windows, partial rotary, experts, state space."""

from typing import Any

from benchmarks.coverage.transformers_tiny import DECODER, GROUPED, VOCABULARY, Tiny, text


def decoder(name: str, prefix: str, common: dict[str, Any] = DECODER, **config: Any) -> Tiny:
    """Make a causal language model."""
    return Tiny(name, f"{prefix}ForCausalLM", common | config, text)


def grouped(name: str, prefix: str, **config: Any) -> Tiny:
    """Make a causal language model with three query heads for each key-value head."""
    return decoder(name, prefix, GROUPED, **config)


GPT2 = {
    "vocab_size": VOCABULARY,
    "n_embd": 48,
    "n_layer": 2,
    "n_head": 6,
    "n_positions": 40,
    "use_cache": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 40}
LATENT = {
    "q_lora_rank": 20,
    "kv_lora_rank": 24,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 10,
    "num_key_value_heads": 6,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 40,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
LINEAR_ATTENTION = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
}
MAMBA2 = {
    "mamba_n_heads": 6,
    "mamba_d_head": 16,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
    "mamba_expand": 2,
    "mamba_chunk_size": 4,
}

MODELS = [
    Tiny("gpt2", "GPT2LMHeadModel", GPT2, text),
    Tiny("openai_gpt", "OpenAIGPTLMHeadModel", GPT2, text),
    Tiny("gpt_bigcode_mqa", "GPTBigCodeForCausalLM", GPT2, text),
    decoder("gptj", "GPTJ", GPT2, rotary_dim=4, tie_word_embeddings=False),
    decoder("codegen", "CodeGen", GPT2 | {"n_head": 4}, rotary_dim=4, tie_word_embeddings=False),
    decoder(
        "gpt_neo_local",
        "GPTNeo",
        DECODER,
        num_layers=2,
        num_heads=6,
        attention_types=[[["global", "local"], 1]],
        window_size=5,
    ),
    decoder("gpt_neox_partial_rotary", "GPTNeoX", rotary_pct=0.5),
    decoder("opt", "OPT", ffn_dim=80, word_embed_proj_dim=20),
    decoder("bloom_alibi", "Bloom", n_layer=2, n_head=6),
    decoder("mpt_alibi", "Mpt", d_model=48, n_layers=2, n_heads=6, max_seq_len=40),
    decoder("falcon_mqa", "Falcon"),
    decoder("falcon_new", "Falcon", new_decoder_architecture=True, num_kv_heads=2),
    Tiny("ctrl", "CTRLLMHeadModel", GPT2 | {"dff": 80}, text),
    decoder("xglm", "XGLM", d_model=48, num_layers=2, attention_heads=6, ffn_dim=80),
    decoder("biogpt", "BioGpt"),
    decoder("llama", "Llama"),
    grouped("llama_grouped", "Llama"),
    decoder("llama_multi_query", "Llama", num_key_value_heads=1),
    grouped("llama_tied", "Llama", tie_word_embeddings=True),
    grouped("llama_biases", "Llama", attention_bias=True, mlp_bias=True),
    grouped("mistral_window", "Mistral", sliding_window=5),
    grouped("ministral", "Ministral", head_dim=8),
    grouped("qwen2", "Qwen2"),
    grouped(
        "qwen2_window", "Qwen2", use_sliding_window=True, sliding_window=5, max_window_layers=1
    ),
    grouped("qwen3_qk_norm", "Qwen3", head_dim=16),
    grouped("gemma", "Gemma", head_dim=16),
    grouped("gemma2_softcap", "Gemma2", head_dim=16, sliding_window=5),
    decoder("gemma3", "Gemma3", GROUPED, head_dim=16, sliding_window=5),
    decoder("phi_partial_rotary", "Phi", partial_rotary_factor=0.5),
    grouped("phi3_packed", "Phi3"),
    grouped("olmo_clipped", "Olmo", clip_qkv=8.0),
    grouped("olmo2_qk_norm", "Olmo2"),
    grouped("olmo3_window", "Olmo3", sliding_window=5),
    grouped("stablelm_partial_rotary", "StableLm", partial_rotary_factor=0.5),
    grouped("starcoder2", "Starcoder2"),
    grouped("cohere_parallel", "Cohere"),
    grouped("cohere2_window", "Cohere2", sliding_window=5),
    grouped("granite_multipliers", "Granite", attention_multiplier=0.2, residual_multiplier=0.4),
    grouped("glm_partial_rotary", "Glm", head_dim=8, partial_rotary_factor=0.5),
    grouped("glm4_sandwich", "Glm4", head_dim=8, partial_rotary_factor=0.5),
    grouped("smollm3_no_rope", "SmolLM3", no_rope_layer_interval=2),
    grouped("exaone4", "Exaone4", sliding_window=5),
    grouped("nemotron_squared_relu", "Nemotron", partial_rotary_factor=0.5, head_dim=8),
    decoder("persimmon_packed", "Persimmon", partial_rotary_factor=0.5),
    grouped("helium", "Helium", head_dim=8),
    grouped("arcee", "Arcee"),
    grouped("apertus_xielu", "Apertus"),
    grouped("seed_oss", "SeedOss", head_dim=8),
    grouped("diffllama", "DiffLlama", num_attention_heads=4, head_dim=12),
    grouped("ernie4_5", "Ernie4_5", head_dim=8),
    grouped("nanochat", "NanoChat"),
    decoder("modernbert_decoder", "ModernBertDecoder", cls_token_id=1, sep_token_id=2),
    # Mixtures of experts
    grouped("mixtral", "Mixtral", num_local_experts=4, num_experts_per_tok=2),
    grouped("qwen2_moe", "Qwen2Moe", **EXPERTS, shared_expert_intermediate_size=56),
    grouped("qwen3_moe", "Qwen3Moe", **EXPERTS, head_dim=8),
    grouped("olmoe", "Olmoe", num_experts=4, num_experts_per_tok=2),
    grouped("phimoe", "Phimoe", num_local_experts=4, num_experts_per_tok=2),
    grouped("granite_moe", "GraniteMoe", num_local_experts=4, num_experts_per_tok=2),
    grouped(
        "gpt_oss_sinks",
        "GptOss",
        num_local_experts=4,
        num_experts_per_tok=2,
        head_dim=8,
        sliding_window=5,
    ),
    decoder("deepseek_v2_latent", "DeepseekV2", **LATENT),
    decoder("deepseek_v3_latent", "DeepseekV3", **LATENT),
    # State space, linear attention and hybrids
    decoder("mamba", "Mamba", state_size=8, conv_kernel=3, time_step_rank=5),
    decoder(
        "mamba2",
        "Mamba2",
        num_heads=6,
        head_dim=16,
        n_groups=2,
        state_size=8,
        chunk_size=4,
        expand=2,
    ),
    decoder("falcon_mamba", "FalconMamba", state_size=8, conv_kernel=3, time_step_rank=5),
    decoder("rwkv", "Rwkv", attention_hidden_size=48, context_length=40),
    grouped("recurrent_gemma", "RecurrentGemma", lru_width=48, attention_window_size=5, head_dim=8),
    grouped(
        "jamba",
        "Jamba",
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
        num_experts=4,
        mamba_d_state=8,
        mamba_dt_rank=5,
        use_mamba_kernels=False,
    ),
    grouped("bamba", "Bamba", **MAMBA2, attn_layer_indices=[1]),
    grouped("lfm2_short_conv", "Lfm2", full_attn_idxs=[1], block_multiple_of=8),
    grouped(
        "qwen3_next_delta",
        "Qwen3Next",
        **EXPERTS,
        **LINEAR_ATTENTION,
        head_dim=8,
        shared_expert_intermediate_size=56,
        layer_types=["linear_attention", "full_attention"],
    ),
]
