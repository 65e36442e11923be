"""A tiny config of every causal language model that transformers knows, by what its settings are called."""

import re
from typing import Any

from huggingface_hub.errors import StrictDataclassClassValidationError
from transformers import CONFIG_MAPPING, PretrainedConfig

from hf_prune.models.inference import language_tower

DEPTH, VOCABULARY = 6, 97
SIZES = (
    (r"index_topk|keep_window_size|max_inference_chunksize", 64),
    (r"topk_group$", 1),
    (r"(num_hidden_layers|n_layers?|num_layers|coder_layers|num_blocks)$", DEPTH),
    (r"vocab_size$", VOCABULARY),
    (r"num_(key_value|kv)_heads$", 2),
    (r"(num_attention_heads|n_heads?|num_heads|coder_attention_heads)$", 4),
    (r"(q|kv)_lora_rank$", 16),
    (r"(head_dim|_head_size|d_head)$", 8),
    (r"(^hidden_size|d_model|n_embd|^dim|embedding_size|_embed_dim|embedding_dim)$", 32),
    (r"(intermediate_size|ffn_dim|d_ff|n_inner|ffn_hidden_size|inner_dim)$", 48),
    (r"(num_experts|n_routed_experts|num_local_experts|moe_num_experts)$", 4),
    (r"(num_experts_per_tok(en)?|top_?k|moe_k|n_group|num_expert_group)$", 2),
    (r"(max_position_embeddings|n_positions|n_ctx|max_seq_len|seq_length|max_sequence_length|model_max_length)$", 64),
    (r"sliding_window|window_size|attention_window", 5),
)
"""Numbers by the first pattern that fits; any other is kept, or 16 where it is large."""
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8}
TYPES = ["full_attention", "linear_attention", "linear_attention", "linear_attention", "full_attention",
         "linear_attention"]  # fmt: skip
CONV = [t.replace("linear_attention", "conv") for t in TYPES]
OWN: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [0, 4], **MAMBA},
    "codegen": {"rotary_dim": 4},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 1e4},
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": {"num_experts_per_tok": 2, "n_routed_experts": 4, "first_k_dense_replace": 1},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    "dots3_note": {f"{k}_config": {"adapter_out_dim": 32} for k in ("vision", "audio")},
    "dots3_note_text": {f"swa_{k}": v for k, v in {
        "num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "head_dim": 16,
        "qk_nope_head_dim": 8, "v_head_dim": 8}.items()},
    "falcon_h1": {**MAMBA, "mamba_d_ssm": 64, "mamba_n_groups": 2},
    "gemma3n_text": {"num_kv_shared_layers": 3, "layer_types": ["sliding_attention", "full_attention"] * 3,
                     "activation_sparsity_pattern": [0.0] * DEPTH},
    "gemma4_assistant": {"text_config": {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}},
    "gemma4_text": {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0, "global_head_dim": 16},
    "gemma4_unified_text": {"global_head_dim": 16},
    "gpt_neo": {"attention_types": [[["global", "local"], 3]]},
    "gptj": {"rotary_dim": 4},
    "granitemoehybrid": {"layer_types": TYPES, **MAMBA, "shared_intermediate_size": 48},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8, "moe_topk": 2},
    "lfm2": {"layer_types": CONV},
    "lfm2_moe": {"layer_types": CONV},
    "longcat_flash": {"qk_head_dim": 16},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 2},
    "ministral": {"head_dim": 8},
    "moshi": {"sliding_window": 64},
    "nemotron": {"head_dim": 8, "num_key_value_heads": 2},
    "nemotron_h": {"layers_block_type": ["full_attention", "linear_attention", "moe", "linear_attention", "mlp", "moe"],
                   "n_groups": 2, "mamba_num_heads": 4, "mamba_head_dim": 8, "n_group": 1},
    "qwen3_5_moe_text": {"layer_types": TYPES},
    "qwen3_5_text": {"layer_types": TYPES},
    "qwen3_next": {"layer_types": TYPES},
    "qwen4_exp_text": {"indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 8,
                       "indexer_compress_ratio": 2},
    "reformer": {"is_decoder": True, "axial_pos_embds": False},
    "xlnet": {"d_model": 32, "n_head": 4, "d_head": 8},
    "xlstm": {"hidden_size": 128, "embedding_dim": 128},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"attn_layer_period": 3, "attn_layer_offset": 1},
    "zamba2": {"layers_block_type": [t.replace("full_attention", "hybrid") for t in TYPES]},
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip
"""What the names do not tell."""


def shrunk(model_type: str, **changes: Any) -> PretrainedConfig:
    """The config that a causal language model of this type is built from."""
    made = CONFIG_MAPPING[model_type]
    return language_tower(made(**_shrunk(made) | changes))


def whole(model_type: str) -> PretrainedConfig:
    """The config of all of a model whose language tower is one of these."""
    made = CONFIG_MAPPING[model_type]
    return made(**_shrunk(made))


def _shrunk(made: type[PretrainedConfig]) -> dict[str, Any]:
    """Settings of a config class and, in it, of others."""
    found: dict[str, Any] = {}
    try:
        default = made()
    # Its own defaults contradict each other.
    except StrictDataclassClassValidationError:
        return OWN[made.model_type]
    for key, value in default.to_dict().items():
        inner = getattr(default, key, None) if isinstance(value, dict) else None
        if isinstance(inner, PretrainedConfig):
            found[key] = _shrunk(type(inner)) | {"model_type": inner.model_type}
        elif key.endswith("token_id") and value is not None:
            found[key] = [_token(v) for v in value] if isinstance(value, list) else _token(value)
        elif isinstance(value, int) and not isinstance(value, bool):
            found[key] = next(
                (size for pattern, size in SIZES if re.search(pattern, key)), 16 if value >= 64 else value
            )
        # A factor of one would hide that somebody leaves it out.
        elif (
            isinstance(value, float)
            and value == 1.0
            and re.search(r"multiplier|scal(e|ing|ar)$", key)
            and "rope" not in key
        ):
            found[key] = 0.8
    if "kv_lora_rank" in found or made.model_type.startswith("dots3_note"):
        found["num_key_value_heads"] = found.get("num_attention_heads")
    return found | OWN.get(made.model_type, {})


def _token(number: int) -> int:
    return number if number < VOCABULARY else 90 + number % 7
