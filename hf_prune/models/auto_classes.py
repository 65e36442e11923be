"""Models of several widths among transformers' own: their config and model classes, registered once."""

import copy
from collections.abc import Mapping
from typing import Any

from transformers.configuration_utils import PretrainedConfig

from hf_prune.models import modeling_pruned
from hf_prune.models.modeling_pruned import FAMILIES, PREFIX

FILE = "modeling_pruned.py"
"""What travels with the weights."""


def classes(family: str) -> tuple[type, type]:
    """Config and model class of a family of transformers, cut by width."""
    found = {c.model_type: c for c in vars(modeling_pruned).values() if hasattr(c, "model_type")}
    config = found[PREFIX + family]
    models = {m.config_class: m for m in vars(modeling_pruned).values() if hasattr(m, "config_class")}
    return config, models[config]


def register() -> None:
    """Let AutoConfig and AutoModelForCausalLM know them; a second time nothing happens."""
    from transformers.models.auto.configuration_auto import AutoConfig
    from transformers.models.auto.modeling_auto import AutoModelForCausalLM

    for family in FAMILIES:
        config, model = classes(family)
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModelForCausalLM.register(config, model, exist_ok=True)
        # So that save_pretrained lays the file beside the weights, whoever calls it.
        config.register_for_auto_class()
        model.register_for_auto_class("AutoModelForCausalLM")


def is_pruned(config: PretrainedConfig) -> bool:
    """Whether it is one of these."""
    return config.model_type.startswith(PREFIX)


def pruned_config(config: PretrainedConfig, layers: Mapping[int, Mapping[str, Any]]) -> PretrainedConfig:
    """The config of a model whose layers have these settings of their own (by output layer)."""
    made, model = classes(config.model_type)
    raw = {k: v for k, v in config.to_dict().items() if k not in ("model_type", "architectures", "auto_map")}
    raw |= {"head_dim": head_dim(config), "per_layer_config": {i: dict(s) for i, s in layers.items() if s}}
    found = made(**raw)
    found.auto_map = {"AutoConfig": f"modeling_pruned.{made.__name__}",
                      "AutoModelForCausalLM": f"modeling_pruned.{model.__name__}"}  # fmt: skip
    return found


def uniform_config(config: PretrainedConfig, settings: Mapping[str, Any]) -> PretrainedConfig | None:
    """The stock config of a model whose layers all have these settings; None where the stock classes refuse it."""
    heads = settings.get("num_attention_heads")
    if "skip" in settings or heads and config.hidden_size % heads:
        return None
    found = copy.deepcopy(config)
    for key, value in {**settings, **({"head_dim": head_dim(config)} if heads else {})}.items():
        setattr(found, key, value)
    return found


def head_dim(config: PretrainedConfig) -> int:
    """Numbers per head; stated or not."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


register()
