"""Tasks: which option is likeliest after a context, or is the answer, word for word, what would be generated?

Tokenisation and the two accuracies follow EleutherAI's lm-evaluation-harness (`_encode_pair`, `acc`, `acc_norm`).
"""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from hf_prune.data.bundled import demo_folder
from hf_prune.data.doubt import doubt_slopes, doubts
from hf_prune.data.windows import adds_bos
from hf_prune.errors import InvalidData

TOKEN_BUDGET = 2048
"""Tokens of one batch, padding included."""
LOGIT_BUDGET = 2**26
"""Logits of one batch: 256 MiB in float32."""
Z95 = 1.959963984540054


Kind = Literal["choice", "exact"]
ACCURACIES = {"correct": "", "correct_norm": "_norm"}
"""Ways to be right, of `TaskScores`, and how the names of their figures end."""


@dataclass(frozen=True, slots=True)
class Item:
    """One question; `answer` indexes `choices`. Where a text is to be generated, it is the only choice.

    `joint` stands between context and choice; None is a space unless one of the two has white space there.
    """

    context: str
    choices: tuple[str, ...]
    answer: int
    joint: str | None = None


@dataclass(frozen=True, slots=True)
class Task:
    """A named list of questions, all of one kind; `chance` is the accuracy of guessing.

    `choice` compares options. `exact` asks whether greedy generation begins with the tokens of the answer: it does when
    each of them is the likeliest behind those before it, which one forward tells.
    """

    name: str
    items: tuple[Item, ...]
    kind: Kind = "choice"

    @property
    def digest(self) -> str:
        """64 bits of SHA-256 over name, kind and items."""
        return hashlib.sha256(repr((self.name, self.kind, self.items)).encode()).hexdigest()[:16]

    @property
    def chance(self) -> float:
        """Mean of 1 / number of options; 0 where text is generated."""
        return 0.0 if self.kind == "exact" else float(np.mean([1 / len(i.choices) for i in self.items]))

    def spread(self, count: int | None = None, seed: int = 0) -> "Task":
        """So many of its items (None: all), in the order of `order`."""
        return replace(self, items=tuple(self.items[i] for i in order(self, seed)[:count]))


@dataclass(frozen=True, eq=False)
class TaskScores:
    """`log_likelihoods` float64 [items, most options], natural log, -inf where an item has fewer options; `correct`
    and `correct_norm` bool [items]: by summed log-likelihood, and by log-likelihood per character of the option.

    doubts: float64 [items], nats, `doubts` of the log-likelihoods per character; where text is to be generated,
    -log-likelihood per character.
    """

    task: str
    chance: float
    log_likelihoods: np.ndarray
    correct: np.ndarray
    correct_norm: np.ndarray
    doubts: np.ndarray | None = None

    @property
    def doubt(self) -> float:
        """Mean of `doubts`."""
        return math.nan if self.doubts is None else float(self.doubts.mean())

    @property
    def accuracy(self) -> float:
        """Share of items answered rightly (lm-eval's acc)."""
        return float(self.correct.mean())

    @property
    def accuracy_norm(self) -> float:
        """Share answered rightly with length-normalised options (lm-eval's acc_norm)."""
        return float(self.correct_norm.mean())


@dataclass(frozen=True, slots=True)
class Question:
    """An item in tokens: the `prefix` all options share, and per option the rest, its last `scored` tokens the option.

    Every rest begins with at least one token of the context, so that its first logits predict the option's first token.
    """

    number: int
    prefix: tuple[int, ...]
    rests: tuple[tuple[int, ...], ...]
    scored: tuple[int, ...]

    @property
    def width(self) -> int:
        """Tokens of the longest rest."""
        return max(map(len, self.rests))


def bundled_tasks() -> tuple[Path, ...]:
    """Files of the cloze tasks that come with the demo family."""
    return tuple(sorted((demo_folder() / "tasks").glob("*.report.jsonl")))


