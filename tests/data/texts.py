"""Small bodies of text."""

import json
import random
from pathlib import Path

from hf_prune.data.corpora import SPLITS


def words(seed: int, n: int = 40) -> str:
    rng = random.Random(seed)
    return " ".join(rng.choice("the a cat dog ran sat on under big red house tree".split()) for _ in range(n))


def jsonl(path, texts):
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), encoding="utf-8")
    return path


def folder(path, **changes):
    """A folder of one corpus; `changes` replaces the documents of a split."""
    for i, split in enumerate(SPLITS):
        jsonl(path / f"tale.{split}.jsonl", changes.get(split, [words(100 * i + k) for k in range(9)]))
    return str(path)


TEMPLATE = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
"""Of chats, without a start token."""


def talk(number: int, **more: object) -> dict[str, object]:
    """A record of two turns; `more` are keys that no text needs."""
    asked, said = words(number, 12), words(number + 1000, 12)
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}], **more}


def marked(record: dict[str, object]) -> dict[str, object]:
    return {"messages": [{"weight": 1, **turn, "name": "kim"} for turn in record["messages"]]}


def lines(path: Path, records: list[object], end: str = "\n") -> Path:
    path.write_bytes("".join(json.dumps(r) + end for r in records).encode())
    return path


CASES = {
    "texts": lambda home: jsonl(home / "a.jsonl", [words(k) for k in range(30)]),
    "windows line ends": lambda home: lines(home / "a.jsonl", [{"text": words(k)} for k in range(30)], "\r\n"),
    "blank lines": lambda home: lines(home / "a.jsonl", [{"text": words(k)} for k in range(30)], "\n \n\n"),
    "empty texts": lambda home: lines(home / "a.jsonl", [{"text": words(k) * (k % 3 > 0)} for k in range(60)]),
    "other keys": lambda home: lines(home / "a.jsonl", [{"id": k, "text": words(k)} for k in range(30)]),
    "not a number": lambda home: lines(home / "a.jsonl", [{"x": float("nan"), "text": words(k)} for k in range(30)]),
    "text beside chats": lambda home: lines(home / "a.jsonl", [talk(k, text=words(k)) for k in range(30)]),
    "chats": lambda home: lines(home / "a.jsonl", [talk(k) for k in range(40)]),
    "chats with keys": lambda home: lines(home / "a.jsonl", [talk(k, id=k, system="Be kind.") for k in range(40)]),
    "chats with keys in turns": lambda home: lines(home / "a.jsonl", [marked(talk(k)) for k in range(40)]),
    "separators": lambda home: jsonl(home / "a.jsonl", [f"{words(k)}\u2028{words(k)}\x85" for k in range(30)]),
    "paragraphs": lambda home: prose(home / "a.txt", "\n\n"),
    "paragraphs of windows": lambda home: prose(home / "a.txt", "\r\n\r\n"),
    "lines of a mac": lambda home: prose(home / "a.txt", "\r"),
    "a folder": lambda home: folder(home),
}
"""Files that could be read before strangers' files were: their windows stay."""


def prose(path: Path, gap: str) -> Path:
    path.write_bytes(gap.join(words(k, 120) for k in range(30)).encode())
    return path
