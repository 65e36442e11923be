"""The certificate in the file itself, where room is kept for it; read and put without the package gguf."""

import json
from pathlib import Path
from typing import Any

KEY = "hf_prune.certificate"
ROOM = 1024
"""Bytes; JSON ends in any number of spaces."""
BLANK = "{}".ljust(ROOM)
HEAD = 2**20
"""Bytes from the beginning among which it stands, in front of all that is long."""
BEFORE = 12
"""Bytes between key and text: type and length."""


def read_stamp(path: Path) -> dict[str, Any] | None:
    """Of a GGUF file; empty without a certificate, None of a file that hf_prune did not write."""
    with path.open("rb") as file:
        head = file.read(HEAD)
    at = head.find(KEY.encode())
    if at < 0 or not head.startswith(b"GGUF"):
        return None
    start = at + len(KEY) + BEFORE
    try:
        found = json.loads(head[start : start + ROOM])
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def put_stamp(path: Path, certificate: dict[str, Any]) -> None:
    """Put it into a file that has room for it."""
    text = json.dumps(certificate).encode().ljust(ROOM)
    assert len(text) == ROOM and read_stamp(path) == {}
    with path.open("r+b") as file:
        file.seek(file.read(HEAD).index(KEY.encode()) + len(KEY) + BEFORE)
        file.write(text)
