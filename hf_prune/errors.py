"""Every error a user can meet: one sentence saying what is wrong, where, and what to do."""

import os
import re
import sys
from contextlib import suppress
from typing import Any

TOKEN = re.compile(
    r"//[^/@\s]+@"
    r"|\bhf_oauth_[\w.-]+|\b(?:hf_|sk-|ghp_|api_org_)[A-Za-z0-9]{16,}|\bgithub_pat_\w{16,}"
    r"|(?i:bearer)\s+[\w.~+/-]{8,}=*"
)
"""Access tokens as the Hub and its neighbours write them, and the name and password in an address."""
VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
LONG = re.compile(r"\S{400,}")
"""A word that is none: a name or number of a stranger's file, which no sentence of ours can hold."""
SHORTEST = 6
"""Characters of a login's token that is looked for as it is; shorter ones would be found in words."""


def scrub(text: str) -> str:
    """The text without anything that is, or looks like, a token."""
    return TOKEN.sub(_blotted, _without(text, _known()))


def scrubbed(value: Any) -> Any:
    """The same for every text in mappings and lists."""
    known = _known()

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {clean(k): clean(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [clean(v) for v in value]
        return TOKEN.sub(_blotted, _without(value, known)) if isinstance(value, str) else value

    return clean(value)


def _known() -> set[str]:
    """The tokens of this login, wherever they are kept."""
    found = {os.environ.get(name, "").strip() for name in VARIABLES}
    if client := sys.modules.get("huggingface_hub.constants"):
        # Not the client's own get_token, which may ask the network for a new one.
        with suppress(OSError, ValueError), open(client.HF_TOKEN_PATH, encoding="utf-8") as file:
            found.add(file.read().strip())
    return {t for t in found if len(t) >= SHORTEST}


def _without(text: str, known: set[str]) -> str:
    for token in known:
        text = text.replace(token, "***")
    return text


def _blotted(match: re.Match[str]) -> str:
    return "//***@" if match[0].startswith("//") else "***"


def _middle_left_out(match: re.Match[str]) -> str:
    # Quotes, brackets and the end of the sentence stay where they were.
    return f"{match[0][:100]}...{match[0][-40:]}"


class HfPruneError(Exception):
    """Base of all errors raised on purpose; the CLI prints its message and exits with `exit_code`."""

    exit_code = 1

    def __init__(self, *args: Any) -> None:
        """Whatever a message quotes, it says no access token, and no word without end."""
        super().__init__(*(LONG.sub(_middle_left_out, a) if isinstance(a, str) else a for a in scrubbed(args)))


class InvalidRecipe(HfPruneError):
    """The request contradicts itself, names something unknown, or cannot be met."""

    exit_code = 2


class InvalidReport(InvalidRecipe):
    """What was named holds no report of hf_prune, a broken one, or one that a later version wrote."""


class InvalidBlueprint(HfPruneError):
    """A blueprint file is malformed or refers to layers or sources that do not exist."""

    exit_code = 2


class UnsupportedArchitecture(HfPruneError):
    """The model family is unknown and its module tree is ambiguous, or its config has rules we cannot slice."""

    exit_code = 3


class IncompatibleSources(HfPruneError):
    """Sources of one blueprint do not have the same shapes, or an adapter does not fit its base."""

    exit_code = 3


class SourceError(HfPruneError):
    """A source cannot be read."""

    exit_code = 4


class SourceNotFound(SourceError):
    """No such folder, repo or revision."""


class SourceForbidden(SourceError):
    """The repo is gated or private for this login."""


class SourceOffline(SourceError):
    """The Hub cannot be reached and the files are not cached."""


class AdapterAlone(SourceError):
    """An adapter was named without the base it belongs to."""


class UnsafeSource(SourceError):
    """The source holds only pickles, or needs custom code, and nobody allowed it."""


class BrokenCheckpoint(SourceError):
    """A shard is missing, truncated or malformed, a tensor is absent, or weights are not finite."""


class NotEnoughDisk(SourceError):
    """The download or the result does not fit on the disk."""


class InvalidData(HfPruneError):
    """A calibration, selection, report or task file is missing, empty, malformed or overlaps another split."""

    exit_code = 5


class DataOffline(InvalidData):
    """A dataset is not in the cache, and the Hub cannot be reached."""


class StaleJournal(HfPruneError):
    """The journal was written by another recipe or another version of the numerics."""

    exit_code = 6


class ReloadMismatch(HfPruneError):
    """The saved model, loaded afresh, is not the model that was searched."""

    exit_code = 7


class Misread(HfPruneError):
    """A source, loaded afresh by stock transformers, is not the model that was read."""

    exit_code = 7


class BaseOverflow(SourceError):
    """The base's own forward leaves the numbers of its precision."""


class PublishError(HfPruneError):
    """The Hub refused the upload or could not be reached for it."""

    exit_code = 8


class CannotWrite(HfPruneError):
    """The disk is full or read-only, or a path cannot be written or read."""

    exit_code = 9
