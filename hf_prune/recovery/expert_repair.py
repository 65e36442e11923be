"""Closed-form repair of experts: each one's last map is refitted on the tokens that reach it, and on no others.

A token goes to several experts, whose outputs add up with the router's weights g_j. So experts are refitted one after
another, each towards what is left over by then, with a ridge towards its old weights:

    D_j = argmin sum_{t in X_j} w_t |factor g_jt a_jt D_j - R_t|^2 + ridge |D_j|^2,  R <- R - factor g_j a_j D_j

with a_jt what enters the map and R the distance of the stream to the dense one's. The router stays as it is. An expert
that too few tokens reach, or that comes no nearer on the tokens held out, keeps its weights.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_prune.evaluation.residual_maps import exact
from hf_prune.evaluation.ridge import Normal

LEAST_TOKENS = 64
"""That must reach an expert to refit it."""
LEAST_HELD = 16
"""That must be held out."""


@dataclass(frozen=True, eq=False)
class Routed:
    """What a layer's experts were given: states [tokens, d], experts and weights of every token [tokens, k]."""

    states: Tensor
    chosen: Tensor
    weights: Tensor


def refit_experts(
    experts: torch.nn.Module,
    routed: Routed,
    factor: float,
    residual: Tensor,
    token_weights: Tensor,
    fitted: int,
    ridges: Sequence[float],
) -> tuple[Tensor, Mapping[int, float]]:
    """The stack of last maps, refitted, in its shape and dtype; and the ridge of every expert that was.

    Args:
        experts: a family's module of stacked experts.
        routed: what it was given.
        factor: what its output is multiplied by on its way to the stream.
        residual: float32 [tokens, d], what the stream lacks; changed in place.
        token_weights: float32 [tokens].
        fitted: the first so many tokens are fitted on, the others held out.
        ridges: candidates, as shares of the mean diagonal.
    """
    stack = experts.down_proj.detach().clone()
    found: dict[int, float] = {}
    for expert in range(len(stack)):
        token, place = (routed.chosen == expert).nonzero(as_tuple=True)
        seen = token < fitted
        if int(seen.sum()) < LEAST_TOKENS or int((~seen).sum()) < LEAST_HELD:
            continue
        share = routed.weights[token, place, None].float()
        features = inner(experts, routed.states[token], expert).float() * share * factor
        fit, check = (_normal(features[rows], residual[token[rows]], token_weights[token[rows]])
                      for rows in (seen, ~seen))  # fmt: skip
        columns = torch.ones_like(check.energy)
        best = min(((fit.solve(r), r) for r in ridges), key=lambda one: check.error(one[0], columns))
        if check.error(best[0], columns) < float(check.energy.sum()):
            correction = best[0].to(residual)
            residual[token] -= features @ correction
            stack[expert] += (correction if experts.is_transposed else correction.T).to(stack)
            found[expert] = best[1]
    return stack, found


def inner(experts: torch.nn.Module, states: Tensor, expert: int) -> Tensor:
    """What enters the last map of one expert, [tokens, neurons], for states [tokens, d]."""
    weight = experts.gate_up_proj[expert]
    both = states @ (weight if experts.is_transposed else weight.T)
    if experts.has_bias:
        both = both + experts.gate_up_proj_bias[expert]
    return experts._apply_gate(both)


def _normal(features: Tensor, residual: Tensor, weights: Tensor) -> Normal:
    normal = Normal(features.shape[1], residual.shape[1], exact(features.device))
    normal.add(features, residual, weights)
    return normal