def score(model: Any, tokenizer: Any, task: Task) -> TaskScores:
    """Let a model answer a task; it is used as it is (device, precision, eval or train mode)."""
    items = task.items
    asked = questions(items, tokenizer, longest(model.config))
    table = np.full((len(items), max(len(i.choices) for i in items)), -np.inf)
    hits = np.zeros(len(items), bool)
    for batch in _batches(asked, model.get_input_embeddings().weight.shape[0]):
        for question, values, hit in zip(batch, *_log_likelihoods(model, batch), strict=True):
            table[question.number, : len(values)] = values
            hits[question.number] = hit
    return judged(replace(task, items=items), table, hits)


def questions(items: Sequence[Item], tokenizer: Any, most: int) -> list[Question]:
    """Items in tokens; rows longer than `most` tokens lose their beginning."""
    bos = adds_bos(tokenizer)
    return [_question(n, item, tokenizer, bos, most) for n, item in enumerate(items)]


def judged(task: Task, table: np.ndarray, hits: np.ndarray) -> TaskScores:
    """What log-likelihoods make of a task.

    Args:
        task: its items are the rows.
        table: float64 [items, most options], -inf where an item has fewer.
        hits: bool [items]: every token of the first option was the likeliest.
    """
    fair = table / _characters(task, table.shape[1])
    if task.kind == "exact":
        return TaskScores(task.name, task.chance, table, hits, hits, -fair[:, 0])
    answers = _answers(task)
    right, fairly = table.argmax(1) == answers, fair.argmax(1) == answers
    return TaskScores(task.name, task.chance, table, right, fairly, doubts(fair, answers))


def slopes(task: Task, table: np.ndarray) -> np.ndarray:
    """Gradient of a task's `TaskScores.doubt` by its log-likelihoods, float64 [items, most options]; see `judged`."""
    characters = _characters(task, table.shape[1])
    if task.kind == "exact":
        return -1.0 / (len(table) * characters)
    return doubt_slopes(table / characters, _answers(task)) / characters


def _characters(task: Task, most: int) -> np.ndarray:
    """Of every option, float64 [items, most options]; 1 where there is none."""
    return np.array([[*map(len, i.choices), *[1] * (most - len(i.choices))] for i in task.items], float)


def _answers(task: Task) -> np.ndarray:
    return np.array([i.answer for i in task.items])


def encode_pair(
    tokenizer: Any, context: str, choice: str, bos: bool, joint: str | None = None
) -> tuple[list[int], list[int]]:
    """Token ids of context and option, as lm-evaluation-harness cuts them.

    `joint` separates the two, by default a space unless one has white space there; white space at the end of the
    context goes to the option, where most tokenizers glue it to the word. An empty context becomes the start (or
    end-of-text) token alone.
    """
    kept = context.rstrip()
    if joint is None:
        joint = "" if context != kept or choice[:1].isspace() or not kept else " "
    tail = context[len(kept) :] + joint + choice
    head = tokenizer(kept, add_special_tokens=False, verbose=False)["input_ids"]
    whole = tokenizer(kept + tail, add_special_tokens=False, verbose=False)["input_ids"]
    start = [tokenizer.bos_token_id] if bos else []
    if not head and not start:
        start = [tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id]
    cut = min(len(head), len(whole) - 1)
    return start + whole[:cut], whole[cut:]


