"""Tasks for the sweep: items packed into sheets, so that a candidate is examined like it reads text.

Tokenised once. A row is a tree: what its items share (the examples before every question), behind it the rest of each
item's prompt side by side, behind those the options. A token stands at the position it has in its own text and sees
what leads to it alone (a mask). So a prompt is computed once however many options it has, and what prompts begin with
once for as many items as a row holds. An option's last token predicts nothing that is asked and is left out. Where a
family takes no such mask, every option is a row of its own behind its prompt.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_prune.data.task_scores import Question, TaskScores, judged, longest, questions, slopes
from hf_prune.data.tasks import Task
from hf_prune.evaluation.dense import Batch, Call, Dense
from hf_prune.limits import EXAM_BYTES
from hf_prune.models.attention_masks import BlockMask

ALIKE = 5e-2
"""Largest difference of two log-likelihoods, nats, at which packed rows count as computing the same as plain ones."""
LEAST_SHARED = 0.25
"""Of an item's tokens that others have to begin with, too, for them to stand in one row."""
ROW_TOKENS = 2048
"""Most tokens of such a row: where masks do not know their blocks, attention looks at all of it for each of them."""


@dataclass(frozen=True, slots=True)
class PackedRow:
    """Tokens with the positions they stand at and whose they are, and what is scored: (index of the predicting token,
    token wanted, item, option).

    items: 0 what the row's items share, 1.. their own. options: 0 what an item's options share, 1.. their own.
    """

    task: int
    tokens: tuple[int, ...]
    positions: tuple[int, ...]
    items: tuple[int, ...]
    options: tuple[int, ...]
    scored: tuple[tuple[int, int, int, int], ...]


