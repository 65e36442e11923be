"""Mixtures of experts: their stacks of weights, cut by experts or by width, and what reaches each expert's neurons.

Modules hold two stacks of all experts: `gate_up_proj` [experts, 2 * neurons, d], gates above ups, and `down_proj`
[experts, d, neurons].
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from hf_prune.blueprint import Blend

PATH = "mlp.experts"
NAME = PATH.rpartition(".")[2]
STACKS = (f"{PATH}.gate_up_proj", f"{PATH}.down_proj")
"""Their names in a layer."""


def stacked(model: torch.nn.Module) -> list[str]:
    """Ends of the names of all stacks in a model (`mlp.experts.down_proj`); none where it is no mixture."""
    stacks = [n.split(".") for n, p in model.named_parameters() if p.dim() == 3]
    return list(dict.fromkeys(".".join(n[-3:]) for n in stacks if n[-2] == NAME))


def fewer(tensor: Tensor, blends: Sequence[Blend]) -> Tensor:
    """A tensor that has a row for every expert, with these alone."""
    return tensor[kept_experts(blends, tensor.device)]


def kept_experts(blends: Sequence[Blend], device: torch.device) -> Tensor:
    """int64 [experts left]: the numbers they had."""
    return torch.tensor([blend[0][0] for blend in blends], device=device)


class Renumbered:
    """A hook before experts that a router of fewer rows chooses among: they are called by the numbers they had."""

    def __init__(self, kept: Tensor) -> None:
        self.kept = kept

    def __call__(self, _: torch.nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """States, experts and weights of every token, as a family's experts take them."""
        states, chosen, *others = inputs
        return states, self.kept[chosen], *others


def cut(suffix: str, tensor: Tensor, neurons: Tensor) -> Tensor:
    """A stack with these neurons alone, int64 [experts, neurons left], rising in each row."""
    neurons = neurons.to(tensor.device)
    if suffix.endswith("down_proj"):
        return tensor.gather(2, neurons[:, None].expand(-1, tensor.shape[1], -1))
    rows = torch.cat([neurons, neurons + tensor.shape[1] // 2], 1)
    return tensor.gather(1, rows[:, :, None].expand(-1, -1, tensor.shape[2]))


def add_moments(experts: torch.nn.Module, inputs: tuple[Tensor, ...], total: Tensor) -> None:
    """Add sum x x^T of every expert's inputs of down_proj to `total` [experts, neurons, neurons].

    An input counts as often as it reaches the stream: times the square of the router's weight.

    Args:
        experts: the module that holds both stacks.
        inputs: what it is called with: states [tokens, d], and the experts and weights of every token [tokens, k].
    """
    states, chosen, weights = inputs
    for expert in chosen.unique().tolist():
        token, place = (chosen == expert).nonzero(as_tuple=True)
        gate, up = torch.nn.functional.linear(states[token], experts.gate_up_proj[expert]).chunk(2, dim=-1)
        x = (experts.act_fn(gate) * up * weights[token, place, None]).float()
        total[expert] += x.T @ x
