"""What keeps a text readable when tokens go, by the rules of each way to cut words into pieces.

Every scheme knows the tokens of its model by name, which no two share.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any, Protocol

from tokenizers import models

from hf_prune.errors import UnsupportedArchitecture

BYTES = frozenset(f"<0x{value:02X}>" for value in range(256))
"""Pieces that a character without a piece of its own is written in."""


class Scheme(Protocol):
    """A model of the tokenizers library, read from the `model` of a tokenizer.json."""

    vocab: Mapping[str, int]

    def floor(self) -> set[str]:
        """Tokens without which a text could not be written that can be written now."""

    def needed(self, token: str) -> set[str]:
        """The token and all those it is made by."""

    def ranking(self) -> list[str]:
        """Every token, the commonest first as far as the model says."""

    def cut(self, kept: Mapping[str, int]) -> models.Model:
        """The model with these tokens under these numbers, 0, 1, 2 ..."""


class BytePairs:
    """Byte pair encoding, over bytes or characters: a token is made by merges, each of two tokens.

    The merges that make a kept token from its characters stay, in their order. Then a text whose tokens are all kept is
    made by the same merges: at every step the first that fits was kept, and no other is before it.
    """

    def __init__(self, raw: Mapping[str, Any]) -> None:
        self.raw, self.vocab = raw, raw["vocab"]
        skipped = len(raw.get("continuing_subword_prefix") or "")
        self.merges = {tuple(pair): rank for rank, pair in enumerate(raw["merges"])}
        self.made = {(a, b): a + b[skipped:] for a, b in self.merges}

    def floor(self) -> set[str]:
        """Bytes, where characters fall back to them; else all that no merge makes."""
        if self.raw.get("byte_fallback") and self.vocab.keys() >= BYTES:
            return {*BYTES, *_unknown(self.raw, self.vocab)}
        return {*(self.vocab.keys() - set(self.made.values())), *_unknown(self.raw, self.vocab)}

    def needed(self, token: str) -> set[str]:
        """What the merges make on the way from its characters to it; itself alone where they do not come to it."""
        if self.raw.get("continuing_subword_prefix") or self.raw.get("end_of_word_suffix"):
            return self._anyhow(token)
        symbols, found = list(self._symbols(token)), {token}
        found.update(symbols)
        while pairs := [(self.merges[p], p) for p in zip(symbols, symbols[1:]) if p in self.merges]:  # noqa: B905
            first = min(pairs)[1]
            at = next(i for i, p in enumerate(zip(symbols, symbols[1:])) if p == first)  # noqa: B905
            symbols[at : at + 2] = [self.made[first]]
            found.add(symbols[at])
        return found if symbols == [token] else {token}

    def _symbols(self, token: str) -> Iterator[str]:
        for character in token:
            if character in self.vocab:
                yield character
            else:
                yield from (b for byte in character.encode() if (b := f"<0x{byte:02X}>") in self.vocab)

    def _anyhow(self, token: str) -> set[str]:
        """Where the first symbols are marked and cannot be told from the token: the parts of all its merges."""
        found, open_ = {token}, [token]
        while open_:
            parts = {part for pair in self._ways.get(open_.pop(), ()) for part in pair} - found
            found |= parts
            open_ += parts
        return found

    @cached_property
    def _ways(self) -> dict[str, list[tuple[str, str]]]:
        ways: dict[str, list[tuple[str, str]]] = {}
        for pair, token in self.made.items():
            ways.setdefault(token, []).append(pair)
        return ways

    def ranking(self) -> list[str]:
        """As they were learned, which is by frequency."""
        return sorted(self.vocab, key=self.vocab.__getitem__)

    def cut(self, kept: Mapping[str, int]) -> models.Model:
        """With every merge whose parts and product are kept."""
        own = {t: i for t, i in kept.items() if t in self.vocab}
        merges = [(a, b) for (a, b), product in self.made.items() if a in own and b in own and product in own]
        settings = ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk",
                    "byte_fallback", "ignore_merges")  # fmt: skip
        given = {s: self.raw[s] for s in settings if self.raw.get(s) is not None}
        return models.BPE(vocab=own, merges=merges, **given)


class Unigram:
    """Pieces with scores, of which the likeliest sequence is taken: what is likeliest of all stays so among fewer."""

    def __init__(self, raw: Mapping[str, Any]) -> None:
        self.raw = raw
        self.scores = {token: score for token, score in raw["vocab"]}
        self.vocab = {token: i for i, (token, _) in enumerate(raw["vocab"])}

    def floor(self) -> set[str]:
        """Bytes or characters; and a piece of the least score, by which the score of an unknown character goes."""
        least = min(self.scores, key=self.scores.__getitem__, default=None)
        known = {t for t in (least, *_unknown(self.raw, self.vocab)) if t is not None}
        if self.raw.get("byte_fallback") and self.vocab.keys() >= BYTES:
            return known | BYTES
        return known | _spelled({t: list(t) for t in self.vocab}, self.vocab)

    def needed(self, token: str) -> set[str]:
        """No piece is made of others."""
        return {token}

    def ranking(self) -> list[str]:
        """By score."""
        return sorted(self.vocab, key=lambda t: -self.scores[t] if math.isfinite(self.scores[t]) else math.inf)

    def cut(self, kept: Mapping[str, int]) -> models.Model:
        """With the same scores."""
        own = sorted((t for t in kept if t in self.vocab), key=kept.__getitem__)
        unknown = next(iter(_unknown(self.raw, self.vocab)), None)
        place = None if unknown is None else own.index(unknown)
        return models.Unigram([(t, self.scores[t]) for t in own], place, bool(self.raw.get("byte_fallback")))


class WordPiece:
    """The longest piece that fits, again and again: the longest of all that is kept is the longest of those kept."""

    def __init__(self, raw: Mapping[str, Any]) -> None:
        self.raw, self.vocab = raw, raw["vocab"]

    def floor(self) -> set[str]:
        """Characters at the beginning and within a word."""
        return _spelled({t: self._letters(t) for t in self.vocab}, self.vocab) | _unknown(self.raw, self.vocab)

    def _letters(self, token: str) -> list[str]:
        mark = self.raw["continuing_subword_prefix"]
        bare = token.removeprefix(mark)
        return [mark + c if i or bare != token else c for i, c in enumerate(bare)]

    def needed(self, token: str) -> set[str]:
        """No piece is made of others."""
        return {token}

    def ranking(self) -> list[str]:
        """As they were learned."""
        return sorted(self.vocab, key=self.vocab.__getitem__)

    def cut(self, kept: Mapping[str, int]) -> models.Model:
        """The same with fewer pieces."""
        settings = ("unk_token", "max_input_chars_per_word", "continuing_subword_prefix")
        own = {t: i for t, i in kept.items() if t in self.vocab}
        return models.WordPiece(vocab=own, **{s: self.raw[s] for s in settings})


def _unknown(raw: Mapping[str, Any], vocab: Iterable[str]) -> set[str]:
    """The token for what has none, by name or, for Unigram, by place."""
    if (place := raw.get("unk_id")) is not None:
        return {raw["vocab"][place][0]}
    return {raw.get("unk_token")} & {*vocab}


def _spelled(letters: Mapping[str, list[str]], vocab: Iterable[str]) -> set[str]:
    """All letters, and every token with a letter that is no token itself."""
    known = {*vocab}
    return {t for t, found in letters.items() if found == [t] or not known.issuperset(found)}


SCHEMES: Mapping[str, type] = {"BPE": BytePairs, "Unigram": Unigram, "WordPiece": WordPiece}


def scheme_of(raw: Mapping[str, Any]) -> Scheme:
    """Of the `model` of a tokenizer.json.

    Raises:
        UnsupportedArchitecture: a kind of model whose rules are not known.
    """
    if (kind := raw.get("type")) not in SCHEMES:
        raise UnsupportedArchitecture(
            f"A tokenizer of type {str(kind)[:40]} cannot lose tokens here, only {', '.join(SCHEMES)} can; leave out "
            "--vocabulary."
        )
    return SCHEMES[kind](raw)
