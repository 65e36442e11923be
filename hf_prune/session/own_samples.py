"""What the base says itself, as text of a run: said once, and kept in the run's folder chunk by chunk.

A chunk is what one batch says. Its draws follow from the seed, its split and its number alone, so an interrupted run
goes on with the next one, and a run that needs more text says more behind what it said before.
"""

import hashlib
import json
import os
import zlib
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from hf_prune.assembly.base_check import stock_model
from hf_prune.atomic_files import write_text
from hf_prune.data.chat_templates import opening, rendered
from hf_prune.data.corpora import SHARES, TRAIN_SHARES, Corpus, Split, divide, own_corpus, text_key
from hf_prune.data.documents import Chat
from hf_prune.data.own_samples import Sample, is_own, prompts_of
from hf_prune.errors import InvalidData, StaleJournal
from hf_prune.evaluation.sampling import Said, sample
from hf_prune.evaluation.speed import kv_bytes_per_token
from hf_prune.events import Advanced, Event, Stage, Tell, stream_work
from hf_prune.models.noise import quiet
from hf_prune.planning import own_need
from hf_prune.session.session import Session

ROWS, FEWEST = 32, 4
"""Rows of a batch: as many as keep two cores busy for less than half a minute with 135M parameters, and no fewer than
this with more."""
PARAMETER_TOKENS = 32 * 256 * 135e6
"""Tokens that a chunk says at most on a CPU, times parameters."""
GPU_ROWS = 64
CACHE_BYTES = 2 << 30
"""Most bytes of keys and values of a batch."""
PATIENCE = 8
"""Chunks without anything new until a base counts as one that has no more to say."""
USER_SHARE = 4
"""What a user says is at most this part of a window."""


def say_own(session: Session) -> Generator[Event, None, None]:
    """Let the base say the text that the recipe asks of it, or read what it said before, into `session.evidence.own`.

    Raises:
        InvalidData: it has neither a start token nor a chat template, repeats itself, or there are too few prompts.
        StaleJournal: what is kept of an earlier run is damaged.
    """
    evidence, asked = session.evidence, list(filter(is_own, session.evidence.entries))
    if not asked:
        return
    others = evidence.others
    count = len(asked) + sum(map(len, others.values()))
    need = own_need(session.recipe, count, alone=not others)
    how = "at temperature 1" + ("" if others else "; there is no other text, so it is measured on them, too")
    yield Stage("sample", f"{len(asked) * sum(need.values()):,} tokens of the base's own, {how}")
    if not session.recipe.data.text:
        session.workdir.folder.mkdir(parents=True, exist_ok=True)
        write_text(session.workdir.text, json.dumps(evidence.entries))
    said = yield from stream_work(lambda tell: _say(session, asked, need, tell))
    evidence.own.update({entry: (corpus,) for entry, corpus in said.items()})
    session.clock.lap("sample")


def _say(session: Session, asked: Sequence[str], need: Mapping[Split, int], tell: Tell) -> dict[str, Corpus]:
    total, before = len(asked) * sum(need.values()), 0
    model, said = _model(session), {}
    for entry in asked:

        def tick(done: int, before: int = before) -> None:
            tell(Advanced("sample", min(before + done, total), total))

        speaker = Speaker(session, model, entry, tuple(need))
        with Chunks(session.workdir.samples(speaker.key)) as kept:
            said[entry] = _corpus(speaker, kept, need, tick)
        before += sum(need.values())
    return said


def _model(session: Session) -> PreTrainedModel:
    """The base as the search has it; in float16, where it might overflow, one of its own."""
    if session.dtype != torch.float16:
        return session.bank.model
    native = session.device.type == "cuda" and torch.cuda.is_bf16_supported()
    return stock_model(session.inputs.base, torch.bfloat16 if native else torch.float32, session.device)


def _corpus(speaker: "Speaker", kept: "Chunks", need: Mapping[Split, int], tick: Callable[[int], None]) -> Corpus:
    """Documents of every split, none of them twice."""
    seen: set[bytes] = set()
    documents: dict[Split, tuple[Sample, ...]] = {}
    done = 0
    for split, tokens in need.items():

        def step(count: int, before: int = done) -> None:
            tick(before + count)

        documents[split] = tuple(_enough(speaker, kept, split, tokens, seen, step))
        done += tokens
    digest = hashlib.sha256(json.dumps([[s, [d.ids for d in ds]] for s, ds in documents.items()]).encode())
    return own_corpus(speaker.entry, documents, f"{speaker.origin}, SHA-256 {digest.hexdigest()[:16]}")


