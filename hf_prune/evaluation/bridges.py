"""What a repair will make of a gap, foretold: the dense model's own step over it, as one linear map of the state.

A cut that is repaired in closed form loses less at some gaps than at others, so the best cut before a repair is not
the best one after it. Over a gap from layer boundary i to j the residual stream changes by h_j - h_i; the share of
that which a matrix can make of h_i is about what the layers left over can be taught. So a candidate is scored with

    h' = h + h M_ij,  M_ij = argmin sum_t w_t |h_i M - (h_j - h_i)|^2 + ridge |M|^2,  w_t = 1 / |h_j|

(as ReplaceMe's map, arXiv 2505.02819, fitted on the dense model's path alone). A map serves all candidates with that
gap and costs less than a tenth of a layer; no candidate is refitted.
"""

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from hf_prune.evaluation.dense import Dense
from hf_prune.evaluation.residual_maps import exact
from hf_prune.evaluation.ridge import Normal, token_weights
from hf_prune.limits import STATE_BYTES

RIDGES = (1e-3, 1e-2, 1e-1, 1.0)
"""Shares of the mean diagonal; the windows that are held out choose."""
HELD_OUT = 4
"""One of so many windows is held out."""


class Bridges:
    """The maps over gaps of one dense model, each made when it is first asked for.

    Args:
        dense: the model.
        tokens: [N, T] int64 windows to fit on, disjoint from those that candidates are scored on; of more than fit into
            `STATE_BYTES` with the states of all layers, the first ones.
    """

    def __init__(self, dense: Dense, tokens: Tensor) -> None:
        self.dense, self.tokens = dense, tokens
        self._made: dict[tuple[int, int], Tensor | None] = {}

    def over(self, begin: int, end: int) -> Tensor | None:
        """[d, d] in the model's precision, there or set aside, what to add is h @ it; None where held-out states are
        nearer without."""
        if (begin, end) not in self._made:
            found = self._fitted(begin, end)
            self._made[begin, end] = None if found is None else self.dense.aside(found)
        return self._made[begin, end]

    def cross(self, states: Tensor, begin: int, end: int) -> Tensor:
        """States [..., d] at layer boundary `begin`, taken over the gap to `end`."""
        bridge = self.over(begin, end)
        return states if bridge is None else states + states @ bridge.to(states.device)

    @cached_property
    @torch.inference_mode()
    def _hidden(self) -> Sequence[Tensor]:
        """States of the dense model at every layer boundary, [n, T, d] each."""
        d, model = self.dense, self.dense.model
        each = model.config.get_text_config().hidden_size * self.tokens.shape[1] * next(model.parameters()).itemsize
        rows = max(HELD_OUT, STATE_BYTES // (each * (len(d.layers) + 1)))
        tokens = self.tokens[:rows].to(d.device)
        _, calls = d.record(tokens[:1])
        state = torch.cat([d.embed(tokens[rows]) for rows in d.tiles(tokens, d.tile_tokens)])
        hidden = [d.aside(state)]
        for layer, call in zip(d.layers, calls, strict=True):
            state = d.apply(layer, [state], call)[0][0]
            hidden.append(d.aside(state))
        return hidden

    @torch.inference_mode()
    def _fitted(self, begin: int, end: int) -> Tensor | None:
        before, after = (self._hidden[boundary].to(self.dense.device) for boundary in (begin, end))
        held = torch.arange(len(before)) % HELD_OUT == HELD_OUT - 1
        fit, check = (self._normal(before[rows], after[rows]) for rows in (~held, held))
        columns = torch.ones_like(check.energy)
        maps = [fit.solve(ridge) for ridge in RIDGES]
        errors = [check.error(m, columns) for m in maps]
        best = min(range(len(maps)), key=errors.__getitem__)
        return maps[best].to(before) if errors[best] < float(check.energy.sum()) else None

    def _normal(self, before: Tensor, after: Tensor) -> Normal:
        size = before.shape[-1]
        normal = Normal(size, size, exact(before.device))
        for x, y in zip(before.split(1), after.split(1), strict=True):
            states, residual = x.flatten(0, -2).float(), (y.float() - x.float()).flatten(0, -2)
            normal.add(states, residual, token_weights(y))
        return normal
