"""Records of a file that somebody wrote: JSON Lines, or JSON as a whole; each with the place where it stands."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hf_prune.data.local_files import read_text
from hf_prune.errors import InvalidData

ENDINGS = (".jsonl", ".json")
"""Of files that are read here; which of the two layouts one has is told by what is in it."""
HALF = "half of a character, a surrogate without its other half"
"""What JSON can spell and no text can hold."""


class _Broken(ValueError):
    """No JSON; in which line, and why."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.line = line


def records(path: Path, kind: str, expected: str) -> Iterator[tuple[str, Any]]:
    """The records of a file, each with its place in words ("Line 3 of a.jsonl"): a value a line, or those of an array.

    Args:
        path: the file.
        kind: as for `read_text`.
        expected: what a record looks like, for the message.

    Raises:
        InvalidData: as `read_text`, or a line is no JSON.
    """
    text = read_text(path, kind)
    try:
        whole = _whole(text)
        if isinstance(whole, list) and not is_conversation(whole):
            yield from ((f"Entry {number} of {path}", value) for number, value in enumerate(whole, 1))
        elif whole is not None:
            yield f"Line 1 of {path}", whole
        else:
            for number, line in enumerate(text.split("\n"), 1):
                # Files that were put together keep the byte order mark of each.
                if bare := line.strip().removeprefix("\ufeff"):
                    yield f"Line {number} of {path}", _parsed(bare, number)
    except _Broken as e:
        raise unclear(f"Line {e.line} of {path}", expected, str(e)) from None


def unclear(where: str, expected: str, reason: str) -> InvalidData:
    """The sentence for a record that nobody can read for sure."""
    return InvalidData(f"{where} is not {expected} ({reason}); make it one such JSON object.")


def is_cut(text: str) -> bool:
    """Whether a text holds `HALF`, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def is_conversation(values: list[Any]) -> bool:
    """Whether a list holds the turns of one chat, not records."""
    turns = ({"role", "content"}, {"role", "tool_calls"}, {"from", "value"})
    return bool(values) and all(isinstance(v, dict) and any(keys <= set(v) for keys in turns) for v in values)


def kind_of(value: Any) -> str:
    """A JSON value in words."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int | float):
        return "NaN" if value != value else "a number"
    return {str: "text", list: "a list"}.get(type(value), "an object")


def _whole(text: str) -> Any:
    """The value of a file that holds one; None of a file that holds one a line, and of an empty one."""
    first = next((line.strip() for line in text.split("\n") if line.strip()), "null")
    try:
        if not first.startswith("["):
            _parsed(first)
            return None
    except _Broken:
        pass
    try:
        return _parsed(text)
    except _Broken as e:
        # A list a line, or objects of which the first is broken: the lines will tell.
        if first.startswith("[") and not str(e).startswith("Extra data"):
            raise
        return None


def _parsed(text: str, line: int = 1) -> Any:
    """The value of a text that begins in a line."""
    try:
        return json.loads(text)
    except RecursionError:
        raise _Broken(line, "nested too deeply") from None
    except json.JSONDecodeError as e:
        raise _Broken(line + e.lineno - 1, f"{e.msg}, character {e.colno}") from None
    except ValueError as e:
        raise _Broken(line, str(e)) from None
