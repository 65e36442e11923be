"""Tokens and the rows they stand in, read from a tokenizer's files without loading it."""

import json
from collections.abc import Callable, Mapping

FILES = ("tokenizer.json", "vocab.json")
"""Where fast tokenizers and byte-level ones keep them."""


def vocabulary(read: Callable[[str], bytes]) -> Mapping[str, int] | None:
    """Token -> id; None where no file says so in a form that is known.

    Args:
        read: content of a file; raises OSError, KeyError or LookupError where there is none.
    """
    for name in FILES:
        try:
            raw = json.loads(read(name))
        except (OSError, LookupError, ValueError):
            continue
        if isinstance(raw, dict) and (found := _tokens(raw) if name == "tokenizer.json" else raw):
            return found
    return None


def matched(base: Mapping[str, int], variant: Mapping[str, int], rows: int, available: int) -> tuple[int, ...]:
    """For every row of the base's embedding the row of the variant's that stands for the same token; -1 without one.

    Args:
        base: token -> id.
        variant: token -> id.
        rows: of the base's embedding; those behind its tokens are padding.
        available: rows of the variant's embedding.
    """
    tokens = {number: token for token, number in base.items()}
    found = [variant.get(tokens[i], -1) if i in tokens else i for i in range(rows)]
    return tuple(i if 0 <= i < available else -1 for i in found)


def _tokens(raw: dict) -> dict[str, int]:
    """Of a tokenizer.json: byte pairs and word pieces map tokens to ids, unigram lists them with scores."""
    model = raw.get("model") or {}
    known = model.get("vocab") or {}
    found = {str(t[0]): i for i, t in enumerate(known)} if isinstance(known, list) else dict(known)
    return found | {t["content"]: t["id"] for t in raw.get("added_tokens") or ()}
