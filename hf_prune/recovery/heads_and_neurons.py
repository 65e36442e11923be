"""What a head and a neuron are made of: the rows and columns of a layer's tensors that go with them.

Attention is cut by whole groups of query heads that share keys and values (a head each where none are shared), so that
a narrower layer is one that transformers can build: fewer key-value heads, as many queries for each.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_prune.errors import UnsupportedArchitecture
from hf_prune.models.experts import STACKS, cut
from hf_prune.models.families import CUT_BY_WIDTH

ROWS: Mapping[str, tuple[str, ...]] = {
    "self_attn.q_proj": ("queries",),
    "self_attn.k_proj": ("keys",),
    "self_attn.v_proj": ("keys",),
    "self_attn.qkv_proj": ("queries", "keys", "keys"),
    "mlp.gate_proj": ("neurons",),
    "mlp.up_proj": ("neurons",),
    "mlp.gate_up_proj": ("neurons", "neurons"),
}
"""Modules whose outputs are heads or neurons, stacked in this order."""
COLUMNS = {"self_attn.o_proj": "queries", "mlp.down_proj": "neurons"}
"""Modules whose inputs they are."""


@dataclass(frozen=True, slots=True)
class Widths:
    """Of a dense layer: key-value groups, query heads in each, numbers per head, neurons, and experts that have so many
    each (0: no mixture)."""

    groups: int
    heads: int
    size: int
    neurons: int
    experts: int = 0

    @classmethod
    def of(cls, config: Any) -> "Widths":
        """Read off a config; head sizes are never computed where the config states them.

        Raises:
            UnsupportedArchitecture: the family's layers cannot be cut by width.
        """
        if config.model_type not in CUT_BY_WIDTH:
            raise UnsupportedArchitecture(
                f"Width pruning knows {', '.join(CUT_BY_WIDTH)}, not {config.model_type!r}; choose --method collapse, "
                "which removes whole layers."
            )
        heads = config.num_attention_heads
        groups = getattr(config, "num_key_value_heads", None) or heads
        size = getattr(config, "head_dim", None) or config.hidden_size // heads
        experts = getattr(config, "num_experts", 0)
        neurons = config.moe_intermediate_size if experts else config.intermediate_size
        return cls(groups, heads // groups, size, neurons, experts)

    @property
    def unit(self) -> int:
        """Inputs of o_proj that go with one group."""
        return self.heads * self.size

    def settings(self, groups: int, neurons: int) -> dict[str, int]:
        """Config keys of a layer of so many groups and neurons, as far as they differ from the dense layer's."""
        found = {}
        if groups != self.groups:
            found |= {"num_attention_heads": groups * self.heads, "num_key_value_heads": groups}
        key = "moe_intermediate_size" if self.experts else "intermediate_size"
        return found | ({key: neurons} if neurons != self.neurons else {})

    def cut(self, suffix: str, tensor: Tensor, groups: Tensor, neurons: Tensor) -> Tensor:
        """A tensor of a layer with these groups and neurons alone; others are returned as they are.

        Args:
            suffix: its name in the layer.
            tensor: as the dense layer has it.
            groups: int64, rising.
            neurons: int64, rising; of each expert, [experts, neurons left].
        """
        if suffix in STACKS:
            return cut(suffix, tensor, neurons)
        module = suffix.rpartition(".")[0]
        kept = {"queries": spread(groups, self.unit), "keys": spread(groups, self.size), "neurons": neurons}
        if module in ROWS:
            whole = {"queries": self.groups * self.unit, "keys": self.groups * self.size, "neurons": self.neurons}
            index, start = [], 0
            for part in ROWS[module]:
                index.append(kept[part] + start)
                start += whole[part]
            return tensor[torch.cat(index)]
        if module in COLUMNS and tensor.dim() == 2:
            return tensor[:, kept[COLUMNS[module]]]
        return tensor


def spread(units: Tensor, size: int) -> Tensor:
    """Numbers of the rows that belong to units of `size` neighbours."""
    return (units[:, None] * size + torch.arange(size)).flatten()
