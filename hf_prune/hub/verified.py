"""Whether a file is what the Hub lists: its sha256 where it is large (LFS, Xet), its id in git where it is small.

A file is read for that once: what was found good is noted under its digest, with what changes when the file does.
"""

import hashlib
import os
import re
from contextlib import suppress
from pathlib import Path

from huggingface_hub import constants

from hf_prune.atomic_files import write_text

DIGEST = re.compile(r"[0-9a-f]{64}|[0-9a-f]{40}")
CHUNK = 2**22


def is_content(path: Path, digest: str) -> bool:
    """Whether a file has this digest: sha256 in 64 hex digits, or the 40 of a blob in git."""
    state = path.stat()
    stamp = f"{state.st_size} {state.st_mtime_ns} {state.st_ino}\n"
    note = Path(constants.HF_HOME, "hf_prune", "verified", digest)
    with suppress(OSError, UnicodeDecodeError):
        if note.read_text(encoding="utf-8") == stamp:
            return True
    found = hashlib.sha256() if len(digest) == 64 else hashlib.sha1(b"blob %d\0" % state.st_size)
    with path.open("rb") as file:
        while piece := file.read(CHUNK):
            found.update(piece)
    if found.hexdigest() != digest:
        return False
    # On a full disk it is read again the next time.
    with suppress(OSError):
        note.parent.mkdir(parents=True, exist_ok=True)
        write_text(note, stamp)
    return True


def listed_digest(path: Path) -> str | None:
    """The digest by which the Hub's cache names the contents that a file of a snapshot leads to; None for a copy."""
    with suppress(OSError):
        name = os.path.basename(os.readlink(path))
        return name if DIGEST.fullmatch(name) else None
    return None


def throw_away(path: Path) -> None:
    """Remove a file of a snapshot, and the contents it leads to."""
    with suppress(OSError):
        while path.is_symlink():
            target = path.parent / os.readlink(path)
            path.unlink()
            path = target
        path.unlink()
