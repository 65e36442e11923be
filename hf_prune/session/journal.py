"""(digest, fidelity) -> values, append-only: cache, resume file and plot data in one.

One JSON line per evaluated batch, whole or not at all. So a resumed run meets the same batches as an uninterrupted one,
which matters because the last bits of a float depend on what was computed beside it.
"""

import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

from hf_prune.blueprint import Fidelity, Genome
from hf_prune.errors import StaleJournal

MARK = b'{"hf_prune_journal":1,'
"""How every journal begins; a file that does not is never written to."""
LONGEST_SHOWN = 200
"""Characters of a header's entry that an error repeats."""
Key = tuple[str, Fidelity]
"""Blueprint digest and evidence."""
Values = tuple[float, ...]


class Row(NamedTuple):
    """One evaluated trial."""

    digest: str
    genome: Genome
    fidelity: Fidelity
    values: Values


class Journal:
    """Every pair of digest and fidelity is in it at most once, in the order of evaluation.

    Whoever opens one has claimed the folder of its run.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._file: Any = None
        self._rows: dict[Key, Row] = {}

    @classmethod
    def memory(cls) -> Self:
        """A journal that lives as long as the process."""
        return cls(None)

    @classmethod
    def open(cls, path: str | Path, header: dict[str, Any]) -> Self:
        """Create it, or read what an earlier run of the same `header` left.

        A last line torn by a crash is cut off the file.

        Raises:
            StaleJournal: another recipe or numerics wrote the file, or it is damaged before its last line.
        """
        journal = cls(Path(path))
        journal.path.parent.mkdir(parents=True, exist_ok=True)
        journal._file = open(journal.path, "a+b")
        try:
            journal._resume(json.loads(json.dumps(header)))
        except BaseException:
            journal.close()
            raise
        return journal

    def get(self, key: Key) -> Values | None:
        """Values of that digest and fidelity; None when it was never evaluated."""
        row = self._rows.get(key)
        return row.values if row else None

    def record(self, entries: Sequence[tuple[Key, Genome, Values]]) -> None:
        """Append one evaluated batch: on disk, in full, when this returns. Pairs already known are left out."""
        rows = {k: Row(k[0], tuple(genome), k[1], tuple(v)) for k, genome, v in entries if k not in self._rows}
        if not rows:
            return
        self._append({"trials": [_encoded(row) for row in rows.values()]})
        self._rows.update(rows)

    def rows(self) -> Iterator[Row]:
        """Everything evaluated, in order."""
        return iter(self._rows.values())

    def __len__(self) -> int:
        return len(self._rows)

    def close(self) -> None:
        """Let go of the file; what was recorded stays readable."""
        if self._file:
            self._file.close()
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _append(self, record: dict[str, Any]) -> None:
        if self.path is None:
            return
        self._file.seek(0, os.SEEK_END)
        self._file.write(json.dumps(record, separators=(",", ":"), allow_nan=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _resume(self, header: dict[str, Any]) -> None:
        """Load what is there, cut off a torn end, or write the header of a new file."""
        self._file.seek(0)
        content = self._file.read()
        lines = content.split(b"\n")[:-1]
        if lines or content[: len(MARK)] != MARK[: len(content)]:
            _check(self.path, content.split(b"\n")[0], header)
        if len(lines) > 1 and not _is_json(lines[-1]):
            lines.pop()
        for number, line in enumerate(lines[1:], 2):
            self._load(line, number)
        self._file.truncate(sum(len(line) + 1 for line in lines))
        if not lines:
            self._append({"hf_prune_journal": 1, "header": header})

    def _load(self, line: bytes, number: int) -> None:
        try:
            rows = [_decoded(raw) for raw in json.loads(line)["trials"]]
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as e:
            reason = " ".join(str(e).split())[:100] or type(e).__name__
            raise StaleJournal(
                f"Line {number} of the journal {self.path} is damaged ({reason}); "
                "move the file away to start the search afresh."
            ) from None
        self._rows.update({(r.digest, r.fidelity): r for r in rows})


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _check(path: Path, line: bytes, header: dict[str, Any]) -> None:
    try:
        found = dict(json.loads(line)["header"])
        names = sorted({*found, *header})
    except (ValueError, TypeError, KeyError, RecursionError):
        raise StaleJournal(
            f"{path} is not a journal of hf_prune; move it away or choose another output folder."
        ) from None
    differing = [n for n in names if found.get(n) != header.get(n)]
    if differing:
        was, now = ({n: _shown(one.get(n)) for n in differing} for one in (found, header))
        changes = ", ".join(f"{_shown(n)[1:-1]} was {was[n]} and is {now[n]}" for n in differing)
        raise StaleJournal(
            f"The journal {path} belongs to another run: {changes}; "
            "restore that, or move the journal away or choose another output folder to start afresh."
        )


def _shown(value: Any) -> str:
    """An entry of a header, for a sentence."""
    try:
        return ascii(value)[:LONGEST_SHOWN]
    except RecursionError:
        return "something nested"


def _encoded(row: Row) -> dict[str, Any]:
    f = row.fidelity
    return {
        "digest": row.digest,
        "genome": [int(gene) for gene in row.genome],
        "fidelity": [
            f.sequences,
            f.start,
            f.heal_tokens,
            f.repair,
            *(([f.items, f.first_item] + [1] * f.bridged) if f.items or f.bridged else []),
        ],
        "values": [float(v) if math.isfinite(v) else str(float(v)) for v in row.values],
    }


def _decoded(raw: dict[str, Any]) -> Row:
    """A row as `_encoded` spelled it; raises ValueError or TypeError for anything else."""
    digest, genome, counts = raw["digest"], raw["genome"], raw["fidelity"]
    if not isinstance(digest, str) or any(type(n) is not int for n in (*genome, *counts)):
        raise ValueError("a digest is no text, or a gene or a count no whole number")
    fidelity = Fidelity(*counts[:6], bridged=bool(counts[6:]))
    return Row(digest, tuple(genome), fidelity, tuple(float(v) for v in raw["values"]))