@dataclass(frozen=True, eq=False)
class Sheet:
    """Rows that go through the layers together.

    tokens: int64 [n, T]. calls: what each layer is given besides the state, made for these very rows. hidden: [n, T, d]
    of the dense model per layer boundary, or at the first alone. at: int64 [m] places in the flattened rows that
    predict the `wanted` tokens [m]; `option` [m] numbers the options of the sheet, `options` names them: (task, item,
    option). given: masks and positions that the model was called with. greedy: whether the likeliest tokens matter.
    asked: `at` once each.
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

    def state(self, boundary: int) -> Tensor | None:
        """The dense model's, where it was kept."""
        return self.hidden[boundary].to(self.tokens.device) if boundary < len(self.hidden) else None

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
    _asked: list[list[Question]] = field(init=False)
    _most: int = field(init=False)
    _sheets: dict[tuple[int, int, int], tuple[Sheet, ...]] = field(default_factory=dict, init=False)
    _room: int = field(default=EXAM_BYTES, init=False)

    def __post_init__(self) -> None:
        self.tasks = tuple(t.spread(seed=self.seed) for t in self.tasks)
        most = longest(self.dense.model.config)
        self._asked = [questions(t.items, self.tokenizer, most) for t in self.tasks]
        widest = min(ROW_TOKENS, self.dense.tile_tokens)
        # A row may hold more tokens than the model has positions, since none of its texts does; not all models bear it.
        limits = dict.fromkeys((widest, min(widest, most))) if self.packed else ()
        self._most = next((limit for limit in limits if self._takes_masks(limit)), 0)
        self.packed = bool(self._most)

    @property
    def items(self) -> int:
        """Items of the longest task."""
        return max(len(t.items) for t in self.tasks)

    def sheets(self, first: int, count: int, tokens: int | None = None) -> tuple[Sheet, ...]:
        """Items first .. first + count of every task, as far as it has them, on sheets; made once.

        Args:
            first: item of every task.
            count: of items.
            tokens: most of one sheet, unless a row has more; never above what a layer call takes, which None is.
        """
        most = min(tokens or self.dense.tile_tokens, self.dense.tile_tokens)
        if (key := (first, count, most)) not in self._sheets:
            asked = [questions[first : first + count] for questions in self._asked]
            rows = [row for task, questions in enumerate(asked) for row in self._rows(task, questions)]
            made = [self._sheet(group) for group in _grouped(rows, most)]
            # Of another size they are for gradients, which take nothing from the dense model.
            self._sheets[key] = tuple(self._known(made) if most == self.dense.tile_tokens else made)
        return self._sheets[key]

    def judged(self, first: int, count: int, scores: Sequence[tuple[Tensor, Tensor]]) -> tuple[TaskScores, ...]:
        """What the scores of those sheets, in their order, make of every task."""
        parts = self._parts(first, count)
        tables, hits = _tables(parts, first, self.sheets(first, count), scores)
        return tuple(judged(t, table, hit) for t, table, hit in zip(parts, tables, hits, strict=True) if t.items)

    def doubt(
        self, first: int, count: int, sheets: Sequence[Sheet], scores: Sequence[tuple[Tensor, Tensor]]
    ) -> tuple[float, list[Tensor]]:
        """Mean doubt over the tasks, and its gradient by the log-likelihoods of every sheet, float64 [options]."""
        parts = self._parts(first, count)
        tables, hits = _tables(parts, first, sheets, scores)
        asked = [n for n, t in enumerate(parts) if t.items]
        mean = sum(judged(parts[n], tables[n], hits[n]).doubt for n in asked) / len(asked)
        found = {n: slopes(parts[n], tables[n]) / len(asked) for n in asked}
        return mean, [
            torch.tensor([found[task][item - first, option] for task, item, option in sheet.options],
                         dtype=torch.float64, device=self.dense.device)
            for sheet in sheets
        ]  # fmt: skip

    def _parts(self, first: int, count: int) -> list[Task]:
        """Those items of every task."""
        return [replace(t, items=t.items[first : first + count]) for t in self.tasks]

    def _rows(self, task: int, asked: Sequence[Question]) -> list[PackedRow]:
        """These questions of a task."""
        if self.packed:
            return [packed_row(task, group) for group in sharing(asked, self._most)]
        return [packed_row(task, [question], option) for question in asked for option in range(len(question.rests))]

    # Not in inference mode, since gradients may have to go through what is made here.
    @torch.inference_mode(False)
    @torch.no_grad()
    def _sheet(self, rows: Sequence[PackedRow], packed: bool | None = None) -> Sheet:
        width = max(len(r.tokens) for r in rows)
        tokens = _padded([r.tokens for r in rows], width).to(self.dense.device)
        given = self._masked(rows, width) if (self.packed if packed is None else packed) else {}
        entered, calls = self.dense.record(tokens, **given)
        names = list(dict.fromkeys((r.task, *name) for r in rows for _, _, *name in r.scored))
        number = {name: i for i, name in enumerate(names)}
        flat = [
            (n * width + at, token, number[r.task, *name]) for n, r in enumerate(rows) for at, token, *name in r.scored
        ]
        at, wanted, option = (torch.tensor(column, device=self.dense.device) for column in zip(*flat, strict=True))
        greedy = any(self.tasks[r.task].kind == "exact" for r in rows)
        return Sheet(tokens, tuple(calls), (entered,), at, wanted, option, tuple(names), given, greedy,
                     at.unique())  # fmt: skip

    def _known(self, sheets: Sequence[Sheet]) -> list[Sheet]:
        """With the dense model's states while there is room for them; without, its layers are computed again."""
        kept = []
        for sheet in sheets:
            size = len(self.dense.layers) * sheet.hidden[0].nbytes
            if size <= self._room:
                self._room -= size
                kept.append(sheet)
        states = dict(zip(map(id, kept), self._states(kept), strict=True))
        return [replace(sheet, hidden=states.get(id(sheet), sheet.hidden)) for sheet in sheets]

    @torch.inference_mode()
    def _states(self, sheets: Sequence[Sheet]) -> list[tuple[Tensor, ...]]:
        """Of the dense model at every layer boundary, side by side."""
        found = [[sheet.hidden[0]] for sheet in sheets]
        states = [sheet.hidden[0] for sheet in sheets]
        for number, layer in enumerate(self.dense.layers):
            jobs = [Batch(state, sheet.calls[number], whole=True) for state, sheet in zip(states, sheets, strict=True)]
            states = [out for out, _ in self.dense.apply_each(layer, jobs)]
            for hidden, state in zip(found, states, strict=True):
                hidden.append(self.dense.aside(state))
        return [tuple(hidden) for hidden in found]

    def _masked(self, rows: Sequence[PackedRow], width: int) -> dict[str, Tensor]:
        """Positions [n, T] and an additive mask [n, 1, T, T]."""
        dtype, device = next(self.dense.model.parameters()).dtype, self.dense.device
        mask = BlockMask.of(seen(rows, width), dtype)
        places = _padded([r.positions for r in rows], width).to(device)
        return {"attention_mask": mask if device.type == "cpu" else mask.to(device), "position_ids": places}

    def _takes_masks(self, most: int) -> bool:
        """Whether packed rows, of so many tokens where items share them, give the log-likelihoods that plain ones do;
        windows of attention are not seen here."""
        window = getattr(self.dense.model.config.get_text_config(), "sliding_window", None)
        if window and any(len(q.prefix) + q.width > window for asked in self._asked for q in asked):
            return False
        few = [(task, _trial(asked, most)) for task, asked in enumerate(self._asked) if asked]
        packed = [packed_row(task, asked) for task, asked in few]
        ends = [(task, q) for task, asked in few for q in (asked[0], asked[-1])]
        plain = [packed_row(task, [q], o) for task, q in ends for o in range(len(q.rests))]
        found = []
        for rows, masked in ((packed, True), (plain, False)):
            try:
                sheet = self._sheet(rows, masked)
                state = self._states([sheet])[0][-1].to(self.dense.device)
            except (TypeError, ValueError, RuntimeError, IndexError):
                return False
            with torch.inference_mode():
                values = sheet.scores(self.dense, state)[0]
            found.append({name: float(v) for name, v in zip(sheet.options, values, strict=True)})
        return all(abs(found[0][name] - found[1][name]) <= ALIKE * max(1.0, abs(found[1][name])) for name in found[1])


