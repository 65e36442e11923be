"""What a user may write for a base: folder | repo | repo@revision, and + another one for a LoRA adapter.

A repo spelled hf://NAMESPACE/NAME is looked for on the Hub alone, whatever lies here under that name.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.utils import HFValidationError, validate_repo_id

from hf_prune.errors import SourceNotFound, scrub

ON_HUB = "hf://"
REFERENCE = re.compile(r"(?P<repo>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[^\s@+]+))?")

LONGEST_SHOWN = 100
"""Characters of a name that an error repeats."""
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
    for enough in (all, any):
        # Where one side is a name, the other one is meant as a name of its own.
        pair = next((sides for sides in splits if enough(map(_is_name, sides))), None)
        if pair and (enough is all or not _is_name(base)):
            return _name(pair[0], base), _name(pair[1], base)
    return _name(base), None


def _is_name(text: str) -> bool:
    return _folder(text) is not None or _is_reference(text)


def _folder(text: str) -> Name | None:
    path = _path(text)
    model = path is not None and (path.is_dir() or path.suffix == ".gguf" and path.is_file())
    return Name(path.resolve().name, folder=path) if model else None


def _path(text: str) -> Path | None:
    """What is here under this name."""
    if text.startswith(ON_HUB):
        return None
    try:
        path = Path(text).expanduser()
        return path if text and path.exists() else None
    except (OSError, ValueError, RuntimeError):
        # Too long for a name, or the home of somebody unknown.
        return None


def _is_reference(text: str) -> bool:
    match = REFERENCE.fullmatch(text.removeprefix(ON_HUB))
    try:
        validate_repo_id(match["repo"] if match else "")
    except HFValidationError:
        return False
    return match is not None and match["repo"] not in (".", "..")


def _name(text: str, within: str = "") -> Name:
    if (folder := _folder(text)) is not None:
        return folder
    if _path(text) is not None:
        raise SourceNotFound(
            f"{scrub(text)!r} is a file, not a model's folder; name the folder it lies in, with config.json and a "
            "tokenizer."
        )
    if (match := REFERENCE.fullmatch(text.removeprefix(ON_HUB))) and _is_reference(text):
        return Name(match["repo"], match["revision"])
    said = scrub(text)[:LONGEST_SHOWN]
    part = f" (of {scrub(within)[:LONGEST_SHOWN]!r})" if within not in ("", text) else ""
    if "@" in text and _folder(text.rsplit("@", 1)[0]) is not None:
        raise SourceNotFound(f"{said!r} names a revision, but a local folder has none; leave out what follows @.")
    if "://" in text:
        raise SourceNotFound(f"{said!r} is an address; write the repo name as NAMESPACE/NAME, or @REVISION after it.")
    raise SourceNotFound(
        f"{said!r}{part} is neither a folder here nor a repo name; write a folder, NAMESPACE/NAME, "
        "NAMESPACE/NAME@REVISION, or BASE+ADAPTER."
    )


def shown(text: object) -> str:
    """What a stranger's file says, short enough and plain enough for a sentence of ours."""
    return re.sub(r"[^\w .:/+-]", "?", scrub(str(text)))[:60]
