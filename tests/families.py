"""A tiny random model of every family hf_prune has a row for, and of some it infers."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from hf_prune.assembly.assemble import Parent
from hf_prune.blueprint import Blueprint, LayerSpec, Part, Source
from tests.shrunk import shrunk

DEPTH, VOCABULARY = 6, 97
SOURCE = Source("ns/tiny", "a" * 40)
SLIDING = ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention"]
# No two neighbours may be cut the same way, or a list sliced wrongly would look right.
MIXED = {"layer_types": SLIDING + ["full_attention", "sliding_attention"], "sliding_window": 5}

SHARED = {
    "vocab_size": VOCABULARY,
    "num_hidden_layers": DEPTH,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
GROUPED = {**SHARED, "num_key_value_heads": 2}
TIED = {"tie_word_embeddings": True}

TINY: dict[str, dict[str, Any]] = {
    "llama": {**GROUPED, "attention_bias": True, "mlp_bias": True},
    "mistral": {**GROUPED, "sliding_window": 5},
    "qwen2": {**GROUPED, **MIXED, **TIED, "use_sliding_window": True},
    "qwen3": {**GROUPED, **MIXED, "use_sliding_window": True, "head_dim": 16},
    "gemma2": {**GROUPED, **MIXED, **TIED, "head_dim": 8, "query_pre_attn_scalar": 8},
    "gemma3_text": {**GROUPED, **MIXED, **TIED, "head_dim": 8, "query_pre_attn_scalar": 8},
    "phi3": {**GROUPED, "sliding_window": 5},
    "olmo2": GROUPED,
    "glm4": {**GROUPED, "head_dim": 8},
    "qwen3_moe": {**GROUPED, "head_dim": 16, "moe_intermediate_size": 48, "num_experts": 4, "num_experts_per_tok": 2},
    "smollm3": {**GROUPED, **MIXED, **TIED, "use_sliding_window": True, "no_rope_layers": [1, 1, 0, 1, 0, 0]},
    "granite": {**GROUPED, **TIED, "residual_multiplier": 0.7, "attention_multiplier": 0.4, "logits_scaling": 2.0},
    "gpt_neox": {**SHARED, "rotary_pct": 0.5},
    "gpt2": {
        "vocab_size": VOCABULARY, "n_layer": DEPTH, "n_embd": 32, "n_head": 4, "n_positions": 64, "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "opt": {**SHARED, **TIED, "ffn_dim": 48, "word_embed_proj_dim": 16},
}  # fmt: skip
"""Settings by model type, of the rows of `families.FAMILIES` that most tests go through."""

INFERRED: dict[str, dict[str, Any]] = {
    "cohere": {**GROUPED, **TIED, "logit_scale": 0.4},
    "olmo": {**GROUPED, "clip_qkv": 2.0},
    "stablelm": {**GROUPED, "use_qkv_bias": True},
    "starcoder2": {**GROUPED, **TIED, "sliding_window": 5, "use_bias": True},
}
"""The same for families without a row."""

EVERY = {**TINY, **INFERRED}


def config_of(model_type: str, **changes: Any) -> PretrainedConfig:
    """By the settings here, or those that its names tell."""
    if model_type not in EVERY:
        return shrunk(model_type, **changes)
    return AutoConfig.for_model(model_type, **{**EVERY[model_type], **changes})


def jittered(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """With noise on every parameter, so that one left out or swapped shows."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            noise = torch.randn(p.shape, generator=draw)
            p.copy_(p + 0.3 * noise if p.dim() == 1 else p + 0.1 * noise)
    return model.eval()


def tiny(model_type: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> PreTrainedModel:
    """A seeded random model; norms and biases are random too, so that one left out or swapped shows."""
    model = AutoModelForCausalLM.from_config(config_of(model_type, **changes))
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            noise = torch.randn(p.shape, generator=draw)
            p.copy_(p + 0.3 * noise if p.dim() == 1 else 0.2 * noise)
    return model.to(dtype).eval()


def save_tiny(model_type: str, folder: Path, dtype: torch.dtype = torch.float32, **changes: Any) -> PreTrainedModel:
    """Write `tiny` by stock save_pretrained and return it."""
    model = tiny(model_type, dtype=dtype, **changes)
    model.save_pretrained(folder)
    return model


def opened(folder: Path, **how: Any) -> Parent:
    """The folder as a source."""
    return Parent.open(SOURCE, folder, **how)


def blueprint(*layers: LayerSpec | int) -> Blueprint:
    """Layers given whole, or by source number."""
    return Blueprint((SOURCE,), tuple(LayerSpec((Part(0, s),)) if isinstance(s, int) else s for s in layers))


def mean(*layers: int, norms: int | None = None) -> LayerSpec:
    """The average of source layers."""
    parts = tuple(Part(0, i, 1 / len(layers)) for i in layers)
    return LayerSpec(parts, norms=None if norms is None else Part(0, norms))
