"""Files of this disk that an entry of data or tasks names, and the text in them."""

import codecs
from pathlib import Path

from hf_prune.errors import InvalidData

ON_HUB = "hf://datasets/"
"""Before the name of a dataset: it is looked for on the Hub alone, whatever lies here under that name."""
MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
"""Byte order marks, the longer ones first, since one of UTF-32 begins with one of UTF-16."""
BEGINNING = 4096
"""Bytes that are looked at for text without such a mark that is not UTF-8 all the same."""


def here(entry: str) -> Path | None:
    """The file or folder that an entry names; None where there is none."""
    if entry.startswith(ON_HUB):
        return None
    try:
        path = Path(entry).expanduser()
        return path if entry and path.exists() else None
    except (OSError, ValueError, RuntimeError):
        # Too long for a name, or the home of somebody unknown.
        return None


def looks_local(entry: str, endings: tuple[str, ...] = ()) -> bool:
    """Whether an entry can only mean a file or folder: by how it begins or ends."""
    return entry.startswith(("/", ".", "~")) or entry.endswith(endings)


def parts(entry: str, count: int) -> list[str]:
    """The name of a dataset and what follows it behind colons; missing ones are empty."""
    on_hub, rest = (ON_HUB, entry.removeprefix(ON_HUB)) if entry.startswith(ON_HUB) else ("", entry)
    repo, *more = rest.split(":", count - 1)
    return [on_hub + repo, *more, *[""] * (count - 1 - len(more))]


def read_text(path: Path, kind: str) -> str:
    r"""A UTF-8 file as text whose lines end with \n, without a byte order mark.

    Args:
        path: the file.
        kind: what the file is, such as "data".

    Raises:
        InvalidData: it cannot be read, or is no UTF-8.
    """
    try:
        raw = path.read_bytes()
    except OSError as e:
        reason = "there is no such file here" if isinstance(e, FileNotFoundError) else e.strerror or str(e)
        raise InvalidData(f"Cannot read the {kind} file {path}: {reason}; check the path.") from None
    if other := _other_encoding(raw):
        raise InvalidData(f"The {kind} file {path} is {other}; save it as UTF-8, which is what is read here.")
    try:
        return raw.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as e:
        raise InvalidData(f"Cannot read the {kind} file {path}: {e}; it must be readable UTF-8 text.") from None


def _other_encoding(raw: bytes) -> str | None:
    marked = next((name for mark, name in MARKS.items() if raw.startswith(mark)), None)
    beginning = raw[:BEGINNING]
    return marked or ("UTF-16 or no text at all" if beginning.count(0) * 4 > len(beginning) > 0 else None)
