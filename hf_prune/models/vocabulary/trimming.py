"""Which tokens stay, and the tokenizer in which these alone are numbered."""

import json
import string
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer

from hf_prune.errors import InvalidRecipe, ReloadMismatch
from hf_prune.models.vocabulary.schemes import Scheme, scheme_of

GROWTH = 0.01
"""By how much more tokens a text may take, as a share, where nobody says how many are to stay."""
BATCH = 256
SPACE = "▁"
"""What stands for a space within tokens of SentencePiece."""


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The tokens of a fast tokenizer, of which some stay; `named` are ids that settings of the model mention."""

    tokenizer: Tokenizer
    named: frozenset[int] = frozenset()

    @cached_property
    def raw(self) -> dict[str, Any]:
        """The tokenizer as the library writes it."""
        return json.loads(self.tokenizer.to_str())

    @cached_property
    def scheme(self) -> Scheme:
        """How it cuts words; raises UnsupportedArchitecture."""
        return scheme_of(self.raw["model"])

    @cached_property
    def ids(self) -> Mapping[str, int]:
        """Of every token, added ones too."""
        return {**self.scheme.vocab, **{t["content"]: t["id"] for t in self.raw["added_tokens"]}}

    @cached_property
    def tokens(self) -> Mapping[int, str]:
        """The other way round."""
        return {number: token for token, number in self.ids.items()}

    @cached_property
    def floor(self) -> frozenset[str]:
        """What stays whatever is asked for, with all it is made by."""
        added = {t["content"] for t in self.raw["added_tokens"]}
        chosen = {self.tokens[i] for i in self.named if i in self.tokens}
        alone = SPACE in self.scheme.vocab
        plain = {t for t in self.scheme.vocab if _is_plain(t) or SPACE in t and not alone}
        return self._closed(self.scheme.floor() | added | chosen | plain)

    def _closed(self, tokens: Iterable[str]) -> frozenset[str]:
        return frozenset().union(*(self._made_by(t) for t in tokens))

    def _made_by(self, token: str) -> set[str]:
        return self.scheme.needed(token) if token in self.scheme.vocab else {token}

    def counts(self, texts: Iterable[str]) -> dict[int, int]:
        """How often each token stands in some texts."""
        found: dict[int, int] = {}
        for number in (i for ids in encoded(self.tokenizer, texts) for i in ids):
            found[number] = found.get(number, 0) + 1
        return found

    def kept(self, size: int, counts: Mapping[int, int]) -> tuple[int, ...]:
        """At most `size` ids, sorted: the floor, then the commonest with all they are made by, then as learned.

        Raises:
            InvalidRecipe: the floor alone is larger.
        """
        if size < len(self.floor):
            raise InvalidRecipe(
                f"A vocabulary of {size} tokens is too small: bytes or characters, special and added tokens, digits "
                f"and punctuation of this tokenizer are {len(self.floor)}; ask for more."
            )
        return self._filled(size, self._groups(counts))

    def _filled(self, size: int, groups: Iterable[set[str]]) -> tuple[int, ...]:
        kept = set(self.floor)
        for group in groups:
            if len(kept) + len(group) > size:
                break
            kept |= group
        return tuple(sorted(self.ids[t] for t in kept))

    def _groups(self, counts: Mapping[int, int]) -> Iterator[set[str]]:
        """Every token above the floor with what it is made by, each once; so larger sizes hold smaller ones."""
        seen = {self.tokens[i]: n for i, n in counts.items() if i in self.tokens}
        common, done = sorted(seen, key=lambda t: (-seen[t], self.ids[t])), set(self.floor)
        for token in (*common, *self._ranking):
            if token not in done:
                group = self._made_by(token) - done
                done |= group
                yield group

    @cached_property
    def _ranking(self) -> list[str]:
        return self.scheme.ranking()

    def cut(self, kept: Collection[int]) -> Tokenizer:
        """The tokenizer with these tokens alone, numbered in their order from 0; all else as it was.

        Raises:
            ReloadMismatch: the library numbers them in another way.
        """
        new = {self.tokens[old]: number for number, old in enumerate(sorted(kept))}
        bare = Tokenizer(self.scheme.cut(new))
        raw = {**self.raw, "model": json.loads(bare.to_str())["model"]}
        raw["added_tokens"] = [{**t, "id": new[t["content"]]} for t in raw["added_tokens"]]
        raw["post_processor"] = _renumbered(raw.get("post_processor"), new)
        if raw.get("padding"):
            raw["padding"] = {**raw["padding"], "pad_id": new[raw["padding"]["pad_token"]]}
        made = Tokenizer.from_str(json.dumps(raw, ensure_ascii=False))
        if made.get_vocab() != new:
            raise ReloadMismatch(
                "The tokenizers library numbers the kept tokens in another way; leave --vocabulary out."
            )
        return made

    def smallest(
        self, counts: Mapping[int, int], unseen: Sequence[str], growth: float = GROWTH, step: int | None = None
    ) -> tuple[int, ...]:
        """The fewest tokens, by steps, in which unseen texts take at most so many more tokens.

        Args:
            counts: on the texts that say which tokens are common.
            unseen: other texts.
            growth: share of more tokens that is allowed.
            step: by which sizes differ; default: a 64th of the tokens, and a multiple of 64 as processors like it.
        """
        step = step or 64 * max(1, len(self.ids) // 4096)
        allowed = (1 + growth) * length(self.tokenizer, unseen)
        low, high = -(-len(self.floor) // step), -(-len(self.ids) // step)
        groups = list(self._groups(counts))
        while low < high:
            middle = (low + high) // 2
            fits = length(self.cut(self._filled(middle * step, groups)), unseen) <= allowed
            low, high = (low, middle) if fits else (middle + 1, high)
        return self._filled(high * step, groups)


def encoded(tokenizer: Tokenizer, texts: Iterable[str]) -> Iterator[list[int]]:
    """Ids of every text, without special tokens around it."""
    found = list(texts)
    for first in range(0, len(found), BATCH):
        for one in tokenizer.encode_batch_fast(found[first : first + BATCH], add_special_tokens=False):
            yield one.ids


def length(tokenizer: Tokenizer, texts: Iterable[str]) -> int:
    """Tokens of all texts."""
    return sum(map(len, encoded(tokenizer, texts)))


def _is_plain(token: str) -> bool:
    """Whether it is a sign of ASCII or a number, perhaps with what marks a space or the inside of a word.

    The mark alone is, too: written in bytes it would not be told from the same sign in a text.
    """
    bare = token.removeprefix("##").lstrip(f"Ġ{SPACE} ")
    return bare.isascii() and (len(bare) == 1 and bare in string.printable or bare.isdigit() or len(token) == 1)


def _renumbered(processor: Any, new: Mapping[str, int]) -> Any:
    """A post-processor whose special tokens have their new numbers."""
    if not processor:
        return processor
    made = dict(processor)
    for part in ("sep", "cls"):
        if part in made:
            made[part] = [made[part][0], new[made[part][0]]]
    if "special_tokens" in made:
        special = made["special_tokens"].items()
        made["special_tokens"] = {name: {**t, "ids": [new[x] for x in t["tokens"]]} for name, t in special}
    if "processors" in made:
        made["processors"] = [_renumbered(p, new) for p in made["processors"]]
    return made
