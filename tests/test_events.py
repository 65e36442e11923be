"""Work in a thread: its events come in order, its result and its errors arrive, and it stops when nobody listens."""

import math
import os
import signal
import threading
from dataclasses import fields
from typing import get_args

import pytest

from hf_prune.blueprint import Blueprint, Source
from hf_prune.events import Advanced, Event, Stopped, stream_work

WAIT = 10


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


def working():
    return [t for t in threading.enumerate() if t.name == "hf_prune work"]


@pytest.mark.parametrize("count", [0, 1, 50])
def test_events_come_in_order_and_the_result_at_the_end(count):
    found = []

    def outer():
        found.append((yield from stream_work(steps(count))))

    assert [e.done for e in outer()] == list(range(count)) and found == ["done"]


def test_an_event_is_there_while_the_work_goes_on_in_a_thread_of_its_own():
    going, where = threading.Event(), []

    def work(tell):
        where.append(threading.current_thread())
        tell(Advanced("x", 0, 2))
        assert going.wait(WAIT)
        tell(Advanced("x", 1, 2))

    stream = stream_work(work)
    assert next(stream).done == 0 and working() == where and where[0] is not threading.current_thread()
    going.set()
    assert next(stream).done == 1
    with pytest.raises(StopIteration) as end:
        next(stream)
    assert end.value.value is None and not working()


@pytest.mark.parametrize("error", [KeyError("lost"), SystemExit("lost"), Stopped("lost")])
def test_what_the_work_raises_is_raised_here_behind_what_it_told(error):
    def work(tell):
        tell(Advanced("x", 0, 1))
        raise error

    stream = stream_work(work)
    assert next(stream).done == 0
    with pytest.raises(type(error), match="lost") as caught:
        next(stream)
    assert caught.value is error and not working()


def test_no_library_takes_the_stop_for_a_failure_of_its_own():
    assert not issubclass(Stopped, Exception)


@pytest.mark.parametrize("how", [lambda s: s.close(), lambda s: s.throw(KeyboardInterrupt())], ids=["close", "throw"])
def test_whoever_leaves_stops_the_work_and_waits_for_it(how):
    going, ends = threading.Event(), []

    def work(tell):
        tell(Advanced("x", 0, 2))
        assert going.wait(WAIT)
        return steps(3, ends)(tell)

    stream = stream_work(work)
    next(stream)
    threading.Timer(0.05, going.set).start()
    try:
        how(stream)
    except KeyboardInterrupt:
        pass
    assert ends == ["stopped"] and not working()


def test_ctrl_c_while_it_waits_for_news_stops_the_work():
    ends, waiting = [], threading.Event()

    def work(tell):
        # The main thread waits for the first event and gets the signal instead.
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        assert waiting.wait(WAIT)
        return steps(3, ends)(tell)

    def interrupt(*_):
        threading.Timer(0.05, waiting.set).start()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            list(stream_work(work))
    finally:
        signal.signal(signal.SIGINT, before)
    assert ends == ["stopped"] and not working()


def test_a_work_that_fails_while_it_is_stopped_does_not_hide_why():
    going = threading.Event()

    def work(tell):
        tell(Advanced("x", 0, 1))
        going.wait(WAIT)
        raise ValueError("on the way out")

    stream = stream_work(work)
    next(stream)
    threading.Timer(0.05, going.set).start()
    with pytest.raises(KeyboardInterrupt):
        stream.throw(KeyboardInterrupt())
    assert not working()


@pytest.mark.parametrize("kind", get_args(Event), ids=lambda kind: kind.__name__)
def test_every_event_prints_as_a_line(kind):
    values = {
        "report": {"x": 1},
        "folder": "small",
        "seconds": {"search": 90.0},
        "done": 3,
        "total": 9,
        "best": math.inf,
    }
    given = {f.name: values.get(f.name, "x" if f.type is str else 0) for f in fields(kind)}
    if kind.__name__ == "Assembled":
        given["blueprint"] = Blueprint.identity(Source("m", "f"), 2)
    said = str(kind(**given))
    assert said and "\n" not in said and kind.__name__ not in said and "{" not in said
