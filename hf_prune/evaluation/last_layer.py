"""The last layer of a candidate on tasks: most of its tokens are asked nothing, so they are not computed to the end.

What a token is given by the last layer matters to that token alone. Keys and values are made for all of them; queries
begin where the first answer is scored, and the maps behind attention and the MLP see the scored tokens only.
"""

import copy
from typing import Any

import torch
from torch import Tensor

from hf_prune.models.attention_masks import BlockMask
from hf_prune.models.families import Family


class Asked(torch.nn.Module):
    """A module that works token by token, on the tokens at these places of the flattened rows; zeros elsewhere."""

    def __init__(self, inner: torch.nn.Module, at: Tensor) -> None:
        super().__init__()
        self.inner, self.at = inner, at

    def forward(self, state: Tensor) -> Tensor:
        """[n, T, d] to [n, T, d']."""
        some = self.inner(state.flatten(0, -2)[self.at].unsqueeze(0))
        out = some.new_zeros(state[..., 0].numel(), some.shape[-1])
        return out.index_copy_(0, self.at, some[0]).unflatten(0, state.shape[:-1])


def answering(layer: torch.nn.Module, family: Family, at: Tensor) -> torch.nn.Module:
    """A layer over the same weights whose output is right at these places of the flattened rows, int64 [m], and finite
    elsewhere where the layer's is.

    Opaque halves may do other things in their MLP than work token by token, so their layers stay whole.
    """
    if family.opaque:
        return layer
    for path in (family.attention_out, family.mlp):
        layer = _with(layer, path.split("."), at) if path else layer
    return layer


def _with(module: torch.nn.Module, path: list[str], at: Tensor) -> torch.nn.Module:
    """A shallow copy with `Asked` at the path; the module itself where there is nothing, as in a removed half."""
    child = module._modules.get(path[0])
    if child is None:
        return module
    other = copy.copy(module)
    inside = _with(child, path[1:], at) if path[1:] else Asked(child, at)
    other._modules = {**module._modules, path[0]: inside}
    return other


def from_first(kwargs: dict[str, Any], at: Tensor, length: int) -> dict[str, Any]:
    """What a layer is given, its mask knowing where the first of those places is; rows have so many tokens."""
    if at.device.type != "cpu":
        # Masks know their shape on a CPU only; looking at the places would stop the device for nothing.
        return kwargs
    first = int((at % length).min())
    return {k: v.starting(first) if isinstance(v, BlockMask) else v for k, v in kwargs.items()}
