"""Work for one visitor of the app, in a process of its own: it has that visitor's login, can be stopped, and its memory
goes back to the machine.

The processes are forked from a server that has loaded torch already, so one of them starts in a fraction of a second.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from hf_prune.errors import HfPruneError

T = TypeVar("T")
LOADED = ["hf_prune.pipeline", "hf_prune.results"]
"""What every process begins with."""
PATIENCE = 120.0
"""Seconds a short piece of work may take."""
FAREWELL = 10.0
"""Seconds a process has to put its things away."""
ALONE = 1.0
"""Seconds it has once its app has gone."""
QUIET = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
_processes = multiprocessing.get_context("forkserver")


def warm() -> None:
    """Start the server, which loads what is slow to load while nobody waits for it."""
    from multiprocessing import forkserver

    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    _processes.set_forkserver_preload(LOADED)
    threading.Thread(target=forkserver.ensure_running, daemon=True).start()


def start(
    function: Callable[..., None], *args: Any, login: str | None = None, niceness: int = 0
) -> multiprocessing.Process:
    """A process that runs `function(*args)` with the environment's login, or with the given token.

    Args:
        function: of a module, so that it has a name.
        args: for it.
        login: token of the visitor; None leaves the environment's.
        niceness: how far it gives way to other processes, as os.nice counts.
    """
    process = _processes.Process(target=_alone, args=(function, args, login, niceness), daemon=True)
    process.start()
    return process


def ask(function: Callable[..., T], *args: Any, login: str | None = None, patience: float = PATIENCE, **more: Any) -> T:
    """The result of `function(*args, **more)` in a process of its own; result and arguments must pickle.

    Args:
        function: of a module, so that it has a name.
        args: for it.
        login: token of the visitor; None leaves the environment's.
        patience: seconds until the process is ended.
        more: for it, by name.

    Raises:
        HfPruneError: what the function raised, or that it took too long.
    """
    here, there = _processes.Pipe(duplex=False)
    process = start(_answer, there, function, args, more, login=login)
    there.close()
    try:
        if not here.poll(patience):
            raise HfPruneError(f"This took longer than {patience:.0f} seconds and was ended; try a smaller model.")
        good, found = here.recv()
    except EOFError:
        raise HfPruneError(
            "The work ended without an answer, perhaps for want of memory; try a smaller model."
        ) from None
    finally:
        here.close()
        stop(process, patience=1.0)
    if not good:
        raise found
    return found


def stop(process: multiprocessing.Process, patience: float = FAREWELL) -> None:
    """Ask a process to end, as Ctrl-C would; after `patience` seconds end it."""
    if process.is_alive():
        process.join(0.05)
    if process.is_alive() and process.pid:
        # It may have gone since it was looked at.
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGINT)
        process.join(patience)
    if process.is_alive():
        process.kill()
    process.join()


def _alone(function: Callable[..., None], args: tuple[Any, ...], login: str | None, niceness: int) -> None:
    os.environ |= QUIET
    os.nice(niceness)
    if login is not None:
        os.environ["HF_TOKEN"] = login
    for asked in (signal.SIGINT, signal.SIGTERM):
        signal.signal(asked, signal.default_int_handler)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        function(*args)
    except KeyboardInterrupt:
        os._exit(130)


def _end_with_parent() -> None:
    """Nobody would stop a process whose app has gone."""
    multiprocessing.parent_process().join()
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(ALONE)
    os._exit(130)


def _answer(pipe: Connection, function: Callable[..., Any], args: tuple[Any, ...], more: dict[str, Any]) -> None:
    try:
        found = True, function(*args, **more)
    except HfPruneError as e:
        found = False, e
    except Exception as e:
        found = False, HfPruneError(f"{type(e).__name__}: {e}")
    pipe.send(found)
