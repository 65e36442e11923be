"""Bodies of text in three disjoint splits: search, selection, report.

A data entry is a folder of NAME.{search,selection,report}.jsonl, a single .jsonl or .txt file, or a dataset of the Hub
(`repo[:config[:column[:split]]]`). Files that come cut into splits must not share a document; all else is cut here.
What is fitted or trained reads `heal`: the search split, and behind it NAME.heal.jsonl where a folder has one.
A document is a text, or a chat ({"messages": [...]}).
"""

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hf_prune.errors import InvalidData

Split = Literal["search", "selection", "report", "heal"]
SPLITS: tuple[Split, ...] = ("search", "selection", "report")
"""Those that are disjoint."""
SHARES = (0.6, 0.2, 0.2)
"""Share of the documents that search, selection and report get of text that comes uncut."""
TRAIN_SHARES = (0.75, 0.25)
"""Search and selection, where a dataset has a validation split of its own for the report."""
MAX_DOCUMENTS = 50_000
"""Only the first so many documents of a file or dataset split are looked at."""
STREAM_ABOVE = 2**29
"""Datasets of more bytes than this (or of unknown size) are streamed, not downloaded."""
TEXT_DOCUMENT = 1000
"""Paragraphs of a .txt file are gathered into documents of at least so many characters."""
FOLDER_HINT = "expected files named NAME.search.jsonl, NAME.selection.jsonl and NAME.report.jsonl"

Documents = tuple[str, ...]


