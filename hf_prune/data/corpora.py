"""Bodies of text in three disjoint splits: search, selection, report.

A data entry is a folder of NAME.{search,selection,report}.jsonl, a single .jsonl, .json or .txt file, a dataset of the
Hub (`repo[:config[:column[+column][:split]]]`), or `self`: what the base says itself (`own_samples`), handed in by
whoever asks it. Files that come cut into splits must not share a document; all else is cut here. What is fitted or
trained reads `heal`: the search split, and behind it NAME.heal.jsonl where a folder has one.
"""

import hashlib
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hf_prune.data.documents import BESIDE, EXPECTED, TURNS, document, is_exchange
from hf_prune.data.hub_datasets import dataset_rows, explained, split_names
from hf_prune.data.local_files import ON_HUB, here, looks_local, parts, read_text
from hf_prune.data.own_samples import corpus_name, is_own, prompts_of
from hf_prune.data.records import ENDINGS, records
from hf_prune.errors import InvalidData

Split = Literal["search", "selection", "report", "heal"]
SPLITS: tuple[Split, ...] = ("search", "selection", "report")
"""Those that are disjoint."""
SHARES = (0.6, 0.2, 0.2)
"""Share of the documents that search, selection and report get of text that comes uncut."""
TRAIN_SHARES = (0.75, 0.25)
"""Search and selection, where a dataset has a validation split of its own for the report."""
MAX_DOCUMENTS = 50_000
"""Only the first so many documents of a file are looked at."""
TEXT = ".txt"
TEXT_DOCUMENT = 1000
"""Paragraphs of a .txt file are gathered into documents of at least so many characters."""
NAMELESS = ("default", "main")
"""Configurations whose name says less than that of their dataset."""
FOLDER_HINT = "expected files named NAME.search.jsonl, NAME.selection.jsonl and NAME.report.jsonl"

Documents = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Corpus:
    """One named body of text in its splits; `origins` says in public terms (no paths) where each split comes from.

    A split may be missing, where other corpora are to stand for it.
    """

    name: str
    documents: Mapping[Split, Documents]
    origins: Mapping[Split, str]


def load_corpora(
    data: Sequence[str], allow_test_split: bool = False, read: Mapping[str, Sequence[Corpus]] | None = None
) -> tuple[Corpus, ...]:
    """Read every data entry; corpora keep the order of the entries, within a folder they are sorted by name.

    Args:
        data: the entries.
        allow_test_split: even public test splits.
        read: what was read before, or said by the base itself, by entry.

    Raises:
        InvalidData: an entry is missing or malformed, or a public test split would be searched on.
    """
    read = read or {}
    each = (read[e] if e in read else _entry(e, allow_test_split) for e in data)
    found = tuple(itertools.chain.from_iterable(each))
    names = [c.name for c in found]
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice is not None:
        raise InvalidData(f"Two data entries are called {twice!r}, which would mix their figures; rename one of them.")
    if not found:
        raise InvalidData("No data is given; name a folder, a .jsonl or .txt file, or a dataset with --data.")
    return found


def check_entries(data: Sequence[str], allow_test_split: bool = False) -> None:
    """Read the files and folders among data entries, and look for the datasets, of which nothing is read yet.

    Raises:
        InvalidData: as `load_corpora` and `check_disjoint`.
    """
    own = list(filter(is_own, data))
    local = [entry for entry in data if entry not in own and (here(entry) or looks_local(entry, (*ENDINGS, TEXT)))]
    if local:
        check_disjoint(load_corpora(local))
    for entry in own:
        prompts_of(entry)
    for entry in data:
        if entry not in (*local, *own):
            _named(entry, allow_test_split)


def own_corpus(entry: str, documents: Mapping[Split, Documents], origin: str) -> Corpus:
    """What the base said, as a corpus; `documents` without a split where it is not to stand for that."""
    said = {"search": documents["heal"], **documents}
    return Corpus(corpus_name(entry), said, dict.fromkeys(said, origin))


