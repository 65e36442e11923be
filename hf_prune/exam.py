"""Tasks for the sweep: items packed into sheets, so that a candidate is examined like it reads text.

Tokenised once. An item is one row: all that its options share, then every option's tokens side by side, each seeing
the shared part and itself alone (a mask), at the positions it has behind that part. So a prompt is computed once
however many options it has. An option's last token predicts nothing that is asked and is left out. Where a family takes
no such mask, every option is a row of its own behind its prompt.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_prune.masks import LowerMask
from hf_prune.reference import Call, Dense
from hf_prune.tasks import Question, Task, TaskScores, judged, longest, questions

ALIKE = 5e-2
"""Largest difference of two log-likelihoods, nats, at which packed rows count as computing the same as plain ones."""


@dataclass(frozen=True, slots=True)
class Row:
    """Tokens with the positions they stand at, the part (0 what is shared, 1.. the options) each belongs to, and what
    is scored: (index of the predicting token, token wanted, option)."""

    task: int
    item: int
    tokens: tuple[int, ...]
    positions: tuple[int, ...]
    parts: tuple[int, ...]
    scored: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, eq=False)
class Sheet:
    """Rows that go through the layers together.

    tokens: int64 [n, T]. calls: what each layer is given besides the state, made for these very rows. hidden: [n, T, d]
    of the dense model per layer boundary. at: int64 [m] places in the flattened rows that predict the `wanted` tokens
    [m]; `option` [m] numbers the options of the sheet, `options` names them: (task, item, option). given: masks and
    positions that the model was called with. greedy: whether the likeliest tokens matter. asked: `at` once each.
    """

    tokens: Tensor
    calls: tuple[Call, ...]
    hidden: tuple[Tensor, ...]
    at: Tensor
    wanted: Tensor
    option: Tensor
    options: tuple[tuple[int, int, int], ...]
    given: dict[str, Tensor]
    greedy: bool
    asked: Tensor

    def scores(self, dense: Dense, state: Tensor) -> tuple[Tensor, Tensor]:
        """Log-likelihood of every option, float64 [options], and whether all its tokens are the likeliest, bool;
        the latter is False everywhere on a sheet that is not `greedy`."""
        sums = torch.zeros(len(self.options), dtype=torch.float64, device=state.device)
        likeliest = torch.full((len(self.options),), self.greedy, device=state.device)
        flat = state.flatten(0, 1)
        for part in torch.arange(len(self.at)).split(dense.head_tokens):
            logits = dense.logits(flat[self.at[part]]).float()
            chosen = logits.gather(-1, self.wanted[part, None]).squeeze(-1) - logits.logsumexp(-1)
            sums.index_add_(0, self.option[part], chosen.double())
            if self.greedy:
                likeliest[self.option[part][logits.argmax(-1) != self.wanted[part]]] = False
        return sums, likeliest


@dataclass(eq=False)
class Exam:
    """Tasks in a fixed order of items: every prefix is spread over the answers, so few items stand for all.

    Args:
        dense: the resident model.
        tasks: `order` is applied to their items here.
        tokenizer: of the model.
        seed: decides the order.
    """

    dense: Dense
    tasks: Sequence[Task]
    tokenizer: Any
    seed: int = 0
    packed: bool = True
    _rows: list[list[list[Row]]] = field(init=False)
    _sheets: dict[tuple[int, int], tuple[Sheet, ...]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.tasks = tuple(t.spread(seed=self.seed) for t in self.tasks)
        most = longest(self.dense.model.config)
        asked = [questions(t.items, self.tokenizer, most) for t in self.tasks]
        self.packed = self.packed and self._takes_masks([q for qs in asked for q in qs[:1]])
        self._rows = [[_rows(t, q, self.packed) for q in qs] for t, qs in enumerate(asked)]

    @property
    def items(self) -> int:
        """Items of the longest task."""
        return max(len(t.items) for t in self.tasks)

    def sheets(self, first: int, count: int) -> tuple[Sheet, ...]:
        """Items first .. first + count of every task, as far as it has them, on sheets; made once."""
        if (first, count) not in self._sheets:
            rows = [row for task in self._rows for item in task[first : first + count] for row in item]
            self._sheets[first, count] = tuple(self._sheet(group) for group in self._grouped(rows))
        return self._sheets[first, count]

    def judged(self, first: int, count: int, scores: Sequence[tuple[Tensor, Tensor]]) -> tuple[TaskScores, ...]:
        """What the scores of those sheets, in their order, make of every task."""
        parts = [Task(t.name, t.items[first : first + count], t.kind) for t in self.tasks]
        tables = [np.full((len(t.items), max((len(i.choices) for i in t.items), default=1)), -np.inf) for t in parts]
        hits = [np.zeros(len(t.items), bool) for t in parts]
        for sheet, (sums, likeliest) in zip(self.sheets(first, count), scores, strict=True):
            for (task, item, option), value, hit in zip(sheet.options, sums.tolist(), likeliest.tolist(), strict=True):
                tables[task][item - first, option] = value
                hits[task][item - first] |= hit and option == 0
        return tuple(judged(t, table, hit) for t, table, hit in zip(parts, tables, hits, strict=True) if t.items)

    def _grouped(self, rows: Sequence[Row]) -> Iterator[list[Row]]:
        """Rows of similar length together, as many as a layer call takes."""
        group: list[Row] = []
        for row in sorted(rows, key=lambda r: (len(r.tokens), r.task, r.item)):
            if group and (len(group) + 1) * len(row.tokens) > self.dense.tile_tokens:
                yield group
                group = []
            group.append(row)
        if group:
            yield group

    @torch.inference_mode()
    def _sheet(self, rows: Sequence[Row], packed: bool | None = None) -> Sheet:
        width = max(len(r.tokens) for r in rows)
        tokens = torch.tensor([[*r.tokens, *[0] * (width - len(r.tokens))] for r in rows], device=self.dense.device)
        given = self._masked(rows, width) if (self.packed if packed is None else packed) else {}
        hidden: list[Tensor] = []
        hooks = [
            layer.register_forward_pre_hook(
                lambda _, a, k: hidden.append(a[0] if a else k["hidden_states"]), with_kwargs=True
            )
            for layer in self.dense.layers
        ]
        norm = self.dense.norm.register_forward_pre_hook(lambda _, a: hidden.append(a[0]))
        try:
            calls, _ = self.dense.record(tokens, logits_to_keep=1, **given)
        finally:
            for hook in (*hooks, norm):
                hook.remove()
        names = list(dict.fromkeys((r.task, r.item, o) for r in rows for _, _, o in r.scored))
        number = {name: i for i, name in enumerate(names)}
        flat = [
            (n * width + at, token, number[r.task, r.item, o]) for n, r in enumerate(rows) for at, token, o in r.scored
        ]
        at, wanted, option = (torch.tensor(column, device=self.dense.device) for column in zip(*flat, strict=True))
        greedy = any(self.tasks[r.task].kind == "exact" for r in rows)
        return Sheet(tokens, tuple(calls), tuple(hidden), at, wanted, option, tuple(names), given, greedy,
                     at.unique())  # fmt: skip

    def _masked(self, rows: Sequence[Row], width: int) -> dict[str, Tensor]:
        """Positions [n, T] and an additive mask [n, 1, T, T]: a token sees the prompt and its own option before it."""
        dtype, device = next(self.dense.model.parameters()).dtype, self.dense.device
        parts = torch.tensor([[*r.parts, *[-1] * (width - len(r.parts))] for r in rows])
        places = torch.tensor([[*r.positions, *[0] * (width - len(r.positions))] for r in rows])
        sees = (parts[:, None, :] == parts[:, :, None]) | (parts[:, None, :] == 0) & (parts[:, :, None] > 0)
        sees &= torch.ones(width, width, dtype=torch.bool).tril()
        sees |= torch.eye(width, dtype=torch.bool)
        mask = torch.zeros(sees.shape, dtype=dtype).masked_fill_(~sees, torch.finfo(dtype).min)
        return {"attention_mask": mask[:, None].to(device).as_subclass(LowerMask), "position_ids": places.to(device)}

    def _takes_masks(self, asked: Sequence[Question]) -> bool:
        """Whether packed rows give the log-likelihoods that plain ones do; windows of attention are not seen here."""
        window = getattr(self.dense.model.config.get_text_config(), "sliding_window", None)
        longest_row = max((len(q.prefix) + sum(map(len, q.rests)) for q in asked), default=0)
        if window and longest_row > window:
            return False
        found = []
        for packed in (True, False):
            rows = [row for n, q in enumerate(asked) for row in _rows(n, q, packed)]
            try:
                sheet = self._sheet(rows, packed)
            except (TypeError, ValueError, RuntimeError):
                return False
            with torch.inference_mode():
                values = sheet.scores(self.dense, sheet.hidden[-1])[0]
            found.append({name: float(v) for name, v in zip(sheet.options, values, strict=True)})
        return all(abs(found[0][name] - found[1][name]) <= ALIKE * max(1.0, abs(found[1][name])) for name in found[1])


def answered(dense: Dense, states: Sequence[tuple[Sheet, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """Scores of sheets by final states [n, T, d], side by side."""
    found: list[Any] = [None] * len(states)

    def one(number: int, sheet: Sheet, state: Tensor) -> None:
        found[number] = sheet.scores(dense, state)

    dense.each(one, [(number, *pair) for number, pair in enumerate(states)])
    return found


def _rows(task: int, question: Question, packed: bool) -> list[Row]:
    if packed:
        return [_row(task, question, range(len(question.rests)))]
    return [_row(task, question, [option]) for option in range(len(question.rests))]


def _row(task: int, question: Question, options: Sequence[int]) -> Row:
    """A row with these options of a question, and what is scored in it."""
    heard = {o: question.rests[o][:-1] for o in options}
    shared = _shared(list(heard.values()))
    tokens = [*question.prefix, *heard[options[0]][:shared]]
    stem = len(tokens)
    positions, parts, scored = list(range(stem)), [0] * stem, []
    for part, o in enumerate(options, 1):
        begin = len(tokens) - shared
        own, rest = heard[o][shared:], question.rests[o]
        tokens += own
        positions += range(stem, stem + len(own))
        parts += [part] * len(own)
        for place in range(len(rest) - question.scored[o], len(rest)):
            # Every rest begins with a token of the context, so there is one before the first that is scored.
            at = (begin if place > shared else len(question.prefix)) + place - 1
            scored.append((at, rest[place], o))
    return Row(task, question.number, tuple(tokens), tuple(positions), tuple(parts), tuple(scored))


def _shared(rows: Sequence[Sequence[int]]) -> int:
    """Tokens that all rows begin with."""
    return next((i for i, tokens in enumerate(zip(*rows, strict=False)) if len(set(tokens)) > 1), min(map(len, rows)))
