"""Workers on this machine: fresh processes that hear through a socket, and end with the process that started them.

They are started by path of the interpreter and not forked or spawned, since that would run the script again from which
somebody calls hf_prune, and since a forked process cannot use a GPU.
"""

import contextlib
import os
import pickle
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

from hf_prune.session.workers.crew import Lost
from hf_prune.session.workers.serving import understood

QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}
OPENING = 3600.0
"""Seconds that opening a model may take."""
GONE = (EOFError, OSError)
"""What a socket raises whose other end is closed."""


class Process:
    """A worker in a process of its own.

    Args:
        opener: as `Serving`.
        charge: as `Serving`; must pickle.
        environment: beside this process's.
    """

    def __init__(self, opener: str, charge: Any, environment: Mapping[str, str]) -> None:
        ours, theirs = socket.socketpair()
        ends, self._lifeline = os.pipe()
        here = os.pathsep.join(p for p in sys.path if p)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "hf_prune.session.workers.process", *map(str, (theirs.fileno(), ends, os.getpid()))],
            pass_fds=(theirs.fileno(), ends),
            env={**os.environ, **QUIET, "PYTHONPATH": here, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        theirs.close()
        os.close(ends)
        self._connection, self._charge = Connection(ours.detach()), (opener, charge)

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def open(self) -> None:
        """See `Worker`."""
        self._send(pickle.dumps(self._charge))
        if self.answer(OPENING) is None:
            raise Lost(f"it was not ready after {OPENING:.0f} seconds")

    def ask(self, common: bytes | None, order: bytes) -> None:
        """See `Worker`."""
        self._send(b"" if common is None else b"c" + common)
        self._send(order)

    def answer(self, seconds: float) -> bytes | None:
        """See `Worker`."""
        try:
            if not self._connection.poll(seconds):
                return None
            return understood(self._connection.recv_bytes())
        except GONE:
            raise Lost(self._end()) from None

    def end(self) -> None:
        """See `Worker`."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()
        lifeline, self._lifeline = self._lifeline, -1
        if lifeline >= 0:
            os.close(lifeline)

    def _send(self, message: bytes) -> None:
        try:
            self._connection.send_bytes(message)
        except GONE:
            raise Lost(self._end()) from None

    def _end(self) -> str:
        """How it ended."""
        try:
            code = self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            return "it closed its end"
        return f"killed by signal {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
