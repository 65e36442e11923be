"""Decoder models whose layers differ: fewer heads here, fewer neurons or experts there, some halves gone.

Self-contained: this file travels with the weights, so that they load with trust_remote_code where hf_prune is not
installed; `import hf_prune` registers the same classes, and then no remote code is needed. The layers are those of
transformers, built from a config of their own: `per_layer_config` maps a layer's number to what differs there
(`intermediate_size` or `moe_intermediate_size`, `num_attention_heads`, `num_key_value_heads`, the number of experts by
the family's name for it, and `skip`, a list of "attention" and "mlp"). The model types are their own (`pruned_llama`,
...), so a program that knows neither refuses instead of filling the gaps with random weights.
"""

import copy
import importlib
from typing import Any

import torch

FAMILIES = {
    "llama": ("llama", "LlamaConfig", "LlamaForCausalLM"),
    "mistral": ("mistral", "MistralConfig", "MistralForCausalLM"),
    "qwen2": ("qwen2", "Qwen2Config", "Qwen2ForCausalLM"),
    "qwen3": ("qwen3", "Qwen3Config", "Qwen3ForCausalLM"),
    "qwen3_moe": ("qwen3_moe", "Qwen3MoeConfig", "Qwen3MoeForCausalLM"),
    "gemma2": ("gemma2", "Gemma2Config", "Gemma2ForCausalLM"),
    "gemma3_text": ("gemma3", "Gemma3TextConfig", "Gemma3ForCausalLM"),
    "phi3": ("phi3", "Phi3Config", "Phi3ForCausalLM"),
    "smollm3": ("smollm3", "SmolLM3Config", "SmolLM3ForCausalLM"),
    "qwen2_moe": ("qwen2_moe", "Qwen2MoeConfig", "Qwen2MoeForCausalLM"),
    "mixtral": ("mixtral", "MixtralConfig", "MixtralForCausalLM"),
    "olmoe": ("olmoe", "OlmoeConfig", "OlmoeForCausalLM"),
    "gpt_oss": ("gpt_oss", "GptOssConfig", "GptOssForCausalLM"),
    "granitemoe": ("granitemoe", "GraniteMoeConfig", "GraniteMoeForCausalLM"),
    "glm4_moe": ("glm4_moe", "Glm4MoeConfig", "Glm4MoeForCausalLM"),
    "deepseek_v3": ("deepseek_v3", "DeepseekV3Config", "DeepseekV3ForCausalLM"),
}
"""Model types that may be cut this way: package of transformers, config, model; the classes here bear their names."""
PREFIX = "pruned_"
HALVES = {"attention": "self_attn", "mlp": "mlp"}


class Skipped(torch.nn.Module):
    """Stands where a half was: adds nothing to the residual stream."""

    def __init__(self, half: str) -> None:
        super().__init__()
        self.half = half

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> Any:
        """Zeros of the input's shape; attention returns its (absent) weights beside them."""
        zeros = torch.zeros_like(hidden_states)
        return (zeros, None) if self.half == "attention" else zeros


def layer_config(config: Any, layer: int) -> Any:
    """The config that layer is built from."""
    own = copy.copy(config)
    for key, value in config.layer_overrides.get(layer, {}).items():
        if key != "skip":
            own.__dict__[own.attribute_map.get(key, key)] = value
    return own


def packed(layer: torch.nn.Module, config: Any, number: int) -> torch.nn.Module:
    """A layer of the same class in its own width; its weights are to be loaded."""
    made = type(layer)(layer_config(config, number), number)
    for half in config.layer_overrides[number].get("skip", ()):
        setattr(made, HALVES[half], Skipped(half))
    return made


class _PrunedConfig:
    """What the config of a pruned model has besides its family's."""

    def __init__(self, *args: Any, per_layer_config: dict[Any, dict[str, Any]] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.__dict__["layer_overrides"] = {int(k): dict(v) for k, v in (per_layer_config or {}).items()}

    def to_dict(self) -> dict[str, Any]:
        raw = super().to_dict()
        raw.pop("layer_overrides", None)
        return {**raw, "per_layer_config": {str(k): v for k, v in sorted(self.layer_overrides.items())}}


class _PrunedModel:
    """What a pruned model does besides its family's."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for number in config.layer_overrides:
            self.model.layers[number] = packed(self.model.layers[number], config, number)


def _classes(family: str) -> tuple[type, type]:
    package, stock_config, stock_model = FAMILIES[family]
    configs = importlib.import_module(f"transformers.models.{package}.configuration_{package}")
    models = importlib.import_module(f"transformers.models.{package}.modeling_{package}")
    here = {"__module__": __name__}
    config = type(
        f"Pruned{stock_config}",
        (_PrunedConfig, getattr(configs, stock_config)),
        {**here, "model_type": PREFIX + family, "__init__": _PrunedConfig.__init__},
    )
    model = type(f"Pruned{stock_model}", (_PrunedModel, getattr(models, stock_model)), {**here, "config_class": config})
    return config, model


for _family in FAMILIES:
    for _made in _classes(_family):
        globals()[_made.__name__] = _made

DONE = True
"""All classes are there."""