def check_disjoint(corpora: Iterable[Corpus]) -> None:
    """Raise InvalidData when a document (letter case and white space aside) occurs in two of the three splits."""
    seen: dict[bytes, tuple[Split, str]] = {}
    for corpus, split in itertools.product(tuple(corpora), (*SPLITS, "heal")):
        side = "search" if split == "heal" else split
        for number, text in enumerate(corpus.documents.get(split, ()), 1):
            before = seen.setdefault(text_key(text), (side, corpus.origins[split]))
            if before[0] != side:
                raise InvalidData(
                    f"Document {number} of {corpus.origins[split]} ({text.strip()[:40]!r}...) is in the {split} and in "
                    f"the {before[0]} split ({before[1]}); figures would be spoiled: remove it from one of them."
                )


def _entry(entry: str, allow_test_split: bool) -> tuple[Corpus, ...]:
    if is_own(entry):
        raise InvalidData(f"The data {entry} is what a model says, and nobody has asked it; name other text.")
    path = here(entry)
    if path and path.is_dir():
        return _folder(path)
    if path and path.is_file():
        return (_file(path),)
    if path or looks_local(entry, (*ENDINGS, TEXT)):
        raise InvalidData(f"There is no data file or folder {entry} here; check the path given as --data.")
    return (_dataset(entry, allow_test_split),)


def _folder(folder: Path) -> tuple[Corpus, ...]:
    try:
        present = {p.name for p in folder.iterdir()}
    except OSError as e:
        raise InvalidData(f"Cannot read the data folder {folder}: {e.strerror}; check its permissions.") from None
    names = sorted({n.rsplit(".", 2)[0] for n in present if n.endswith(tuple(f".{s}.jsonl" for s in SPLITS))})
    if not names:
        raise InvalidData(f"The data folder {folder} has no text: {FOLDER_HINT}.")
    for name, split in itertools.product(names, SPLITS):
        if f"{name}.{split}.jsonl" not in present:
            raise InvalidData(f"The data folder {folder} lacks {name}.{split}.jsonl: {FOLDER_HINT}.")
    return tuple(_cut_corpus(folder, name) for name in names)


def _cut_corpus(folder: Path, name: str) -> Corpus:
    files = {s: folder / f"{name}.{s}.jsonl" for s in SPLITS}
    documents = {s: tuple(_lines(f)) for s, f in files.items()}
    origins = {s: f.name for s, f in files.items()}
    if (more := folder / f"{name}.heal.jsonl").is_file():
        documents["heal"] = documents["search"] + tuple(_lines(more))
        origins["heal"] = f"{origins['search']} and {more.name}"
    return _corpus(name, documents, origins)


def _corpus(name: str, documents: dict[Split, Documents], origins: dict[Split, str]) -> Corpus:
    """Without text of its own, healing reads the search split."""
    return Corpus(name, {"heal": documents["search"], **documents}, {"heal": origins["search"], **origins})


def _file(path: Path) -> Corpus:
    if path.suffix not in (*ENDINGS, TEXT):
        raise InvalidData(f"The data file {path} is neither .jsonl nor .txt nor .json; give one of the three.")
    documents = tuple(_paragraphs(path) if path.suffix == TEXT else _lines(path))
    origins = {s: f"{path.name} ({share:.0%})" for s, share in zip(SPLITS, SHARES, strict=True)}
    return _corpus(path.stem, dict(zip(SPLITS, divide(documents, SHARES), strict=True)), origins)


def _lines(path: Path) -> Iterator[str]:
    for where, record in itertools.islice(records(path, "data", EXPECTED), MAX_DOCUMENTS):
        if (text := document(record, where)).strip():
            yield text


def _paragraphs(path: Path) -> Iterator[str]:
    text = read_text(path, "data").strip()
    pieces = re.split(r"\n\s*\n", text)
    joint = "\n\n" if len(pieces) > 1 else "\n"
    gathered: list[str] = []
    for piece in pieces if len(pieces) > 1 else text.split("\n"):
        gathered.append(piece)
        if sum(map(len, gathered)) >= TEXT_DOCUMENT:
            yield joint.join(gathered)
            gathered = []
    if joint.join(gathered).strip():
        yield joint.join(gathered)


def text_key(text: str) -> bytes:
    """The same for texts that differ in letter case and white space alone."""
    return hashlib.sha256(" ".join(text.lower().split()).encode()).digest()


