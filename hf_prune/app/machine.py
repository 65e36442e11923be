"""What this machine has and can do: memory, and how fast it multiplies."""

import os
import threading
from concurrent.futures import Future

from hf_prune.app.workers import ask
from hf_prune.errors import HfPruneError
from hf_prune.plan import Plan

OVERHEAD = 30.0
"""Seconds of every run that do not grow with the model: loading, the certificate, figures."""
STEPS = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1440)
"""Minutes that an estimate is rounded to; beyond, it is days."""
_speed: Future[tuple[float, float]] = Future()


def look() -> None:
    """Measure the machine in the background, once, while nobody waits for it."""
    threading.Thread(target=_look, daemon=True).start()


def memory() -> int:
    """Bytes of memory: the machine's, or what its container may take."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        with open("/sys/fs/cgroup/memory.max", encoding="ascii") as file:
            return min(machine, int(file.read()))
    except (OSError, ValueError):
        return machine


def time_of(plan: Plan) -> str:
    """About how long a run takes here, in words; empty while the machine has not been measured.

    An upper bound of the operations at the full speed of a matrix product: what sharing saves and what a real network
    falls short of are taken to be the same.
    """
    if not _speed.done():
        return ""
    search, training = _speed.result()
    return about(OVERHEAD + plan.search_operations / search + plan.training_operations / training)


def about(seconds: float) -> str:
    """Rounded to what an estimate can know."""
    minutes = min(STEPS, key=lambda s: max(s * 60 / seconds, seconds / 60 / s))
    if seconds > 1.5 * STEPS[-1] * 60:
        return f"about {seconds / 86400:.0f} days"
    return f"about {minutes} min" if minutes < 60 else f"about {minutes // 60} h"


def _look() -> None:
    from hf_prune.evaluation.speed import product_rates

    try:
        _speed.set_result(ask(product_rates))
    except HfPruneError:
        # A plan without its time is still a plan.
        pass
