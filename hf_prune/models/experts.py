"""Mixtures of experts: their stacks of weights, cut by experts or by width, and what reaches each expert's neurons.

Modules hold two stacks of all experts: `gate_up_proj` [experts, 2 * neurons, d], gates above ups, and `down_proj`
[experts, d, neurons].
"""

from collections.abc import Callable, Sequence

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from hf_prune.blueprint import Blend
from hf_prune.models.mixtures import Routing

PATH = "mlp.experts"
NAME = PATH.rpartition(".")[2]
STACKS = (f"{PATH}.gate_up_proj", f"{PATH}.down_proj")
"""Their names in a layer."""


def stacked(model: torch.nn.Module) -> list[str]:
    """Ends of the names of all stacks in a model (`mlp.experts.down_proj`); none where it is no mixture."""
    stacks = [n.split(".") for n, p in model.named_parameters() if p.dim() == 3]
    return list(dict.fromkeys(".".join(n[-3:]) for n in stacks if n[-2] == NAME))


def fewer(tensor: Tensor, blends: Sequence[Blend]) -> Tensor:
    """A tensor that has a row for every expert, with the first of each blend alone."""
    return tensor[kept_experts(blends, tensor.device)]


def merges(blends: Sequence[Blend]) -> bool:
    """Whether any is made of several."""
    return any(len(blend) > 1 for blend in blends)


def blended(suffix: str, read: Callable[[str], Tensor], blends: Sequence[Blend], routing: Routing) -> Tensor:
    """A tensor that has a row for every expert, with a row for every blend, in its dtype.

    Rows of the router are those of the first expert of each. What experts weigh is the weighted sum of them, the
    neurons of the others put in the order of the first's that they are likest (M-SMoE, arXiv 2310.01334, sec. 3.1).

    Args:
        suffix: its name in the layer.
        read: gives the tensors of the layer with all experts.
        blends: the experts that are left.
        routing: of the family.
    """
    whole = read(suffix)
    rows = fewer(whole, blends)
    if not merges(blends) or not suffix.startswith(f"{routing.experts}."):
        return rows
    both, down = (read(f"{routing.experts}.{name}") for name in ("gate_up_proj", "down_proj"))
    name = suffix.rpartition(".")[2]
    for place, ((first, own), *others) in enumerate(blends):
        if others:
            neurons = _neurons(both[first], down[first], routing)
            total = own * whole[first].float()
            for expert, weight in others:
                order = likest(neurons, _neurons(both[expert], down[expert], routing))
                total += weight * _ordered(name, whole[expert].float(), order, routing)
            rows[place] = total.to(rows.dtype)
    return rows


def likest(ours: Tensor, theirs: Tensor) -> Tensor:
    """int64 [neurons]: which of their neurons [neurons, d] stands for each of ours, by the largest sum of products."""
    products = (ours.double() @ theirs.double().T).cpu().numpy()
    return torch.from_numpy(linear_sum_assignment(products, maximize=True)[1]).to(ours.device)


def _neurons(both: Tensor, down: Tensor, routing: Routing) -> Tensor:
    """float32 [neurons, 3 d]: what gates, ups and downs of one expert weigh, neuron by neuron."""
    if routing.transposed:
        gate, up, down = both[:, ::2].T, both[:, 1::2].T, down
    else:
        gate, up = both.chunk(2)
        down = down.T
    return torch.cat([gate, up, down], 1).float()


def _ordered(name: str, tensor: Tensor, order: Tensor, routing: Routing) -> Tensor:
    """A tensor of one expert with its neurons in another order."""
    if name.startswith("gate_up_proj"):
        if routing.transposed:
            return tensor.unflatten(-1, (-1, 2))[..., order, :].flatten(-2)
        return torch.cat([half[order] for half in tensor.chunk(2)])
    if name == "down_proj":
        return tensor[order] if routing.transposed else tensor[:, order]
    return tensor


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
