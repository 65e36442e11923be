"""Long work as a stream of events: it runs in a thread of its own and tells; whoever iterates may stop it."""

import queue
import threading
from collections.abc import Callable, Generator
from typing import Any, TypeVar

from hf_prune.events import Event

T = TypeVar("T")
Tell = Callable[[Event], None]


class Stopped(BaseException):
    """Nobody listens any more. No Exception, so that no library takes it for a failure of its own."""


def unwatched(work: Generator[Any, None, T]) -> T:
    """What a stream of events returns, for whom it alone matters."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


def watched(work: Callable[[Tell], T]) -> Generator[Event, None, T]:
    """Run `work(tell)` and yield what it tells, as it tells it.

    Closing the generator, or an interrupt while it waits, makes the next `tell` raise `Stopped` inside the work, and
    waits for that. What the work raises is raised here.

    Returns:
        What `work` returns.
    """
    told: queue.Queue[Event | None] = queue.Queue()
    stop = threading.Event()
    end: dict[str, Any] = {}

    def tell(event: Event) -> None:
        if stop.is_set():
            raise Stopped
        told.put(event)

    def run() -> None:
        try:
            end["value"] = work(tell)
        except BaseException as e:
            end["error"] = e
        finally:
            told.put(None)

    thread = threading.Thread(target=run, name="hf_prune work", daemon=True)
    thread.start()
    try:
        while (event := told.get()) is not None:
            yield event
    finally:
        stop.set()
        thread.join()
    if "error" in end:
        raise end["error"]
    return end["value"]
