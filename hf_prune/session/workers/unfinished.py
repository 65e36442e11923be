"""What is finished of a sweep that is under way, so that a killed run has lost a chunk of each worker and no more."""

import hashlib
import json
from pathlib import Path
from typing import Any

from hf_prune.session.workers.crew import Order


class Unfinished:
    """A file with the answers to orders of one sweep, begun again with every other sweep; a torn last line is none.

    Args:
        path: of the file.
        header: of the run's journal; answers are good for no other.
        common: what the orders have in common.
    """

    def __init__(self, path: Path, header: dict[str, Any], common: str) -> None:
        text = json.dumps(header, sort_keys=True) + common
        self._path, self._digest = path, hashlib.sha256(text.encode()).hexdigest()
        self.answers: dict[Order, bytes] = {}
        lines = path.read_bytes().split(b"\n") if path.is_file() else []
        if lines[:1] == [self._digest.encode()]:
            for line in lines[1:-1]:
                self._read(line)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.write(self._digest.encode() + b"\n")
        for order, answer in self.answers.items():
            self.keep(order, answer)

    def _read(self, line: bytes) -> None:
        order, _, answer = line.partition(b" ")
        try:
            json.loads(answer)
            self.answers[Order(*json.loads(order))] = answer
        except (ValueError, TypeError):
            # Written when the machine went down; it is found again.
            return

    def keep(self, order: Order, answer: bytes) -> None:
        """Append an answer, JSON without a line's end."""
        with self._path.open("ab") as file:
            file.write(order._replace(lost=0).text + b" " + answer + b"\n")