def _enough(
    speaker: "Speaker", kept: "Chunks", split: Split, need: int, seen: set[bytes], tick: Callable[[int], None]
) -> list[Sample]:
    """What chunk after chunk says that was not said before, until there are `need` tokens of it."""
    found: list[Sample] = []
    number = idle = tokens = 0
    while tokens < need:
        chunk = kept.get(split, number)
        if chunk is None:
            chunk = speaker.say(split, number, lambda drawn, before=tokens: tick(min(before + drawn, need)))
            kept.add(split, number, chunk)
        before = tokens
        for one in (speaker.sample(said) for said in chunk):
            key = text_key(one)
            if key not in seen and one.strip():
                seen.add(key)
                found.append(one)
                # The start token of a document may be left out of a window.
                tokens += len(one.ids) - 1
        number, idle = number + 1, 0 if tokens > before else idle + 1
        if idle == PATIENCE:
            raise InvalidData(
                f"The base says nothing new any more: {tokens:,} of {need:,} tokens for the {split} split after "
                f"{number} batches; give other text with --data, or ask for less of it."
            )
        tick(min(tokens, need))
    return found


@dataclass(frozen=True, eq=False)
class Speaker:
    """The base, asked for one entry of data.

    Args:
        session: the run.
        model: the base, resident.
        entry: `self`, or `self:PROMPTS`.
        splits: that it is asked for.
    """

    session: Session
    model: PreTrainedModel
    entry: str
    splits: tuple[Split, ...]

    @cached_property
    def prompts(self) -> dict[Split, tuple[Chat, ...]]:
        """Those of every split, which share none; empty for free samples.

        Raises:
            InvalidData: there are too few.
        """
        found = prompts_of(self.entry)
        if not found:
            return {}
        shares = SHARES if "report" in self.splits else TRAIN_SHARES
        cut = dict(zip(("heal", "selection", "report"), divide(found, shares), strict=False))
        if not all(cut.values()):
            raise InvalidData(
                f"{self.entry} has {len(found)} different prompts, too few for {len(cut)} splits; add some."
            )
        return cut

    @cached_property
    def start(self) -> tuple[int, ...]:
        """What stands before a text: the start token, or the one between texts; nothing where there is neither."""
        tokenizer, config = self.session.inputs.tokenizer, self.model.config.get_text_config()
        known = (tokenizer.bos_token_id, config.bos_token_id, tokenizer.eos_token_id)
        return tuple(token for token in known if token is not None)[:1]

    @cached_property
    def opening(self) -> tuple[int, ...]:
        """What stands before the words of a user."""
        return self._encoded(opening(self.session.inputs.tokenizer))

    @property
    def origin(self) -> str:
        """Where the text comes from, in public terms."""
        source, seed = self.session.inputs.base.source, self.session.recipe.seed
        if self.prompts:
            how = f"answers to {sum(map(len, self.prompts.values()))} prompts"
        else:
            ways = {"its start token": self.start, "its chat template, both turns its own": self.opening}
            how = "said from " + " and ".join(way for way, tokens in ways.items() if tokens)
        name = source.repo if not source.is_local else Path(source.repo).name
        return f"own samples of {name}, {how}, temperature 1, seed {seed}"

    @cached_property
    def rows(self) -> int:
        """Of a batch that is to be fitted or trained on; half as many of other splits."""
        length, base = self.session.recipe.data.length, self.session.inputs.base
        rows = GPU_ROWS
        if self.model.device.type == "cpu":
            rows = max(FEWEST, min(ROWS, int(PARAMETER_TOKENS / length / base.parameters)))
        row = 2 * length * kv_bytes_per_token(self.model.config, self.model.dtype.itemsize)
        return max(1, min(rows, CACHE_BYTES // max(row, 1)))

    @property
    def key(self) -> str:
        """64 bits over everything that decides what is said, numerics aside."""
        s = self.session
        prompts = {split: list(map(str, some)) for split, some in self.prompts.items()}
        decides = [str(s.inputs.base.source), prompts, s.recipe.seed, s.recipe.data.length, self.rows]
        return hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:16]

    def say(self, split: Split, number: int, tick: Callable[[int], None]) -> list[Said]:
        """A chunk: what was given and what was said to it, each in one."""
        rows = self.rows if split == "heal" else max(1, self.rows // 2)
        draws = np.random.SeedSequence([self.session.recipe.seed, zlib.crc32(split.encode()), number])
        first, second = (int(seed) for seed in draws.generate_state(2))
        count = Count(tick)
        with quiet():
            if self.prompts:
                some = self.prompts[split]
                given = [self._question(some[(number * rows + i) % len(some)]) for i in range(rows)]
            else:
                given = self._beginnings(rows, first, count)
            new = min([self.session.recipe.data.length, *(self._room(len(ids)) for ids in given)])
            said = sample(self.model, given, new, second, count)
        return [Said((*ids, *one.ids), one.ended) for ids, one in zip(given, said, strict=True)]

    def sample(self, said: Said) -> Sample:
        """As a document."""
        return Sample(self.session.inputs.tokenizer.decode(said.ids), said.ids, said.ended)

    def _beginnings(self, rows: int, seed: int, tick: Callable[[int], None]) -> list[tuple[int, ...]]:
        """Half the rows start a text; the others have their turn in a chat, in which they said the user's before."""
        chats = 0 if not self.opening else rows // 2 if self.start else rows
        if not self.start and not chats:
            raise InvalidData(
                f"{self.session.inputs.base.source.repo} has neither a start token nor a chat template, so it cannot "
                "begin to speak; give prompts (--data self:prompts.jsonl) or text."
            )
        asked = ()
        if chats:
            length = max(1, self.session.recipe.data.length // USER_SHARE)
            asked = sample(self.model, [self.opening] * chats, length, seed, tick)
        answered = filter(None, map(self._own_question, asked))
        return [*[self.start] * (rows - chats), *answered] or [self.opening]

    def _own_question(self, said: Said) -> tuple[int, ...]:
        """A chat that the base began as its user; nothing where its template takes no such turn."""
        words = self.session.inputs.tokenizer.decode(said.ids, skip_special_tokens=True).strip()
        if not words:
            return ()
        try:
            return self._question(Chat(json.dumps([{"role": "user", "content": words}]), "A turn of its own"))
        except InvalidData:
            return ()

    def _question(self, chat: Chat) -> tuple[int, ...]:
        """Tokens up to where the base answers; of a base without a template, the words of the one message."""
        tokenizer = self.session.inputs.tokenizer
        messages, tools = chat.parts
        if not getattr(tokenizer, "chat_template", None) and len(messages) == 1 and not tools:
            ids = (*self.start, *self._encoded(messages[0].get("content") or ""))
        else:
            ids = self._encoded(rendered(chat, tokenizer, ask=True))
        if not ids or self._room(len(ids)) < 1:
            raise InvalidData(f"{chat.where} leaves the base no room to answer; make it shorter.")
        return ids

    def _room(self, given: int) -> int:
        positions = self.session.evidence.positions
        return self.session.recipe.data.length if positions is None else positions - given

    def _encoded(self, text: str) -> tuple[int, ...]:
        ids = self.session.inputs.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] if text else ()
        return tuple(ids)


class Count:
    """Adds up the rows of every step for who is told the sum."""

    def __init__(self, tick: Callable[[int], None]) -> None:
        self.tick, self.drawn = tick, 0

    def __call__(self, rows: int) -> None:
        """One step of a batch."""
        self.drawn += rows
        self.tick(self.drawn)


class Chunks:
    """What was said, a JSON line for every chunk, whole or not at all."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: Any = None
        self._kept: dict[tuple[str, int], list[Said]] = {}

    def __enter__(self) -> "Chunks":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "a+b")
        self._file.seek(0)
        content = self._file.read()
        lines = content.split(b"\n")[:-1]
        for number, line in enumerate(lines, 1):
            self._load(line, number)
        self._file.truncate(sum(len(line) + 1 for line in lines))
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def get(self, split: str, number: int) -> list[Said] | None:
        """A chunk of before."""
        return self._kept.get((split, number))

    def add(self, split: str, number: int, chunk: Sequence[Said]) -> None:
        """On disk, in full, when this returns."""
        said = [[list(one.ids), one.ended] for one in chunk]
        line = json.dumps({"split": split, "chunk": number, "said": said, "sha256": _digest(said)})
        self._file.seek(0, os.SEEK_END)
        self._file.write(line.encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _load(self, line: bytes, number: int) -> None:
        try:
            raw = json.loads(line)
            if raw["sha256"] != _digest(raw["said"]):
                raise ValueError("its digest differs")
            self._kept[raw["split"], raw["chunk"]] = [Said(tuple(ids), ended) for ids, ended in raw["said"]]
        except (ValueError, TypeError, KeyError) as e:
            raise StaleJournal(
                f"Line {number} of the own samples {self.path} is damaged ({e}); move the file away to have them said "
                "afresh."
            ) from None


def _digest(said: list[Any]) -> str:
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]
