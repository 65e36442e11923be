"""Rows of a dataset: of the Hub, or of a local folder that the datasets library knows how to read."""

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from hf_prune.data.local_files import ON_HUB, here, parts
from hf_prune.errors import DataOffline, InvalidData

MAX_ROWS = 50_000
"""Only the first so many rows of a split are looked at."""
STREAM_ABOVE = 2**29
"""Datasets of more bytes than this (or of unknown size) are streamed, not downloaded."""


def split_names(repo: str, config: str, entry: str) -> list[str]:
    """Splits of a dataset.

    Raises:
        InvalidData: it cannot be read.
    """
    datasets = _datasets()
    with explained(entry):
        return list(datasets.get_dataset_split_names(repo, config or None))


def dataset_rows(repo: str, config: str, split: str) -> tuple[list[str], Iterator[Mapping[str, Any]]]:
    """Columns and the first rows of a dataset; large ones are streamed."""
    datasets = _datasets()
    builder = datasets.load_dataset_builder(repo, config or None)
    streaming = (builder.info.download_size or STREAM_ABOVE + 1) > STREAM_ABOVE and not here(repo)
    rows = datasets.load_dataset(repo, config or None, split=split, streaming=streaming)
    return rows.column_names or list(next(iter(rows))), itertools.islice(rows, MAX_ROWS)


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
        # What is raised while a table is made says no more than that.
        told = e.__cause__ if type(e).__name__ == "DatasetGenerationError" and e.__cause__ else e
        reason = (str(told).strip().splitlines() or [type(told).__name__])[0].rstrip(".")
        name = parts(entry, 2)[0]
        meant = here(name) or entry.startswith(ON_HUB)
        missing = f"There is no file or folder {name} here, and the dataset {entry} cannot be read"
        # What the library raises where there is no answer and nothing in its cache.
        kind = DataOffline if isinstance(told, ConnectionError) else InvalidData
        raise kind(
            f"{f'Cannot read the dataset {entry}' if meant else missing} ({reason}); check its name "
            "(repo:config:column) and the network, or give a local file or folder."
        ) from None
