"""Llama models whose layers differ in width, in the dialect of nemotron-nas: `block_configs` has an entry per layer.

Self-contained: this file travels with the weights. Programs that serve DeciLMForCausalLM take the config from it;
transformers takes the model too, with trust_remote_code.
"""

import copy
from typing import Any

import torch
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaForCausalLM

MULTIPLE = 256
"""Neurons come in so many."""


class Block(dict):
    """A dictionary whose entries are attributes too, since some programs ask one way and some the other."""

    @classmethod
    def of(cls, raw: dict[str, Any]) -> "Block":
        """With dictionaries inside made the same."""
        return cls({k: cls.of(v) if isinstance(v, dict) else v for k, v in raw.items()})

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class DeciLMConfig(LlamaConfig):
    """Llama's, and per layer `attention` {n_heads_in_group, no_op} and `ffn` {ffn_mult or intermediate_size, no_op}."""

    model_type = "nemotron-nas"

    def __init__(self, *args: Any, block_configs: list[dict[str, Any]] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.block_configs = [Block.of(block) for block in block_configs or ()]

    def validate_architecture(self) -> None:
        """The size of a head is stated, so that heads need not divide the hidden size."""


class Nothing(torch.nn.Module):
    """Stands where a half was: adds nothing to the residual stream."""

    def __init__(self, pair: bool) -> None:
        super().__init__()
        self.pair = pair

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> Any:
        """Zeros of the input's shape; attention returns its (absent) weights beside them."""
        zeros = torch.zeros_like(hidden_states)
        return (zeros, None) if self.pair else zeros


class DeciLMForCausalLM(LlamaForCausalLM):
    """Llama with every layer as its block says."""

    config_class = DeciLMConfig

    def __init__(self, config: DeciLMConfig) -> None:
        super().__init__(config)
        for layer, block in zip(self.model.layers, config.block_configs, strict=True):
            _fit(layer, block, config)


def neurons(ffn_mult: float, hidden_size: int) -> int:
    """Of an MLP: two thirds of the multiple of the hidden size, rounded up to a multiple of 256."""
    return -(-int(2 * ffn_mult * hidden_size / 3) // MULTIPLE) * MULTIPLE


def _fit(layer: torch.nn.Module, block: Block, config: DeciLMConfig) -> None:
    if block.attention.no_op:
        layer.self_attn, layer.input_layernorm = Nothing(pair=True), torch.nn.Identity()
    if block.ffn.no_op:
        layer.mlp, layer.post_attention_layernorm = Nothing(pair=False), torch.nn.Identity()
    else:
        own = copy.copy(config)
        plain = block.ffn.get("intermediate_size")
        own.__dict__["intermediate_size"] = plain or neurons(block.ffn.ffn_mult, config.hidden_size)
        layer.mlp = type(layer.mlp)(own)
