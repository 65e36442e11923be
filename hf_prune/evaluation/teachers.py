"""Who teaches which window: the dense parent a candidate is compared with, and whose states a repair aims at.

With one parent that is the parent. Of several, every corpus has the one that knows it best.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from hf_prune.assembly.layer_bank import LayerBank
from hf_prune.blueprint import LayerSpec, Part
from hf_prune.evaluation.comparison import Reference, Targets
from hf_prune.evaluation.dense import Call, Dense
from hf_prune.evaluation.residual_maps import between_halves


@dataclass(frozen=True, eq=False)
class Teachers:
    """The dense parents over some windows; `whose` has the number of the parent that teaches each of them."""

    bank: LayerBank
    dense: Dense
    whose: Tensor

    @classmethod
    def of(cls, bank: LayerBank, dense: Dense, windows: int, whose: Sequence[int] | None = None) -> "Teachers":
        """Over that many windows; the first parent teaches all of them unless told otherwise."""
        numbers = torch.zeros(windows, dtype=torch.long) if whose is None else torch.tensor(list(whose))
        if len(numbers) != windows:
            raise ValueError(f"{len(numbers)} teachers for {windows} windows")
        return cls(bank, dense, numbers)

    @cached_property
    def rows(self) -> dict[int, Tensor]:
        """Windows by the number of their teacher."""
        return {int(k): (self.whose == k).nonzero().squeeze(1) for k in self.whose.unique()}

    @property
    def several(self) -> bool:
        """Whether anybody but the resident model teaches."""
        return set(self.rows) != {0}

    def ending(self, number: int) -> Dense:
        """The final norm and head of a parent."""
        return self.dense.ending(self.bank.outside(number, number)) if number else self.dense

    @torch.inference_mode()
    def enter(self, tokens: Tensor) -> Tensor:
        """What enters the first layer, [N, T, d], for int64 [N, T]."""

        def one(number: int, part: Tensor) -> Tensor:
            others = self.bank.outside(number, number) if number else {}
            tiles = self.dense.tiles(part, self.dense.tile_tokens)
            return torch.cat([self.dense.embed(part[rows], others) for rows in tiles])

        return self._each(tokens, one)

    @torch.inference_mode()
    def step(self, layer: int, state: Tensor, call: Call) -> Tensor:
        """The state behind a source layer, [N, T, d], from the one before it."""
        return self._each(state, lambda k, part: self.dense.apply(self._layer(k, layer), [part], call)[0][0])

    @torch.inference_mode()
    def between(self, layer: int, state: Tensor, call: Call) -> Tensor | None:
        """The state between the halves of a source layer; None where it cannot be told."""
        found = {
            k: between_halves(self._layer(k, layer), self.dense, state[rows.to(state.device)], call)
            for k, rows in self.rows.items()
        }
        if any(part is None for part in found.values()):
            return None
        out = torch.empty_like(state)
        for k, rows in self.rows.items():
            out[rows.to(state.device)] = found[k]
        return out

    def say(self, tokens: Tensor) -> Tensor:
        """Next-token logits [N, T, V] for int64 [N, T]; usable where gradients are computed."""
        with torch.inference_mode():
            _, calls = self.dense.record(tokens[:1])
            state = self.enter(tokens)
            for layer, call in enumerate(calls):
                state = self.step(layer, state, call)
            logits = self.logits(state)
        return logits.clone()

    @torch.inference_mode()
    def logits(self, state: Tensor) -> Tensor:
        """Next-token logits [N, T, V] of final states."""
        return self._each(state, lambda k, part: self.ending(k).logits(part))

    def reference(self, own: Reference, top_k: int) -> Reference:
        """What the teachers do on the windows of `own`, the resident model's run; that itself where it teaches all."""
        if not self.several:
            return own
        state = self.enter(own.tokens)
        hidden = [self.dense.aside(state)]
        for layer, call in enumerate(own.calls):
            state = self.step(layer, state, call)
            hidden.append(self.dense.aside(state))
        top, log_p = torch.empty_like(own.top), torch.empty_like(own.log_p)
        tail, nll = own.log_tail if own.log_tail is None else torch.empty_like(own.log_tail), torch.empty_like(own.nll)
        for k, rows in self.rows.items():
            ending = self.ending(k)
            for part in rows.split(max(1, self.dense.head_tokens // own.tokens.shape[1])):
                logits = ending.logits(state[part, :-1]).float()
                found = Targets.of(logits, top_k)
                top[part], log_p[part] = found.top, found.log_p
                if tail is not None:
                    tail[part] = found.log_tail
                nll[part] = -logits.log_softmax(-1).gather(-1, own.tokens[part, 1:, None]).squeeze(-1)
        return Reference(own.tokens, tuple(hidden), top, log_p, log_p.exp(), tail, nll, own.calls)

    def _layer(self, number: int, layer: int) -> torch.nn.Module:
        return self.bank.module(LayerSpec((Part(number, layer),)))

    def _each(self, batch: Tensor, work: Callable[[int, Tensor], Tensor]) -> Tensor:
        """Rows by teacher, put together again."""
        if len(self.rows) == 1:
            return work(next(iter(self.rows)), batch)
        out = None
        for k, rows in self.rows.items():
            rows = rows.to(batch.device)
            made = work(k, batch[rows])
            out = made.new_empty(len(batch), *made.shape[1:]) if out is None else out
            out[rows] = made
        return out
