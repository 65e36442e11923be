"""What a user may write for a base: folder | repo | repo@revision, and + another one for a LoRA adapter."""

import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.utils import HFValidationError, validate_repo_id

from hf_prune.errors import SourceNotFound
from hf_prune.hub.calls import scrub

REFERENCE = re.compile(r"(?P<repo>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[^\s@+]+))?")

COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class Name:
    """A local folder or GGUF file (`folder` is set), or a repo and perhaps a branch, tag or commit."""

    repo: str
    revision: str | None = None
    folder: Path | None = None

    @property
    def pinned(self) -> bool:
        """Whether the revision is a whole commit id."""
        return bool(self.revision and COMMIT.fullmatch(self.revision))

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}" if self.revision else self.repo


def parse(base: str) -> tuple[Name, Name | None]:
    """Split a base into model and adapter; an existing folder wins over every other reading.

    Raises:
        SourceNotFound: the text is neither a folder nor the name of a repo.
    """
    base = base.strip()
    if (whole := _folder(base)) is not None:
        return whole, None
    splits = [(base[: m.start()], base[m.end() :]) for m in re.finditer(r"\+", base)]
    splits.sort(key=lambda sides: -sum(_folder(side) is not None for side in sides))
    for left, right in splits:
        if all(_folder(side) is not None or _is_reference(side) for side in (left, right)):
            return _name(left), _name(right)
    return _name(base), None


def _folder(text: str) -> Name | None:
    path = Path(text).expanduser()
    try:
        found = bool(text) and (path.is_dir() or (path.suffix == ".gguf" and path.is_file()))
    except OSError:
        found = False
    return Name(path.resolve().name, folder=path) if found else None


def _is_reference(text: str) -> bool:
    match = REFERENCE.fullmatch(text)
    try:
        validate_repo_id(match["repo"] if match else "")
    except HFValidationError:
        return False
    return match is not None and match["repo"] not in (".", "..")


def _name(text: str) -> Name:
    if (folder := _folder(text)) is not None:
        return folder
    if (match := REFERENCE.fullmatch(text)) and _is_reference(text):
        return Name(match["repo"], match["revision"])
    shown = scrub(text)
    if Path(text).expanduser().is_file():
        raise SourceNotFound(f"{shown!r} is a file; name the folder it lies in, with config.json and a tokenizer.")
    if "@" in text and _folder(text.rsplit("@", 1)[0]) is not None:
        raise SourceNotFound(f"{shown!r} names a revision, but a local folder has none; leave out what follows @.")
    if "://" in text:
        raise SourceNotFound(f"{shown!r} is an address; write the repo name as NAMESPACE/NAME, or @REVISION after it.")
    raise SourceNotFound(
        f"{shown!r} is neither a folder here nor a repo name; write a folder, NAMESPACE/NAME, "
        "NAMESPACE/NAME@REVISION, or BASE+ADAPTER."
    )


def shown(text: object) -> str:
    """What a stranger's file says, short enough and plain enough for a sentence of ours."""
    return re.sub(r"[^\w .:/+-]", "?", scrub(str(text)))[:60]
