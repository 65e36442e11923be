"""What this machine can: how fast it computes, and in how much memory."""

import multiprocessing
import threading
from functools import lru_cache
from typing import Any

from hf_prune.app.workers import ask
from hf_prune.planning import Rates, Room, Shape, rates_here, room_here


def rates(shape: Shape, length: int, device: str, dtype: str) -> Rates:
    """Measured once for every shape, in a process that has loaded torch: this one, where it works for a visitor."""
    if multiprocessing.current_process().daemon:
        return rates_here(shape, length, device, dtype)
    # Measured side by side, they would slow each other down.
    with _measuring:
        return _asked(shape, length, device, dtype)


_measuring = threading.Lock()


@lru_cache(maxsize=64)
def _asked(*how: Any) -> Rates:
    return ask(rates_here, *how)


@lru_cache(maxsize=4)
def room() -> Room:
    """Memory of this machine, asked in a process that has loaded torch."""
    return room_here("auto") if multiprocessing.current_process().daemon else ask(room_here, "auto")
