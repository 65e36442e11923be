"""Tasks: items with their options, and which of them is right; or a context and the answer to be generated."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hf_prune.data.bundled import demo_folder
from hf_prune.data.records import HALF, is_cut, kind_of, records, unclear
from hf_prune.errors import InvalidData

Kind = Literal["choice", "exact"]
EXPECTED = (
    '{"context": "...", "choices": [two or more], "answer": 0}, nor {"context": "...", "answer": "..."} for a text '
    "to be generated"
)


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


def bundled_tasks() -> tuple[Path, ...]:
    """Files of the cloze tasks that come with the demo family."""
    return tuple(sorted((demo_folder() / "tasks").glob("*.report.jsonl")))


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
    """Read a file of {"context", "choices", "answer"}, one a line or in an array.

    Raises:
        InvalidData: it is missing, empty or malformed; the message names file and line.
    """
    items = tuple(_item(record, where) for where, record in records(path, "task", EXPECTED))
    if not items:
        raise InvalidData(f"The task file {path} is empty; give one JSON object of context, choices, answer a line.")
    kinds = {len(i.choices) > 1 for i in items}
    if len(kinds) > 1:
        raise InvalidData(f"The task file {path} mixes questions with and without choices; put them into two files.")
    name = path.stem.removesuffix(".report").removesuffix(".search")
    return Task(name, items, "choice" if kinds.pop() else "exact")


def _item(record: Any, where: str) -> Item:
    if not isinstance(record, dict):
        raise unclear(where, EXPECTED, f"it is {kind_of(record)}")
    if missing := next((key for key in ("context", "answer") if key not in record), None):
        raise unclear(where, EXPECTED, f"it has no {missing}")
    if "choices" not in record and isinstance(record["answer"], str):
        return checked(Item(record["context"], (record["answer"],), 0), where, 1)
    choices = record.get("choices")
    if not isinstance(choices, list):
        raise unclear(where, EXPECTED, f"its choices are {kind_of(choices)}" if choices else "it has no choices")
    return checked(Item(record["context"], tuple(choices), record["answer"]), where)


def checked(item: Item, where: str, least: int = 2) -> Item:
    """An item whose texts are texts and whose answer is one of its options.

    Args:
        item: as it was read.
        where: its place, for the message.
        least: options it must have.

    Raises:
        InvalidData: what is wrong with it.
    """
    texts = [item.context, *item.choices]
    if not all(isinstance(t, str) for t in texts) or len(item.choices) < least or not all(map(str.strip, texts[1:])):
        raise InvalidData(f"{where} needs a context string and at least two options that are not empty; correct it.")
    if any(map(is_cut, texts)):
        raise InvalidData(f"{where} holds {HALF}; correct it.")
    if type(item.answer) is not int or not 0 <= item.answer < len(item.choices):
        raise InvalidData(f"{where} has answer {item.answer!r}, not one of 0 to {len(item.choices) - 1}; correct it.")
    return item
