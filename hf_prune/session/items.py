"""Which items every candidate answered rightly, so that any two can be compared item by item."""

import json
from collections.abc import Sequence
from pathlib import Path

from hf_prune.blueprint import Fidelity
from hf_prune.evaluation.objectives import Measures


def keep_items(path: Path, digests: Sequence[str], fidelity: Fidelity, measured: Sequence[Measures]) -> None:
    """Append a line per candidate, before the journal says that it was scored; a text of 0 and 1 per task."""
    rows = [
        {"digest": digest, "fidelity": [fidelity.items, fidelity.first_item],
         "right": {t.task: "".join("01"[bool(x)] for x in t.correct) for t in m.tasks}}
        for digest, m in zip(digests, measured, strict=True) if m.tasks
    ]  # fmt: skip
    if rows:
        with path.open("a", encoding="utf-8") as file:
            # A line torn by a crash must not spoil the next one.
            file.write("".join(f"\n{json.dumps(row)}" for row in rows))
