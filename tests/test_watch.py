"""Work in a thread: its events come in order, its result and its errors arrive, and it stops when nobody listens."""

import threading

import pytest

from hf_prune.events import Advanced
from hf_prune.watch import Stopped, watched


def steps(count, ends=None):
    def work(tell):
        try:
            for i in range(count):
                tell(Advanced("x", i, count))
        except Stopped:
            if ends is not None:
                ends.append("stopped")
            raise
        return "done"

    return work


def test_events_come_in_order_and_the_result_at_the_end():
    found = []

    def outer():
        found.append((yield from watched(steps(5))))

    assert [e.done for e in outer()] == [0, 1, 2, 3, 4] and found == ["done"]


def test_what_the_work_raises_is_raised_here_behind_what_it_told():
    def work(tell):
        tell(Advanced("x", 0, 1))
        raise KeyError("lost")

    stream = watched(work)
    assert next(stream).done == 0
    with pytest.raises(KeyError, match="lost"):
        next(stream)


@pytest.mark.parametrize("how", [lambda s: s.close(), lambda s: s.throw(KeyboardInterrupt())])
def test_whoever_leaves_stops_the_work_and_waits_for_it(how):
    going, ends = threading.Event(), []

    def work(tell):
        tell(Advanced("x", 0, 2))
        going.wait(10)
        return steps(3, ends)(tell)

    stream = watched(work)
    next(stream)
    threading.Timer(0.05, going.set).start()
    try:
        how(stream)
    except KeyboardInterrupt:
        pass
    assert ends == ["stopped"] and not [t for t in threading.enumerate() if t.name == "hf_prune work"]
