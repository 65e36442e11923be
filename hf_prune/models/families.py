"""Where a model keeps its layers and their halves: one frozen row per family.

Families without a row are inferred from the module tree (`inference`); rows need no model, so nothing here loads torch.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from hf_prune.errors import UnsupportedArchitecture

Names = str | tuple[str, ...]
"""A name, or several where the layers of one family differ."""


@dataclass(frozen=True, slots=True)
class Family:
    """Names inside one model family.

    `layers` is the path of the layer list, `norm` the final norm before the head. Inside a layer, `attention` and `mlp`
    are the halves (what mixes tokens, and what works on each alone), `attention_out` and `mlp_out` what they add to the
    residual stream by (tensors, where experts are stacked). Without `attention`, layers are no two halves that hf_prune
    knows; without `mlp` alone, the MLP has no module of its own. `attention_norm` and `mlp_norm` are RMS norms that a
    half's output passes before it is added. `opaque` halves return other things than Llama's. `depth_key` counts the
    layers in a config; `scales` are keys that logits are multiplied (1) or divided (-1) by; `refuse` lists keys with
    the value that is fine, and why no other is. `last` is the type that the last layer must have.
    """

    model_type: str
    layers: str = "model.layers"
    norm: str = "model.norm"
    attention: Names | None = "self_attn"
    attention_out: Names | None = "self_attn.o_proj"
    mlp: Names | None = "mlp"
    mlp_out: Names | None = "mlp.down_proj"
    attention_norm: str | None = None
    mlp_norm: str | None = None
    depth_key: str = "num_hidden_layers"
    scales: tuple[tuple[str, int], ...] = (("logit_scale", 1), ("logits_scaling", -1), ("lm_head_multiplier", 1))
    refuse: tuple[tuple[str, Any, str], ...] = ()
    last: str | None = None
    opaque: bool = False
    inferred: bool = False

    @property
    def prefix(self) -> str:
        """What every tensor name of layer i begins with, up to the number."""
        return self.layers + "."

    @property
    def halved(self) -> bool:
        """Whether a layer is two halves that each add to the residual stream."""
        return self.attention is not None

    @property
    def modular(self) -> bool:
        """Whether each half is one module, whose output can be looked at."""
        return self.halved and not isinstance(self.mlp, tuple)

    def is_norm(self, suffix: str) -> bool:
        """Whether a tensor of a layer (`self_attn.q_norm.weight`) belongs to a normalisation."""
        return bool(re.search(r"norm|(^|\.)ln_", suffix))

    def half(self, suffix: str) -> str | None:
        """`attention`, `mlp` or None (norms between halves) for a tensor of a layer."""
        if not self.halved:
            return None
        if _within(suffix, self.attention):
            return "attention"
        return "mlp" if _within(suffix, self.mlp or ("fc1", "fc2")) else None

    def silenced(self, suffix: str, attention_gone: bool, mlp_gone: bool) -> bool:
        """Whether a tensor must be zero so that a removed half adds nothing in stock classes."""
        gone = _several(self.attention_out) * attention_gone + _several(self.mlp_out) * mlp_gone
        # Experts are stacked in a tensor that no module holds by itself.
        return any(suffix == out for out in gone) or _within(suffix, gone)

    def of_layer(self, suffixes: Collection[str]) -> "Family":
        """The same row for one layer, by the names of its tensors: one name, or none, where the family has several."""

        def only(names: Names | None) -> str | None:
            here = [n for n in _several(names) if any(s == n or s.startswith(n + ".") for s in suffixes)]
            return here[0] if len(here) == 1 else None

        many = {k: only(v) for k in ("attention", "attention_out", "mlp", "mlp_out")
                if isinstance(v := getattr(self, k), tuple)}  # fmt: skip
        return replace(self, **many) if many else self


def _several(names: Names | None) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names or ()


def _within(suffix: str, names: Names | None) -> bool:
    return any(suffix.startswith(n + ".") for n in _several(names))


POST_NORMS = {"attention_norm": "post_attention_layernorm", "mlp_norm": "post_feedforward_layernorm"}
EXPERTS = ("mlp.experts.down_proj",)
SHARED_EXPERT = {"mlp_out": ("mlp.down_proj", *EXPERTS, "mlp.shared_expert.down_proj"), "opaque": True}
SHARED_EXPERTS = {"mlp_out": ("mlp.down_proj", *EXPERTS, "mlp.shared_experts.down_proj"), "opaque": True}
LINEAR_ATTENTION = {
    "attention": ("self_attn", "linear_attn"),
    "attention_out": ("self_attn.o_proj", "linear_attn.out_proj"),
    "opaque": True,
}
WHOLE = {"attention": None, "attention_out": None, "mlp": None, "mlp_out": None}
"""Layers that are no two halves."""

FAMILIES: Mapping[str, Family] = {
    f.model_type: f
    for f in (
        Family("llama"),
        Family("mistral"),
        Family("ministral"),
        Family("ministral3"),
        Family("qwen2"),
        Family("qwen3"),
        Family("phi3"),
        Family("smollm3"),
        Family("granite"),
        Family("hyperclovax", scales=(("logits_scaling", 1),)),
        Family(
            "inkling_text",
            scales=(("logits_mup_width_multiplier", -1),),
            refuse=(("unpadded_vocab_size", None, "it leaves the padding of its vocabulary out of its logits"),),
            **WHOLE,
        ),
        Family("cohere2"),
        Family("olmo2", **POST_NORMS),
        Family("olmo3", **POST_NORMS),
        Family("exaone4", **POST_NORMS),
        Family("glm4", attention_norm="post_self_attn_layernorm", mlp_norm="post_mlp_layernorm"),
        Family("gemma2", **POST_NORMS),
        Family("gemma3_text", **POST_NORMS),
        Family("gemma4_text", last="full_attention", **WHOLE),
        Family("gemma4_unified_text", last="full_attention", **WHOLE),
        Family("qwen3_moe", mlp_out="mlp.experts.down_proj"),
        Family("mixtral", mlp_out="mlp.experts.down_proj", opaque=True),
        Family("olmoe", mlp_out="mlp.experts.down_proj", opaque=True),
        Family("gpt_oss", mlp_out=(*EXPERTS, "mlp.experts.down_proj_bias"), opaque=True),
        Family("qwen2_moe", **SHARED_EXPERT),
        Family("glm4_moe", **SHARED_EXPERTS),
        Family("deepseek_v3", **SHARED_EXPERTS),
        Family("qwen3_5_text", **LINEAR_ATTENTION),
        Family("qwen3_5_moe_text", **LINEAR_ATTENTION | SHARED_EXPERT),
        Family("qwen3_next", **LINEAR_ATTENTION | SHARED_EXPERT),
        Family(
            "lfm2",
            norm="model.embedding_norm",
            attention=("self_attn", "conv"),
            attention_out=("self_attn.out_proj", "conv.out_proj"),
            mlp="feed_forward",
            mlp_out="feed_forward.w2",
            opaque=True,
        ),
        Family(
            "granitemoehybrid",
            attention=("self_attn", "mamba"),
            attention_out=("self_attn.o_proj", "mamba.out_proj"),
            mlp=("block_sparse_moe", "shared_mlp"),
            mlp_out=("block_sparse_moe.experts.down_proj", "shared_mlp.output_linear"),
            opaque=True,
        ),
        Family("nemotron_h", norm="model.norm_f", **WHOLE),
        Family("minimax", **WHOLE),
        Family(
            "gpt_neox",
            layers="gpt_neox.layers",
            norm="gpt_neox.final_layer_norm",
            attention="attention",
            attention_out="attention.dense",
            mlp_out="mlp.dense_4h_to_h",
        ),
        Family(
            "gpt2",
            layers="transformer.h",
            norm="transformer.ln_f",
            attention="attn",
            attention_out="attn.c_proj",
            mlp_out="mlp.c_proj",
            depth_key="n_layer",
            refuse=(("scale_attn_by_inverse_layer_idx", False, "it scales attention by the layer's number"),),
        ),
        Family(
            "opt",
            layers="model.decoder.layers",
            norm="model.decoder.final_layer_norm",
            attention_out="self_attn.out_proj",
            mlp=None,
            mlp_out="fc2",
            refuse=(
                ("do_layer_norm_before", True, "its layers normalise after the sum, so none is a residual update"),
                ("_remove_final_layer_norm", False, "it has no final norm before the head"),
            ),
        ),
    )
}

REFUSED: tuple[tuple[str, Any, str], ...] = (
    ("is_encoder_decoder", False, "it is an encoder with a decoder, and hf_prune cuts decoders that stand alone"),
    ("num_kv_shared_layers", 0, "its last layers use keys and values of earlier ones"),
    ("hidden_size_per_layer_input", 0, "it embeds every token anew for each layer, in one tensor for all of them"),
    ("moe_layer_interval", 1, "it tells experts by a period, and its config has no list to say what is left"),
    ("cross_attention_layers", [], "some of its layers read images"),
    ("rescale_every", 0, "it halves its activations every few layers, by their number"),
)
"""What no layer may depend on, whatever the family: config key, value that is fine, reason."""
UNCUT: Mapping[str, str] = {
    "blt": "it is several stacks of layers, which read bytes and patches of bytes",
    "bloom": "its layers are given biases made for a whole batch, so candidates cannot be scored side by side",
    "xglm": "its layers are given masks made for a whole batch, so candidates cannot be scored side by side",
    "cpmant": "it puts a prompt of its own before every text",
    "gemma4_assistant": "it drafts for another model, whose keys and values it uses",
    "gemma4_unified_assistant": "it drafts for another model, whose keys and values it uses",
    "hrm_text": "it runs two stacks of layers in circles",
    "jamba": "its config tells attention layers and experts by periods, and cannot list those that are left",
    "reformer": "its layers carry two streams, and none can go without its pair",
    "recurrent_gemma": "it keeps its state inside of its modules, so that decoding with a cache cannot be checked",
}
"""Model types that no cut is made of, and why, where their modules do not show it."""
CUT_BY_WIDTH = ("llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "gemma2", "gemma3_text", "phi3", "smollm3")
"""Families that can be cut by width; `modeling_pruned`, which travels alone, has them too."""


def refuse(family: Family, settings: Mapping[str, Any]) -> None:
    """Raise where a config has a rule that no cut can follow.

    Args:
        family: of the config.
        settings: of the config, with the defaults that its file leaves out.

    Raises:
        UnsupportedArchitecture: names the setting and the reason.
    """
    if reason := UNCUT.get(family.model_type):
        raise UnsupportedArchitecture(f"A {family.model_type} cannot be cut: {reason}. Choose another base.")
    for key, fine, reason in (*family.refuse, *REFUSED):
        value = settings.get(key, fine)
        if value != fine and value is not None:
            raise UnsupportedArchitecture(
                f"{family.model_type} with {key}={value} cannot be cut: {reason}. Choose another base."
            )
