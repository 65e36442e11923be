"""Run as a module in a fresh process: a worker, see `processes`.

Usage: python -m hf_prune.session.workers.process SOCKET LIFELINE PARENT, file descriptors and the id of who started it.
"""

import os
import pickle
import select
import signal
import sys
import threading
from multiprocessing.connection import Connection

LOOK = 0.5
"""Seconds between two looks for the parent; the end of its lifeline is seen at once, unless others hold it, too."""


def main(connection: int, lifeline: int, parent: int) -> None:
    """Open what is asked for, say so, and carry out orders until the parent has gone."""
    threading.Thread(target=_end_with, args=(lifeline, parent), daemon=True).start()
    # Ctrl-C is meant for who started this.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pipe = Connection(connection)
    try:
        opener, charge = pickle.loads(pipe.recv_bytes())
        from hf_prune.session.workers.serving import READY, Serving, told

        try:
            serving = Serving(opener, charge)
        except Exception as e:
            pipe.send_bytes(told(e))
            return
        pipe.send_bytes(READY)
        while True:
            if common := pipe.recv_bytes():
                serving.share(common[1:])
            pipe.send_bytes(serving.carry_out(pipe.recv_bytes()))
    except (EOFError, OSError):
        os._exit(1)


def _end_with(lifeline: int, parent: int) -> None:
    while True:
        ended = select.select([lifeline], [], [], LOOK)[0]
        if ended or os.getppid() != parent:
            os._exit(1)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
