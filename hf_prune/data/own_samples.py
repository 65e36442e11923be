"""`self` as an entry of data: text that the base says itself, freely or in answer to the prompts of a file.

What it says is in no file of the user's, so here is only how it is asked for and what such a document is.
"""

from collections.abc import Sequence
from pathlib import Path

from hf_prune.data.documents import EXPECTED_PROMPT, Chat, question
from hf_prune.data.local_files import here
from hf_prune.data.records import records
from hf_prune.errors import InvalidData

SELF = "self"
NAME = "own_samples"
"""Of the corpus, so that figures on it cannot be taken for others."""


class Sample(str):
    """A text that a model said: `ids` are its tokens with those it was given, `ended` whether it came to its end.

    Its tokens are kept because text need not give them back.
    """

    ids: tuple[int, ...]
    ended: bool

    def __new__(cls, text: str, ids: Sequence[int], ended: bool) -> "Sample":
        """A string has its value from the beginning."""
        sample = super().__new__(cls, text)
        sample.ids, sample.ended = tuple(ids), ended
        return sample


def is_own(entry: str) -> bool:
    """Whether an entry of data asks for the base's own samples."""
    return entry == SELF or entry.startswith(f"{SELF}:")


def corpus_name(entry: str) -> str:
    """Of an entry's corpus: own_samples, or own_samples_PROMPTS."""
    file = entry.partition(":")[2]
    return f"{NAME}_{Path(file).stem}" if file else NAME


def prompts_of(entry: str) -> tuple[Chat, ...]:
    """The prompts that an entry names, each once; none for free samples.

    Raises:
        InvalidData: there is no such file, it holds no prompt, or one that nobody can read for sure.
    """
    file = entry.partition(":")[2]
    if entry == SELF:
        return ()
    path = here(file)
    if path is None or not path.is_file():
        raise InvalidData(f"There is no file of prompts {file!r} here; check the path given as --data {entry}.")
    found = dict.fromkeys(question(record, where) for where, record in records(path, "prompts", EXPECTED_PROMPT))
    if not found:
        raise InvalidData(f"The file of prompts {path} is empty; give at least one prompt for every split.")
    return tuple(found)