def divide(documents: Documents, shares: Sequence[float]) -> list[Documents]:
    """Cut by document, in the order of their hashes, so that copies of one document stay on one side."""
    keys = [text_key(d) for d in documents]
    distinct = sorted(set(keys))
    sizes = [max(1, round(share * len(distinct))) for share in shares[1:]]
    bounds = [0, *itertools.accumulate([len(distinct) - sum(sizes), *sizes])]
    side = {k: i for i in range(len(shares)) for k in distinct[max(0, bounds[i]) : max(0, bounds[i + 1])]}
    return [tuple(d for d, k in zip(documents, keys, strict=True) if side[k] == i) for i in range(len(shares))]


def _named(entry: str, allow_test_split: bool) -> tuple[list[str], str, str, str, str]:
    """The splits of a dataset, and what an entry says: repo, config, column and split."""
    repo, config, column, split = parts(entry, 4)
    if any(part.strip().lower().startswith("test") for part in split.split("+")) and not allow_test_split:
        raise InvalidData(
            f"{entry} is a public test split: searching on it spoils every figure reported on it; "
            "take the train split, or insist with --force-test-split."
        )
    return split_names(repo, config, entry), repo, config, column, split


def _dataset(entry: str, allow_test_split: bool) -> Corpus:
    available, repo, config, column, split = _named(entry, allow_test_split)
    public = Path(repo).name if here(repo) else repo.removeprefix(ON_HUB)
    name = config if config not in ("", *NAMELESS) else repo.rstrip("/").rsplit("/", 1)[-1]
    if split or "validation" not in available:
        source = split or _training(available, entry)
        cut = divide(_rows(repo, config, column, source, entry), SHARES)
        origins = dict.fromkeys(SPLITS, f"{public}{':' + config if config else ''} ({source})")
        return _corpus(name, dict(zip(SPLITS, cut, strict=True)), origins)
    report = _rows(repo, config, column, "validation", entry)
    train = _rows(repo, config, column, _training(available, entry), entry)
    held_out = set(map(text_key, report))
    cut = divide(tuple(d for d in train if text_key(d) not in held_out), TRAIN_SHARES)
    origin = f"{public}{':' + config if config else ''}"
    origins = {"search": f"{origin} (train)", "selection": f"{origin} (train)", "report": f"{origin} (validation)"}
    return _corpus(name, dict(zip(SPLITS, [*cut, report], strict=True)), origins)


def _training(available: Sequence[str], entry: str) -> str:
    if "train" not in available:
        raise InvalidData(
            f"The dataset {entry} has no train split (only {', '.join(available)}); name one: repo:config:column:split."
        )
    return "train"


def _rows(repo: str, config: str, column: str, split: str, entry: str) -> Documents:
    with explained(entry):
        columns, rows = dataset_rows(repo, config, split)
        usual = [c for c in ("text", *TURNS) if c in columns]
        chosen = column or (usual[0] if usual else columns[0] if len(columns) == 1 else None)
        if chosen and "+" in chosen and set(chosen.split("+")) <= set(columns):
            texts = ("\n".join(str(row[c] or "") for c in chosen.split("+")) for row in rows)
            return tuple(t for t in texts if t.strip())
        if chosen not in columns and (column or not is_exchange(columns)):
            asked = f"has no column {chosen!r}" if chosen else "has several columns"
            raise InvalidData(f"The dataset {entry} {asked}; name one of {', '.join(columns)}: repo:config:column.")
        documents = (_row(row, chosen, f"Row {n} of the dataset {entry} ({split})") for n, row in enumerate(rows))
        return tuple(d for d in documents if d and d.strip())


def _row(row: Mapping[str, Any], column: str | None, where: str) -> str | None:
    """The document in one column, or of a row whose columns belong together; None where there is none."""
    if column is None:
        return document(row, where)
    value = row[column]
    if column in TURNS or isinstance(value, dict):
        beside = {k: row[k] for k in BESIDE if row.get(k)}
        return document({column if column in TURNS else TURNS[0]: value, **beside}, where) if value else None
    return None if value is None else document(value, where)
