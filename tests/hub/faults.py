"""Faults on demand: the next requests that match a pattern fail in a chosen way."""

import re
import threading
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["status", "drop", "lost", "garble"]


@dataclass
class Fault:
    """`times` requests whose `METHOD path` matches `pattern` fail.

    Kinds: `status` answers that HTTP status and changes nothing; `drop` closes the connection and changes nothing;
    `lost` applies the request and closes the connection before the answer; `garble` turns a bit of what is answered.
    """

    pattern: str
    kind: Kind = "status"
    status: int = 500
    times: int = 1


@dataclass
class Faults:
    """The faults still to happen, in the order they were added; a status comes with `message` (bytes: an error page)
    and `headers`."""

    message: str | bytes = "injected fault"
    headers: tuple[tuple[str, str], ...] = ()
    pending: list[Fault] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def status(self, pattern: str, status: int = 500, times: int = 1) -> None:
        """Answer `status` to the next `times` matching requests."""
        self.pending.append(Fault(pattern, "status", status, times))

    def drop(self, pattern: str, times: int = 1) -> None:
        """Close the connection on the next `times` matching requests, before anything happens."""
        self.pending.append(Fault(pattern, "drop", times=times))

    def lose_answer(self, pattern: str, times: int = 1) -> None:
        """Do what the next `times` matching requests ask, then close the connection without a word."""
        self.pending.append(Fault(pattern, "lost", times=times))

    def garble(self, pattern: str, times: int = 1) -> None:
        """Send the next `times` matching files with another last byte."""
        self.pending.append(Fault(pattern, "garble", times=times))

    def take(self, request: str) -> Fault | None:
        """The fault that hits `request` (`METHOD path?query`), used up by one."""
        with self.lock:
            for fault in self.pending:
                if fault.times > 0 and re.search(fault.pattern, request):
                    fault.times -= 1
                    return fault
        return None

    def clear(self) -> None:
        """Forget all faults."""
        self.pending.clear()
