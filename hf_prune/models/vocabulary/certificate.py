"""The token certificate: a tokenizer with fewer tokens reads and says hard texts as the whole one does."""

import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from tokenizers import Tokenizer

from hf_prune.errors import ReloadMismatch

LEAST = 1000
"""Texts of a certificate."""
RUN = 8
"""Tokens of a text that is made of kept tokens."""


def texts_for(full: Tokenizer, kept: Sequence[int], parts: Sequence[str]) -> Iterator[str]:
    """At least `LEAST` texts: the parts, parts joined by twos, and runs of kept tokens.

    Args:
        full: the tokenizer with all tokens.
        kept: ids that stay.
        parts: texts on which tokenizers differ.
    """
    yield from parts
    draw = random.Random(0)
    for _ in range(LEAST // 2):
        yield draw.choice(("", " ", "\n")).join(draw.sample(parts, 2))
    for _ in range(LEAST // 2):
        yield full.decode(draw.choices(kept, k=RUN), skip_special_tokens=False)


def certify_tokens(full: Tokenizer, small: Tokenizer, kept: Sequence[int], texts: Iterable[str]) -> dict[str, Any]:
    """Compare two tokenizers text by text.

    Args:
        full: with all tokens.
        small: with the kept ones, numbered in their order from 0.
        kept: their old ids, sorted.
        texts: what is read.

    Returns:
        How many texts there were, and how many of them are written in kept tokens, and so in the same pieces.

    Raises:
        ReloadMismatch: a text is said otherwise, or has other pieces although all of its own were kept.
    """
    known, read, same = {*kept}, 0, 0
    for text in texts:
        read += 1
        before, after = full.encode(text).ids, small.encode(text).ids
        if small.decode(after, skip_special_tokens=False) != full.decode(before, skip_special_tokens=False):
            raise ReloadMismatch(f"With fewer tokens this text is not said as before: {text[:80]!r}.")
        if known.issuperset(before):
            same += 1
            if [kept[i] for i in after] != before:
                raise ReloadMismatch(f"This text has other pieces although all of its own were kept: {text[:80]!r}.")
    return {"hard_texts": read, "same_pieces": same}
