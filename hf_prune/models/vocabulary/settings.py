"""Settings beside a model that name tokens by number: config, generation settings, those of the tokenizer."""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from hf_prune.errors import UnsupportedArchitecture

LISTS = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "force_words_ids")
"""Keys of token ids whose names do not end as such keys do."""
FILES = ("config.json", "generation_config.json", "tokenizer_config.json")
"""Settings that name tokens."""
ROWS = "vocab_size"


def is_about_tokens(key: str) -> bool:
    """Whether a key names tokens by number."""
    return key.endswith(("_token_id", "_token_ids")) or key in LISTS


def named_ids(raw: Any) -> Iterator[int]:
    """Every token that settings name by number, however deep; negative numbers name none."""
    if isinstance(raw, Mapping):
        for key, value in raw.items():
            yield from _numbers(value) if is_about_tokens(str(key)) else named_ids(value)


def named_by(read: Callable[[str], bytes]) -> frozenset[int]:
    """The same of all settings of a model.

    Args:
        read: content of a file; raises OSError or LookupError where there is none.
    """
    found: set[int] = set()
    for name in FILES:
        with contextlib.suppress(OSError, LookupError):
            found.update(named_ids(json.loads(read(name))))
    return frozenset(found)


def _numbers(value: Any) -> Iterator[int]:
    if isinstance(value, list):
        for one in value:
            yield from _numbers(one)
    elif type(value) is int and value >= 0:
        yield value


def renumbered(raw: Any, new: Mapping[int, int], rows: int) -> Any:
    """The same settings with other numbers, and as many rows of the vocabulary as are kept.

    Args:
        raw: settings; those within are renumbered, too.
        new: number of every kept id.
        rows: what `vocab_size` was.

    Raises:
        UnsupportedArchitecture: they name a token that is not kept: one that the tokenizer does not know.
    """
    if not isinstance(raw, Mapping):
        return raw
    made: dict[str, Any] = {}
    for key, value in raw.items():
        if is_about_tokens(str(key)):
            made[key] = _moved(key, value, new)
        elif key == "added_tokens_decoder":
            made[key] = {str(new[int(number)]): token for number, token in value.items()}
        else:
            made[key] = len(new) if key == ROWS and value == rows else renumbered(value, new, rows)
    return made


def _moved(key: str, value: Any, new: Mapping[int, int]) -> Any:
    if isinstance(value, list):
        return [_moved(key, one, new) for one in value]
    if type(value) is not int or value < 0:
        return value
    if value not in new:
        raise UnsupportedArchitecture(
            f"The settings of this model name token {value} as {key}, which its tokenizer does not know; leave out "
            "--vocabulary, or correct that setting."
        )
    return new[value]
