"""Token windows in a fixed order, cut out of one split of every corpus."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hf_prune.data.chat_templates import rendered
from hf_prune.data.corpora import Corpus, Documents, Split, check_disjoint, load_corpora
from hf_prune.data.own_samples import Sample
from hf_prune.errors import InvalidData

FIELDS = {"search": "sequences", "selection": "selection_sequences", "report": "report_sequences", "heal": "heal"}


@dataclass(frozen=True, eq=False)
class Windows:
    """Calibration evidence.

    `tokens` is int64 [windows, length] on the CPU, interleaved over the corpora so that every prefix is balanced;
    `corpora` names the corpus of each window; `origin` maps a corpus to where its text comes from; `bos` says whether
    every window starts with the tokenizer's start token (which carries no evidence of its own).
    """

    split: Split
    tokens: torch.Tensor
    corpora: tuple[str, ...]
    origin: Mapping[str, str]
    bos: bool = False

    @property
    def digest(self) -> str:
        """64 bits of SHA-256 over split, corpora and tokens: the same evidence, the same digest."""
        head = json.dumps([self.split, self.corpora, self.bos, list(self.tokens.shape)])
        return hashlib.sha256(head.encode() + self.tokens.contiguous().numpy().tobytes()).hexdigest()[:16]


def windows(
    data: Sequence[str],
    tokenizer: Any,
    split: Split,
    count: int,
    length: int,
    force_test_split: bool = False,
    vocabulary: int | None = None,
    at_most: bool = False,
) -> Windows:
    """Cut `count` windows of exactly `length` tokens out of the `split` side of every data entry.

    Documents are taken in file order and joined with the end-of-text token; where the tokenizer would prepend a start
    token, every window begins with it, and a document that brings its own loses that. `count` is shared over the
    corpora as evenly as possible; with `at_most` one that is too short for its share gives what it has.

    Raises:
        InvalidData: an entry is missing, malformed or too short; the tokenizer's template does not take a chat; two
            splits share a document; a public test split would be searched on without `force_test_split`; a token is
            not below `vocabulary` (rows of the embedding).
    """
    corpora = load_corpora(data, force_test_split or split == "report")
    check_disjoint(corpora)
    return cut(corpora, tokenizer, split, count, length, vocabulary, at_most)


def cut(
    corpora: Sequence[Corpus],
    tokenizer: Any,
    split: Split,
    count: int,
    length: int,
    vocabulary: int | None = None,
    at_most: bool = False,
) -> Windows:
    """`windows` of corpora that were read before and are disjoint; those that have no such split have no share."""
    corpora = [c for c in corpora if split in c.documents]
    quotas = [count // len(corpora) + (i < count % len(corpora)) for i in range(len(corpora))]
    bos = adds_bos(tokenizer)
    rows = [_cut(c, tokenizer, split, q, length, bos, at_most) for c, q in zip(corpora, quotas, strict=True)]
    quotas = list(map(len, rows))
    order = [(row, i) for row in range(max(quotas)) for i, q in enumerate(quotas) if row < q]
    tokens = torch.stack([rows[i][row] for row, i in order])
    used = tuple(corpora[i].name for _, i in order)
    result = Windows(split, tokens, used, {c.name: c.origins[split] for c in corpora if c.name in used}, bos)
    if vocabulary is not None:
        check_vocabulary(result, vocabulary)
    return result


def check_chats(corpora: Sequence[Corpus], tokenizer: Any) -> None:
    """Render every chat that healing may come to, which is long after the first windows are cut.

    Raises:
        InvalidData: as `windows`.
    """
    for corpus in corpora:
        for document in corpus.documents["heal"]:
            rendered(document, tokenizer)


def check_vocabulary(evidence: Windows, vocabulary: int) -> None:
    """Raise InvalidData when a token of `evidence` has no row in an embedding of `vocabulary` rows."""
    largest = int(evidence.tokens.max())
    if largest >= vocabulary:
        raise InvalidData(
            f"The tokenizer gives token {largest}, but the model knows only {vocabulary} tokens (0 to "
            f"{vocabulary - 1}); the tokenizer files belong to another model."
        )


def adds_bos(tokenizer: Any) -> bool:
    """True when `tokenizer(text)` starts with the start token."""
    ids = tokenizer("a")["input_ids"]
    return tokenizer.bos_token_id is not None and bool(ids) and ids[0] == tokenizer.bos_token_id


def _cut(
    corpus: Corpus, tokenizer: Any, split: Split, count: int, length: int, bos: bool, at_most: bool
) -> list[torch.Tensor]:
    """The first `count` windows of one corpus."""
    body = length - bos
    stream: list[int] = []
    for ids in _encoded(corpus.documents[split], tokenizer, bos) if count else ():
        stream += ids
        if len(stream) >= count * body:
            break
    there = len(stream) // body
    if at_most:
        count = min(count, max(there, 1))
    if there < count:
        raise InvalidData(
            f"The {split} split of {corpus.name!r} ({corpus.origins[split]}) has text for {there} windows of {length} "
            f"tokens, but {count} are asked of it; give more text, or lower {FIELDS[split]} or length."
        )
    start = [tokenizer.bos_token_id] if bos else []
    return [torch.tensor(start + stream[i * body : (i + 1) * body]) for i in range(count)]


def _encoded(documents: Documents, tokenizer: Any, bos: bool, batch: int = 64) -> Iterator[list[int]]:
    """Tokens of every document, with what ends it."""
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    joint = [end] if end is not None else tokenizer("\n\n", add_special_tokens=False)["input_ids"]
    begun = bos
    for first in range(0, len(documents), batch):
        some = documents[first : first + batch]
        texts = [rendered(d, tokenizer) for d in some]
        encoded = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        for document, ids in zip(some, encoded, strict=True):
            whole = _said(document, joint) if isinstance(document, Sample) else ids + joint
            yield without_start(whole, start) if begun else whole
            # Some models end a text with the token that starts the next one.
            begun = bos or whole[-1:] == [start]


def _said(sample: Sample, joint: list[int]) -> list[int]:
    """Its own tokens; what was cut off before its end gets none."""
    ids = list(sample.ids)
    return ids if not sample.ended or ids[-len(joint) :] == joint else ids + joint


def without_start(ids: list[int], start: int | None) -> list[int]:
    """Tokens of a text that has been started already: templates, and some texts, bring a start token of their own."""
    return ids[next((i for i, token in enumerate(ids) if token != start), len(ids)) :]