class Chat(str):
    """A conversation, kept as the JSON of its messages."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """One named body of text in its splits; `origins` says in public terms (no paths) where each split comes from."""

    name: str
    documents: Mapping[Split, Documents]
    origins: Mapping[Split, str]


def load_corpora(data: Sequence[str], allow_test_split: bool = False) -> tuple[Corpus, ...]:
    """Read every data entry; corpora keep the order of the entries, within a folder they are sorted by name.

    Raises:
        InvalidData: an entry is missing or malformed, or a public test split would be searched on.
    """
    found = tuple(itertools.chain.from_iterable(_entry(e, allow_test_split) for e in data))
    names = [c.name for c in found]
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice is not None:
        raise InvalidData(f"Two data entries are called {twice!r}, which would mix their figures; rename one of them.")
    if not found:
        raise InvalidData("No data is given; name a folder, a .jsonl or .txt file, or a dataset with --data.")
    return found


def check_disjoint(corpora: Iterable[Corpus]) -> None:
    """Raise InvalidData when a document (letter case and white space aside) occurs in two of the three splits."""
    seen: dict[bytes, tuple[Split, str]] = {}
    for corpus, split in itertools.product(tuple(corpora), (*SPLITS, "heal")):
        side = "search" if split == "heal" else split
        for number, text in enumerate(corpus.documents[split], 1):
            before = seen.setdefault(_key(text), (side, corpus.origins[split]))
            if before[0] != side:
                raise InvalidData(
                    f"Document {number} of {corpus.origins[split]} ({text.strip()[:40]!r}...) is in the {split} and in "
                    f"the {before[0]} split ({before[1]}); figures would be spoiled: remove it from one of them."
                )


def _entry(entry: str, allow_test_split: bool) -> tuple[Corpus, ...]:
    path = Path(entry).expanduser()
    if path.is_dir():
        return _folder(path)
    if path.is_file():
        return (_file(path),)
    if path.suffix in (".jsonl", ".txt") or entry.startswith(("/", ".", "~")):
        raise InvalidData(f"There is no data file or folder {entry}; check the path given as --data.")
    return (_dataset(entry, allow_test_split),)


def _folder(folder: Path) -> tuple[Corpus, ...]:
    present = {p.name for p in folder.iterdir()}
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
    if path.suffix not in (".jsonl", ".txt"):
        raise InvalidData(f"The data file {path} is neither .jsonl nor .txt; give one of the two.")
    documents = tuple(_lines(path) if path.suffix == ".jsonl" else _paragraphs(path))
    origins = {s: f"{path.name} ({share:.0%})" for s, share in zip(SPLITS, SHARES, strict=True)}
    return _corpus(path.stem, dict(zip(SPLITS, _divide(documents, SHARES), strict=True)), origins)


def _lines(path: Path) -> Iterator[str]:
    lines = enumerate(_read(path).split("\n"), 1)
    for number, line in itertools.islice((pair for pair in lines if pair[1].strip()), MAX_DOCUMENTS):
        try:
            raw = json.loads(line)
            text = _chat(raw["messages"]) if "messages" in raw and "text" not in raw else raw["text"]
        except (ValueError, KeyError, TypeError):
            text = None
        if not isinstance(text, str):
            raise InvalidData(
                f'Line {number} of {path} is not {{"text": "..."}}, nor {{"messages": [...]}} with role and content; '
                "make it one such JSON object."
            )
        if text.strip():
            yield text


def _chat(messages: Any) -> Chat:
    if not messages or any(not isinstance(m[k], str) for m in messages for k in ("role", "content")):
        raise ValueError("not a list of messages")
    return Chat(json.dumps([{"role": m["role"], "content": m["content"]} for m in messages]))


def _paragraphs(path: Path) -> Iterator[str]:
    text = _read(path).strip()
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


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").replace("\r\n", "\n")
    except (OSError, UnicodeDecodeError) as e:
        raise InvalidData(f"Cannot read the data file {path}: {e}; it must be readable UTF-8 text.") from None


def _key(text: str) -> bytes:
    return hashlib.sha256(" ".join(text.lower().split()).encode()).digest()


def _divide(documents: Documents, shares: Sequence[float]) -> list[Documents]:
    """Cut by document, in the order of their hashes, so that copies of one document stay on one side."""
    keys = [_key(d) for d in documents]
    distinct = sorted(set(keys))
    sizes = [max(1, round(share * len(distinct))) for share in shares[1:]]
    bounds = [0, *itertools.accumulate([len(distinct) - sum(sizes), *sizes])]
    side = {k: i for i in range(len(shares)) for k in distinct[max(0, bounds[i]) : max(0, bounds[i + 1])]}
    return [tuple(d for d, k in zip(documents, keys, strict=True) if side[k] == i) for i in range(len(shares))]


def _dataset(entry: str, allow_test_split: bool) -> Corpus:
    repo, config, column, split = (entry.split(":", 3) + [""] * 3)[:4]
    public = Path(repo).name if Path(repo).exists() else repo
    name = config if config and config != "default" else repo.rstrip("/").rsplit("/", 1)[-1]
    if any(part.strip().lower().startswith("test") for part in split.split("+")) and not allow_test_split:
        raise InvalidData(
            f"{entry} is a public test split: searching on it spoils every figure reported on it; "
            "take the train split, or insist with --force-test-split."
        )
    available = split_names(repo, config, entry)
    if split or "validation" not in available:
        source = split or _training(available, entry)
        cut = _divide(_rows(repo, config, column, source, entry), SHARES)
        origins = dict.fromkeys(SPLITS, f"{public}{':' + config if config else ''} ({source})")
        return _corpus(name, dict(zip(SPLITS, cut, strict=True)), origins)
    report = _rows(repo, config, column, "validation", entry)
    train = _rows(repo, config, column, _training(available, entry), entry)
    held_out = set(map(_key, report))
    cut = _divide(tuple(d for d in train if _key(d) not in held_out), TRAIN_SHARES)
    origin = f"{public}{':' + config if config else ''}"
    origins = {"search": f"{origin} (train)", "selection": f"{origin} (train)", "report": f"{origin} (validation)"}
    return _corpus(name, dict(zip(SPLITS, [*cut, report], strict=True)), origins)


def _training(available: Sequence[str], entry: str) -> str:
    if "train" not in available:
        raise InvalidData(
            f"The dataset {entry} has no train split (only {', '.join(available)}); name one: repo:config:column:split."
        )
    return "train"


def split_names(repo: str, config: str, entry: str) -> list[str]:
    """Splits of a dataset.

    Raises:
        InvalidData: it cannot be read.
    """
    datasets = _datasets()
    with explained(entry):
        return list(datasets.get_dataset_split_names(repo, config or None))


def _rows(repo: str, config: str, column: str, split: str, entry: str) -> Documents:
    with explained(entry):
        columns, rows = dataset_rows(repo, config, split)
        usual = [c for c in ("text", "messages") if c in columns]
        chosen = column or (usual[0] if usual else columns[0] if len(columns) == 1 else None)
        if chosen not in columns:
            asked = f"has no column {chosen!r}" if chosen else "has several columns"
            raise InvalidData(f"The dataset {entry} {asked}; name one of {', '.join(columns)}: repo:config:column.")
        values = (row[chosen] for row in rows)
        texts = (_chat(v) if isinstance(v, list) else v for v in values)
        return tuple(t for t in texts if isinstance(t, str) and t.strip())


def dataset_rows(repo: str, config: str, split: str) -> tuple[list[str], Iterator[Mapping[str, Any]]]:
    """Columns and the first rows of a dataset; large ones are streamed."""
    datasets = _datasets()
    builder = datasets.load_dataset_builder(repo, config or None)
    streaming = (builder.info.download_size or STREAM_ABOVE + 1) > STREAM_ABOVE and not Path(repo).exists()
    rows = datasets.load_dataset(repo, config or None, split=split, streaming=streaming)
    return rows.column_names or list(next(iter(rows))), itertools.islice(rows, MAX_DOCUMENTS)


def _datasets() -> Any:
    try:
        import datasets
    except ImportError:
        raise InvalidData("Reading a dataset of the Hub needs the package datasets: pip install datasets.") from None
    datasets.disable_progress_bars()
    return datasets


@contextmanager
def explained(entry: str) -> Iterator[None]:
    """Turns whatever the datasets library raises into one sentence."""
    try:
        yield
    except InvalidData:
        raise
    except Exception as e:
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0].rstrip(".")
        raise InvalidData(
            f"Cannot read the dataset {entry} ({reason}); check its name (repo:config:column) and the network, "
            "or give a local file or folder."
        ) from None