def answered(dense: Dense, states: Sequence[tuple[Sheet, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """Scores of sheets by final states [n, T, d], side by side."""
    found: list[Any] = [None] * len(states)

    def one(number: int, sheet: Sheet, state: Tensor) -> None:
        found[number] = sheet.scores(dense, state)

    dense.each(one, [(number, *pair) for number, pair in enumerate(states)])
    return found


def _grouped(rows: Sequence[PackedRow], most: int) -> Iterator[list[PackedRow]]:
    """Rows of similar length together, of so many tokens."""
    group: list[PackedRow] = []
    for row in sorted(rows, key=lambda r: len(r.tokens)):
        if group and (len(group) + 1) * len(row.tokens) > most:
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def _tables(
    tasks: Sequence[Task], first: int, sheets: Sequence[Sheet], scores: Sequence[tuple[Tensor, Tensor]]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Per task log-likelihoods, float64 [items, most options], and whether all tokens of the first option are the
    likeliest, bool [items]; its items are `first` and following of the exam's."""
    tables = [np.full((len(t.items), max((len(i.choices) for i in t.items), default=1)), -np.inf) for t in tasks]
    hits = [np.zeros(len(t.items), bool) for t in tasks]
    for sheet, (sums, likeliest) in zip(sheets, scores, strict=True):
        for (task, item, option), value, hit in zip(sheet.options, sums.tolist(), likeliest.tolist(), strict=True):
            tables[task][item - first, option] = value
            hits[task][item - first] |= hit and option == 0
    return tables, hits


def seen(rows: Sequence[PackedRow], width: int) -> Tensor:
    """What the tokens of rows see, bool [n, T, T]: those before them of their item and option, and what is shared."""
    sees = torch.ones(width, width, dtype=torch.bool).tril()
    for owners in ([r.items for r in rows], [r.options for r in rows]):
        whose = _padded(owners, width)
        sees = sees & ((whose[:, None, :] == whose[:, :, None]) | (whose[:, None, :] == 0))
    return sees


def _padded(rows: Sequence[Sequence[int]], width: int) -> Tensor:
    """int64 [n, T], zeros at the ends."""
    return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])


def sharing(asked: Sequence[Question], most: int) -> Iterator[list[Question]]:
    """Questions that begin alike together, in rows of at most so many tokens."""
    group: list[Question] = []
    begin, tokens = (), 0
    # Of all that begin alike, neighbours in this order share most.
    for stem, question in sorted(((_stem(q), q) for q in asked), key=lambda pair: pair[0]):
        own = len(stem) + sum(len(question.prefix) + len(rest) - 1 - len(stem) for rest in question.rests)
        common = _shared([begin, stem])
        joined = tokens + (len(group) - 1) * (len(begin) - common) + own - common
        if common >= LEAST_SHARED * own and joined <= most:
            group.append(question)
            begin, tokens = begin[:common], joined
            continue
        if group:
            yield group
        group, begin, tokens = [question], stem, own
    if group:
        yield group


def _trial(asked: Sequence[Question], most: int) -> Sequence[Question]:
    """What says whether rows work: those that share the longest, or else any two."""
    longest_row = max(sharing(asked, most), key=lambda group: len(packed_row(0, group).tokens))
    return longest_row if len(longest_row) > 1 else asked[:2]


def packed_row(task: int, asked: Sequence[Question], option: int | None = None) -> PackedRow:
    """A row with all options of these questions, or one, and what is scored in it."""
    stems = [_stem(q, option) for q in asked]
    common = _shared(stems)
    places = [(token, i, 0, 0) for i, token in enumerate(stems[0][:common])]
    scored = []
    for n, (question, stem) in enumerate(zip(asked, stems, strict=True), 1):
        mine = len(places) - common
        places += [(token, i, n, 0) for i, token in enumerate(stem[common:], common)]
        for o in range(len(question.rests)) if option is None else (option,):
            text, own = question.prefix + question.rests[o], len(places) - len(stem)
            places += [(token, i, n, o + 1) for i, token in enumerate(text[len(stem) : -1], len(stem))]
            # Every rest begins with a token of the context, so there is one before the first that is scored.
            for before in range(len(text) - question.scored[o] - 1, len(text) - 1):
                behind = 0 if before < common else mine if before < len(stem) else own
                scored.append((before + behind, text[before + 1], question.number, o))
    tokens, positions, items, options = zip(*places, strict=True)
    return PackedRow(task, tokens, positions, items, options, tuple(scored))


def _stem(question: Question, option: int | None = None) -> tuple[int, ...]:
    """What all options begin with, or all of one; last tokens predict nothing that is asked."""
    rests = question.rests if option is None else (question.rests[option],)
    heard = [rest[:-1] for rest in rests]
    return question.prefix + heard[0][: _shared(heard)]


def _shared(rows: Sequence[Sequence[int]]) -> int:
    """Tokens that all rows begin with."""
    return next((i for i, tokens in enumerate(zip(*rows, strict=False)) if len(set(tokens)) > 1), min(map(len, rows)))