def wilson(successes: int, trials: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval for a proportion (JASA 22, 1927); 95 % by default."""
    share = successes / trials
    scale = 1 + z * z / trials
    middle = (share + z * z / (2 * trials)) / scale
    half = z / scale * (share * (1 - share) / trials + z * z / (4 * trials * trials)) ** 0.5
    return max(0.0, middle - half), min(1.0, middle + half)


def difference(
    ours: np.ndarray, theirs: np.ndarray, rng: np.random.Generator, draws: int = 10_000
) -> tuple[float, tuple[float, float]]:
    """Difference in accuracy (ours - theirs) on the same items, with a 95 % interval by paired bootstrap.

    Only the items on which the two disagree matter, so a resample of the items is one multinomial draw of three counts.

    Args:
        ours: bool [items].
        theirs: bool [items], the same items in the same order.
        rng: decides the resamples.
        draws: number of resamples.
    """
    n = len(ours)
    won, lost = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    counts = rng.multinomial(n, [won / n, lost / n, (n - won - lost) / n], size=draws)
    low, high = np.quantile((counts[:, 0] - counts[:, 1]) / n, [0.025, 0.975])
    return (won - lost) / n, (float(low), float(high))


def order(task: Task, seed: int) -> list[int]:
    """Items shuffled, then dealt in turn from the answers they have: every prefix is spread over all strata."""
    rng = np.random.default_rng([seed, len(task.items)])
    strata: dict[int, list[int]] = {}
    for i in rng.permutation(len(task.items)).tolist():
        strata.setdefault(task.items[i].answer, []).append(i)
    dealt = [
        ((place + 0.5) / len(group), answer, i) for answer, group in strata.items() for place, i in enumerate(group)
    ]
    return [i for _, _, i in sorted(dealt)]


def load_file(path: Path) -> Task:
    """Read a JSONL file of {"context", "choices", "answer"}.

    Raises:
        InvalidData: it is missing, empty or malformed; the message names file and line.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as e:
        raise InvalidData(f"Cannot read the task file {path}: {e}; it must be readable UTF-8 text.") from None
    items = tuple(_item(line, f"Line {n} of {path}") for n, line in enumerate(lines, 1) if line.strip())
    if not items:
        raise InvalidData(f"The task file {path} is empty; give one JSON object of context, choices, answer a line.")
    kinds = {len(i.choices) > 1 for i in items}
    if len(kinds) > 1:
        raise InvalidData(f"The task file {path} mixes questions with and without choices; put them into two files.")
    name = path.stem.removesuffix(".report").removesuffix(".search")
    return Task(name, items, "choice" if kinds.pop() else "exact")


def _item(line: str, where: str) -> Item:
    try:
        raw = json.loads(line)
        if "choices" not in raw and isinstance(raw["answer"], str):
            item = Item(raw["context"], (raw["answer"],), 0)
        else:
            item = Item(raw["context"], tuple(raw["choices"]), raw["answer"])
    except (ValueError, KeyError, TypeError):
        raise InvalidData(
            f'{where} is not {{"context": "...", "choices": [two or more], "answer": 0}}, nor '
            '{"context": "...", "answer": "..."} for a text to be generated; correct it.'
        ) from None
    texts = [item.context, *item.choices]
    enough = len(item.choices) > 1 or "choices" not in raw
    if not all(isinstance(t, str) for t in texts) or not enough or not all(c.strip() for c in item.choices):
        raise InvalidData(f"{where} needs a context string and at least two options that are not empty; correct it.")
    if type(item.answer) is not int or not 0 <= item.answer < len(item.choices):
        raise InvalidData(f"{where} has answer {item.answer!r}, not one of 0 to {len(item.choices) - 1}; correct it.")
    return item


def longest(config: Any) -> int:
    """Most tokens that a model reads."""
    return getattr(config.get_text_config(), "max_position_embeddings", None) or 2**31


def _question(number: int, item: Item, tokenizer: Any, bos: bool, longest: int) -> Question:
    """Too long a row loses its beginning."""
    pairs = [encode_pair(tokenizer, item.context, c, bos, item.joint) for c in item.choices]
    rows = [(head + tail)[-longest:] for head, tail in pairs]
    scored = tuple(min(len(tail), len(row) - 1) for row, (_, tail) in zip(rows, pairs, strict=True))
    most = min(len(row) - n for row, n in zip(rows, scored, strict=True)) - 1
    shared = next((i for i in range(most) if len({row[i] for row in rows}) > 1), most)
    return Question(number, tuple(rows[0][:shared]), tuple(tuple(row[shared:]) for row in rows), scored)


def _batches(questions: Sequence[Question], vocabulary: int) -> Iterator[list[Question]]:
    """Questions of similar length together, within the budgets (a single question may exceed them)."""
    batch: list[Question] = []
    for question in sorted(questions, key=lambda q: (len(q.prefix), q.width)):
        both = [*batch, question]
        options, width = sum(len(q.rests) for q in both), max(q.width for q in both)
        # An empty prefix beside a full one would be a row of nothing but padding.
        apart = bool(batch) and not batch[0].prefix and bool(question.prefix)
        full = len(both) * len(question.prefix) > TOKEN_BUDGET or options * width > TOKEN_BUDGET
        if batch and (apart or full or options * width * vocabulary > LOGIT_BUDGET):
            yield batch
            both = [question]
        batch = both
    if batch:
        yield batch


@torch.inference_mode()
def _log_likelihoods(model: Any, batch: Sequence[Question]) -> tuple[list[list[float]], list[bool]]:
    """Summed log-probability of every option, and whether each token of the first was the likeliest.

    The shared prefixes run once and lend their cache to the options.
    """
    owner = [i for i, q in enumerate(batch) for _ in q.rests]
    tokens, mask = _padded([r for q in batch for r in q.rests], left=False)
    scored = torch.tensor([n for q in batch for n in q.scored]).unsqueeze(1)
    position = torch.arange(1, tokens.shape[1])
    length = mask.sum(1, keepdim=True)
    asked = (position >= length - scored) & (position < length)
    logits = _logits(model, batch, tokens, mask, torch.tensor(owner))[:, :-1].float()
    target = tokens[:, 1:].to(logits.device)
    chosen = logits.gather(-1, target.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)
    asked = asked.to(logits.device)
    sums = iter(chosen.double().masked_fill(~asked, 0.0).sum(1).tolist())
    likeliest = iter(((logits.argmax(-1) == target) | ~asked).all(1).tolist())
    return [[next(sums) for _ in q.rests] for q in batch], [[next(likeliest) for _ in q.rests][0] for q in batch]


def _logits(
    model: Any, batch: Sequence[Question], tokens: torch.Tensor, mask: torch.Tensor, owner: torch.Tensor
) -> torch.Tensor:
    device = model.device
    if not batch[0].prefix:
        return model(input_ids=tokens.to(device), attention_mask=mask.to(device), use_cache=False).logits
    prefix, before = _padded([q.prefix for q in batch], left=True)
    places = (before.cumsum(1) - 1).clamp(min=0).to(device)
    # Padding stays at the last place of its row, which learned positions have: nobody sees it, but it is looked up.
    behind = before.sum(1)[owner].unsqueeze(1) + mask.cumsum(1) - 1
    if _is_recurrent(model):
        rows, seen = torch.cat([prefix[owner], tokens], 1), torch.cat([before[owner], mask], 1)
        return model(input_ids=rows.to(device), attention_mask=seen.to(device), use_cache=False).logits[
            :, prefix.shape[1] :
        ]
    first = model(
        input_ids=prefix.to(device),
        attention_mask=before.to(device),
        position_ids=places,
        use_cache=True,
        logits_to_keep=1,
    )
    first.past_key_values.batch_select_indices(owner.to(device))
    return model(
        input_ids=tokens.to(device),
        attention_mask=torch.cat([before[owner], mask], 1).to(device),
        position_ids=behind.to(device),
        past_key_values=first.past_key_values,
        use_cache=True,
    ).logits


def _is_recurrent(model: Any) -> bool:
    """Whether layers carry a state, which a cache cannot lend to several rows."""
    types = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    return bool(getattr(model, "_is_stateful", False) or types & {"linear_attention", "conv"})


def _padded(rows: Sequence[Sequence[int]], left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and attention mask, int64 [rows, longest row]."""
    width = max(map(len, rows))
    tokens = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for i, row in enumerate(rows):
        where = slice(width - len(row), width) if left else slice(0, len(row))
        tokens[i, where] = torch.tensor(row, dtype=torch.long)
        mask[i, where] = 1
    return tokens, mask
