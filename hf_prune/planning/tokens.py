"""Which tokens stay by text: what a run decides once it has read it, what a plan foretells by text of this disk."""

import functools
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

from hf_prune.data.corpora import Corpus, Split, load_corpora
from hf_prune.data.documents import Chat
from hf_prune.data.local_files import here
from hf_prune.data.own_samples import is_own
from hf_prune.errors import HfPruneError, InvalidData, InvalidRecipe, SourceError, UnsupportedArchitecture
from hf_prune.limits import DEFAULT_RATIO
from hf_prune.models.vocabulary.settings import named_by
from hf_prune.models.vocabulary.trimming import Vocabulary, length
from hf_prune.recipe import Recipe
from hf_prune.recipe.values import LANGUAGES

if TYPE_CHECKING:
    from hf_prune.hub import Peek

DOCUMENTS = 4000
"""Most documents of a corpus that tokens are counted in."""
SPLITS: tuple[Split, Split] = ("search", "selection")
"""What says which tokens are common, and what takes few tokens more."""
MULTIPLE = 64
"""Of which the number of rows is one where it is chosen here, as processors like it."""


@dataclass(frozen=True, slots=True)
class Trim:
    """How many tokens stay by text that lies on this disk, and the share of more tokens that unseen text takes."""

    kept: int
    growth: float


def is_counted(recipe: Recipe) -> bool:
    """Whether text says how many tokens stay, not the recipe."""
    return recipe.vocabulary == "auto" or recipe.vocabulary.startswith(LANGUAGES)


def deciding(recipe: Recipe, entries: Sequence[str]) -> Iterator[Corpus]:
    """The corpora whose text decides: all that the base did not say itself, or those that a language is named by.

    Raises:
        InvalidData: as `load_corpora`; or none is named by one of the languages.
    """
    asked = recipe.vocabulary.removeprefix(LANGUAGES).split(",") if recipe.vocabulary.startswith(LANGUAGES) else []
    missing = {*asked}
    for entry in (e for e in entries if not is_own(e)):
        for corpus in load_corpora([entry], recipe.tasks.force_test_split):
            found = {*re.split("[^a-z]+", f"{_public(entry)} {corpus.name}".lower())} & {*asked}
            missing -= found
            if found or not asked:
                yield corpus
    if missing:
        raise InvalidData(
            f"No data says by its name that it is {' or '.join(sorted(missing))}; name some with --data, such as a "
            f"file {min(missing)}.jsonl or wikimedia/wikipedia:20231101.{min(missing)}."
        )


def _public(entry: str) -> str:
    """What an entry is called: of a path its end."""
    path = here(entry)
    return path.resolve().name if path else entry


def chosen(
    recipe: Recipe, vocabulary: Vocabulary, least: int, search: Sequence[str], unseen: Sequence[str]
) -> tuple[int, ...]:
    """The ids that stay, sorted.

    Args:
        recipe: says how many, or that text does.
        vocabulary: all of them.
        least: of them that stay where text decides.
        search: by which they are common.
        unseen: which takes few tokens more.

    Raises:
        InvalidRecipe: there are no more than that, or fewer than must stay.
        InvalidData: there is no text to choose by.
    """
    if not is_counted(recipe):
        size = int(recipe.vocabulary)
        if size >= len(vocabulary.ids):
            raise InvalidRecipe(
                f"The base has {len(vocabulary.ids)} tokens, so --vocabulary {size} keeps all of them; ask for fewer, "
                "or leave it out."
            )
        return vocabulary.kept(size, vocabulary.counts(search))
    if not search or not unseen:
        raise InvalidData(
            f"--vocabulary {recipe.vocabulary} chooses by text that the base did not say itself; name some with --data."
        )
    counts = vocabulary.counts(search)
    kept = vocabulary.smallest(counts, unseen)
    return kept if len(kept) >= least else vocabulary.kept(least, counts)


def affordable(recipe: Recipe, rows: int, parameters: int, each: int) -> int:
    """Tokens that may stay where they alone are to make up for the ratio; 0 where no ratio is asked for.

    Args:
        recipe: what is asked for.
        rows: of the embedding.
        parameters: of the base.
        each: parameters that go with a token.
    """
    if recipe.every_size or recipe.size.given not in ([], ["ratio"]):
        return 0
    gone = round((recipe.size.ratio or DEFAULT_RATIO) * parameters / each)
    return max(0, -(-(rows - gone) // MULTIPLE)) * MULTIPLE


def trimmed(recipe: Recipe, peek: "Peek", rows: int, parameters: int, each: int) -> Trim | None:
    """What a run would keep; None where the text or the tokenizer does not lie on this disk or cannot be counted.

    Args: as of `affordable`; `peek` is the base.
    """
    counted = is_counted(recipe)
    entries = tuple(e for e in recipe.data.text if not is_own(e))
    if not entries or not all(map(here, entries)) or not (peek.source.is_local or counted):
        return None
    asked = recipe if counted else recipe.replace(vocabulary="auto")
    stamps = tuple(stamp for e in entries for stamp in _stamps(Path(e).expanduser()))
    least = affordable(asked, rows, parameters, each)
    try:
        raw, named = peek.read("tokenizer.json"), named_by(peek.read)
    except (OSError, LookupError, SourceError):
        return None
    digest = hashlib.sha256(raw).hexdigest()
    try:
        return _trimmed(_Asked(asked, raw, str(peek.source), digest, named, asked.vocabulary, entries, least, stamps))
    except HfPruneError:
        if counted:
            raise
        return None


def _stamps(path: Path) -> Iterator[str]:
    for one in sorted(path.iterdir()) if path.is_dir() else [path]:
        found = one.stat()
        yield f"{one} {found.st_size} {found.st_mtime_ns}"


@dataclass(frozen=True, slots=True)
class _Asked:
    """The count comes out the same where these are the same."""

    recipe: Recipe = field(compare=False)
    raw: bytes = field(compare=False)
    source: str
    tokenizer: str
    named: frozenset[int]
    vocabulary: str
    entries: tuple[str, ...]
    least: int
    stamps: tuple[str, ...]


@functools.lru_cache(2)
def _trimmed(asked: _Asked) -> Trim:
    vocabulary = Vocabulary(_opened(asked.raw, asked.source), asked.named)
    search, unseen = (
        [_plain(d) for c in deciding(asked.recipe, asked.entries) for d in c.documents.get(split, ())[:DOCUMENTS]]
        for split in SPLITS
    )
    kept = chosen(asked.recipe, vocabulary, asked.least, search, unseen)
    return Trim(len(kept), length(vocabulary.cut(kept), unseen) / length(vocabulary.tokenizer, unseen) - 1)


def _opened(raw: bytes, source: str) -> Tokenizer:
    try:
        return Tokenizer.from_buffer(raw)
    except Exception as e:
        # The library has no kind of error of its own.
        raise UnsupportedArchitecture(f"The tokenizer.json of {source} cannot be read ({e!s:.80}).") from None


def _plain(document: str) -> str:
    """What is said in a chat, without what a template puts around it."""
    if not isinstance(document, Chat):
        return document
    return "\n".join(m["content"] for m in document.parts[0] if isinstance(m.get("content"), str))
